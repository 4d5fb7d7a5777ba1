import copy
import errno
import os
import resource
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import nestling
from nestling import FileError, NestlingError, container, files, models
from nestling.costs.latency import Latency
from nestling.header import space_to_json
from nestling.modelfile import describe
from nestling.ownership import own_norms
from nestling.profile import beside
from nestling.weights import tensors_of

BUILDERS = {
    "resnet20": {"width": 8},
    "resnet18": {"width": 8},
    "resnet50": {"width": 8},
    "mlp": {"in_features": 12, "hidden": [16, 16]},
    "vgg11_bn": {"width": 8},
    "mobilenet_v1": {"width": 0.25},
}


def example(model, name):
    return torch.randn(2, 12) if name == "mlp" else torch.randn(2, 3, 32, 32)


def menu_of(model, inputs, **options):
    net = nestling.Supernet(model, inputs, **options)
    specs = [net.space.spec(width=width) for width in (0.5, 0.25)]
    data = [(inputs, torch.zeros(len(inputs), dtype=torch.long))]
    return nestling.make_menu(net, specs, data, calibrate=data, measure=False)


def same_menus(one, two, inputs):
    assert two.entries == one.entries
    assert two.identity() == one.identity()
    assert (two.metric, dict(two.facts)) == (one.metric, dict(one.facts))
    assert space_to_json(two.net.space) == space_to_json(one.net.space)
    assert (two.net.orders, two.net.private) == (one.net.orders, one.net.private)
    assert two.net.signature == one.net.signature
    for name, tensor in tensors_of(one.net.model).items():
        other = tensors_of(two.net.model)[name]
        assert torch.equal(tensor, other)
        assert (tensor.dtype, tensor.stride()) == (other.dtype, other.stride())
    with torch.no_grad():
        for entry in one:
            assert torch.equal(one.module(entry.name)(inputs), two.module(entry.name)(inputs))
            for mine, theirs in zip(one[entry.name].private.values(), entry.private.values()):
                assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", BUILDERS)
def test_builders_come_back_bit_for_bit(name, tmp_path):
    state = torch.get_rng_state()
    if not hasattr(models, name) or not _accepts(name):
        pytest.skip("no such builder or arguments")
    model = getattr(models, name)(**BUILDERS[name])
    inputs = example(model, name)
    menu = menu_of(model, inputs)
    path = menu.save(tmp_path / "model.nest")
    torch.set_rng_state(state)
    loaded = nestling.load(path)
    assert torch.equal(torch.get_rng_state(), state)  # loading draws nothing from the user's
    same_menus(menu, loaded.menu, inputs)


def _accepts(name):
    try:
        models.build(name, BUILDERS[name])
    except NestlingError:
        return False
    return True


@pytest.fixture(scope="module")
def menu(small):
    """A trained-looking menu of a builder's net, channels-last, with units reordered."""
    net = nestling.Supernet(models.resnet20(width=8), torch.randn(2, 3, 8, 8))
    net.to(memory_format=torch.channels_last)
    net.reorder(small.shuffled(net.space))
    data = [(torch.randn(4, 3, 8, 8), torch.zeros(4).long())]
    return nestling.make_menu(net, [net.space.uniform[0]], data, calibrate=data, measure=False)


@pytest.fixture(scope="module")
def saved(menu, tmp_path_factory):
    path = menu.save(tmp_path_factory.mktemp("saved") / "model.nest")
    return path, *container.read(path)


def test_layout_orders_and_facts_are_kept(menu, saved):
    path, header, _ = saved
    assert header["channels_last"] is True
    same_menus(menu, nestling.load(path).menu, torch.randn(2, 3, 8, 8))
    assert describe(path)["menu"][0]["name"] == "full"
    assert describe(path)["model"]["name"] == "resnet20"


def test_the_users_own_class(small, tmp_path):
    menu = menu_of(small.seeded(small.ConvNet), torch.randn(2, 1, 8, 8), step=2)
    path = menu.save(tmp_path / "own.nest")
    with pytest.raises(FileError, match=r"nestling_small\.ConvNet.*model=ConvNet\(\)"):
        nestling.load(path)
    for wrong in (small.ConvNet, {}, "ConvNet"):
        with pytest.raises(FileError, match="an instance of your class"):
            nestling.load(path, model=wrong)
    for wrong in (small.Mlp(), small.ConvNet(width=16), models.mlp()):
        with pytest.raises(FileError, match="does not fit the model"):
            nestling.load(path, model=wrong)
    same_menus(menu, nestling.load(path, model=small.ConvNet()).menu, torch.randn(2, 1, 8, 8))


def test_the_users_instance_is_not_changed(small, tmp_path):
    one, two = (
        menu_of(model, torch.randn(2, 1, 8, 8), step=2)
        for model in (small.ConvNet(), small.ConvNet())
    )
    paths = one.save(tmp_path / "one.nest"), two.save(tmp_path / "two.nest")
    mine = small.ConvNet()
    before = {key: tensor.clone() for key, tensor in mine.state_dict().items()}
    loaded = [nestling.load(path, model=mine) for path in paths]
    for key, tensor in mine.state_dict().items():
        assert torch.equal(tensor, before[key])
    for menu, again in zip((one, two), loaded, strict=True):
        assert again.menu.net.model is not mine
        same_menus(menu, again.menu, torch.randn(2, 1, 8, 8))


def test_an_instance_that_cannot_be_copied(small, tmp_path):
    path = menu_of(small.seeded(small.ConvNet), torch.randn(2, 1, 8, 8), step=2).save(
        tmp_path / "own.nest"
    )
    mine = small.ConvNet()
    mine.extra = threading.Lock()
    with pytest.raises(FileError, match=r"model= is copied.*cannot be copied.*deepcopy"):
        nestling.load(path, model=mine)


def test_weights_loaded_in_inference_mode_can_be_trained(saved):
    with torch.inference_mode():
        model = nestling.load(saved[0])
        model(torch.randn(2, 3, 8, 8), fraction=0.9)
    assert not any(p.is_inference() for p in model.menu.net.parameters())
    model.subnet("full")(torch.randn(2, 3, 8, 8)).sum().backward()


def test_a_builder_with_changed_layers_is_the_users_own_class(tmp_path):
    model = models.mlp(in_features=6, hidden=[8])
    place = next(name for name, layer in model.named_children() if isinstance(layer, nn.ReLU))
    setattr(model, place, nn.GELU())
    menu = menu_of(model, torch.randn(2, 6), step=2)
    path = menu.save(tmp_path / "own.nest")
    with pytest.raises(FileError, match="model="):
        nestling.load(path)
    again = models.mlp(in_features=6, hidden=[8])
    setattr(again, place, nn.GELU())
    same_menus(menu, nestling.load(path, model=again).menu, torch.randn(2, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype, tmp_path):
    inputs = torch.randn(2, 6).to(dtype)
    model = models.mlp(in_features=6, hidden=[8]).to(dtype)
    menu = menu_of(model, inputs, step=2)
    loaded = nestling.load(menu.save(tmp_path / "model.nest"))
    same_menus(menu, loaded.menu, inputs)
    assert loaded(inputs).dtype == dtype


class Tied(nn.Module):
    """Two layers of one weight, and a buffer that a state dict does not have."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("shift", torch.rand(1), persistent=False)

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x) + self.shift).relu()).relu())


@pytest.mark.parametrize("method", ["uniform", "individual"])
def test_tied_weights_and_buffers_that_do_not_persist(method, tmp_path, unmeasured, small):
    data = [(torch.randn(8, 4), torch.randint(2, (8,)))]
    net = nestling.Supernet(Tied(), torch.randn(2, 4), step=2)
    menu = nestling.fit(
        net, data, data, method=method, epochs=1, fractions=(1.0, 0.3), progress=False
    )
    path = menu.save(tmp_path / "tied.nest")
    fresh = Tied()
    loaded = nestling.load(path, model=fresh)
    assert fresh.two.weight is fresh.one.weight
    same_menus(menu, loaded.menu, torch.randn(2, 4))


def test_individual_nets_keep_their_own_weights(small, tmp_path, unmeasured):
    menu = nestling.fit(
        small.supernet(),
        small.batches(),
        small.batches(16),
        method="individual",
        epochs=1,
        fractions=(1.0, 0.4),
        progress=False,
    )
    loaded = nestling.load(menu.save(tmp_path / "own.nest"), model=small.ConvNet())
    same_menus(menu, loaded.menu, small.pictures(4)[0])


def test_one_copy_of_the_weights(tmp_path):
    net = nestling.Supernet(models.resnet18(), torch.randn(1, 3, 64, 64))
    data = [(torch.randn(2, 3, 64, 64), torch.zeros(2).long())]
    sizes = []
    for specs in ([net.space.full], net.space.uniform[-16:]):
        menu = nestling.make_menu(net, specs, calibrate=data, measure=False)
        sizes.append(menu.save(tmp_path / f"{len(menu)}.nest").stat().st_size)
    assert len(menu) == 16
    assert sizes[1] <= 1.05 * sizes[0]


# -- the profile beside ---------------------------------------------------------------------------


def with_profile(menu):
    table = {entry.name: Latency(2.0, 1.9, 2.1, 40) for entry in menu}
    profile = menu.profile.with_table(menu.key(1), table)
    return nestling.menu.replace(menu, profile=profile)


def test_the_profile_lies_beside_and_goes_with_the_model(menu, tmp_path):
    path = with_profile(menu).save(tmp_path / "model.nest")
    loaded = nestling.load(path)
    assert loaded.menu.latencies(1)["full"].median == 2.0
    assert loaded.choose(latency_ms=3).accuracy == max(entry.accuracy for entry in menu)
    other = menu_of(models.mlp(in_features=6, hidden=[8]), torch.randn(2, 6), step=2)
    foreign = beside(path).read_bytes()
    other.save(path)
    assert not beside(path).exists()
    beside(path).write_bytes(foreign)
    with pytest.warns(UserWarning, match="belong to another model"):
        loaded = nestling.load(path)
    with pytest.raises(nestling.BudgetError, match="nestling profile"):
        loaded.choose(latency_ms=3)
    beside(path).write_text("{")
    with pytest.raises(FileError, match=r"profile\.json"):
        nestling.load(path)


# -- files that cannot be written or read ---------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "model.pt", "model.nest.bak"])
def test_a_model_file_ends_in_nest(menu, tmp_path, name):
    with pytest.raises(FileError, match=r"\.nest"):
        menu.save(tmp_path / name)


def test_places_that_cannot_be_written(menu, tmp_path):
    (tmp_path / "folder.nest").mkdir()
    with pytest.raises(FileError, match="not a regular file"):
        menu.save(tmp_path / "folder.nest")
    with pytest.raises(FileError, match="make the folder"):
        menu.save(tmp_path / "missing" / "model.nest")
    for path in (tmp_path / "folder.nest", tmp_path / "none.nest"):
        with pytest.raises(FileError, match="check the path"):
            nestling.load(path)
        with pytest.raises(FileError, match="check the path"):
            describe(path)
    with pytest.raises(FileError):
        nestling.load("/proc/1/mem" if os.geteuid() else "/proc/self/mem")


def test_a_full_disk_leaves_the_earlier_file(menu, tmp_path, monkeypatch):
    path = menu.save(tmp_path / "model.nest")
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        menu.save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["model.nest"]


def test_a_menu_that_the_format_cannot_hold(menu, tmp_path):
    entry = nestling.menu.replace(menu.entries[0], accuracy=float("nan"))
    with pytest.raises(FileError, match="not a finite number"):
        nestling.menu.replace(menu, entries=(entry,)).save(tmp_path / "model.nest")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file(saved, tmp_path, share):
    data = saved[0].read_bytes()
    (tmp_path / "cut.nest").write_bytes(data[: int(share * len(data))])
    with pytest.raises(FileError):
        nestling.load(tmp_path / "cut.nest")


@given(place=st.floats(0, 0.999999), flip=st.integers(1, 255))
@settings(max_examples=30, deadline=None)
def test_any_altered_byte_is_noticed(saved, tmp_path_factory, place, flip):
    data = bytearray(saved[0].read_bytes())
    data[int(place * len(data))] ^= flip
    path = tmp_path_factory.getbasetemp() / "altered.nest"
    path.write_bytes(data)
    with pytest.raises(FileError):
        nestling.load(path)


# -- hostile files: the checksums fit, the header does not ----------------------------------------


def reseal(saved, folder, header, tensors=None):
    path = folder / "hostile.nest"
    container.write(path, header, saved[2] if tensors is None else tensors)
    return path


def put(header, place, value):
    """Return a copy of a header with another value at a place, a path of keys and indices."""
    header = copy.deepcopy(header)
    at = header
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return header


def nested(depth):
    value = 8
    for _ in range(depth):
        value = ["*", value]
    return value


def nested_passage(depth):
    value = ["given", 0]
    for _ in range(depth):
        value = ["tuple", value]
    return value


HOSTILE = {
    "other format": (["format"], "torch"),
    "other version": (["version"], 2),
    "huge axis": (["space", "axes", 0, 1], 2**60),
    "huge counts": (["space", "axes", 0, 3], [2**40]),
    "negative count": (["space", "axes", 0, 3], [-4, 16]),
    "counts upside down": (["space", "axes", 0, 3], [8, 4]),
    "no counts": (["space", "axes", 0, 3], []),
    "axis row too short": (["space", "axes", 0], ["a"]),
    "axes no list": (["space", "axes"], {"a": 1}),
    "huge extents": (["space", "works", 0, 1], [["*", *[2**40] * 50]]),
    "huge beside zero": (["space", "works", 0, 1], [["*", 0, 2**60]]),
    "unknown axis": (["space", "works", 0, 1], [["axis", "nowhere", 8]]),
    "negative work": (["space", "works", 0, 2], -1),
    "dunder attribute": (["space", "attributes", 0, 1], "__class__"),
    "private attribute": (["space", "attributes", 0, 1], "_parameters"),
    "mode attribute": (["space", "attributes", 0, 1], "training"),
    "method attribute": (["space", "attributes", 0, 1], "forward"),
    "weight attribute": (["space", "attributes", 0, 1], "weight"),
    "unknown module": (["space", "attributes", 0, 0], "no.such.module"),
    "index of a number": (["space", "attributes", 0, 2], 5),
    "negative index": (["space", "attributes", 0, 2], -1),
    "attribute of another size": (["space", "attributes", 0, 3], 2**30),
    "frozen with a list": (["space", "frozen"], [[[], 0, 0, "", "", ""]]),
    "escape code": (["space", "frozen"], [["a", 0, 0, "", "", "\x1b[2J"]]),
    "unknown builder": (["builder", "name"], "os.system"),
    "builder no object": (["builder"], "resnet20"),
    "huge builder": (["builder", "arguments", "width"], 10**9),
    "large builder": (["builder", "arguments", "width"], 512),
    "unknown argument": (["builder", "arguments", "path"], "/etc/passwd"),
    "another builder": (["builder", "name"], "resnet56"),
    "blocks no list": (["space", "blocks"], {"layer1.1": 1}),
    "block row too short": (["space", "blocks", 0], ["layer1.1", "layer1.depth"]),
    "block of no axis": (["space", "blocks", 0, 1], "nowhere"),
    "block of a width": (["space", "blocks", 0, 1], "layer1"),
    "block of a list": (["space", "blocks", 0, 1], ["layer1.depth"]),
    "block that is nowhere": (["space", "blocks", 0, 0], "no.such.module"),
    "block that is a weight": (["space", "blocks", 0, 0], "conv1.weight"),
    "block that is the model": (["space", "blocks", 0, 0], ""),
    "block reaching inside": (["space", "blocks", 0, 3], ["given", "x", "__class__", "__init__"]),
    "block twice": (["space", "blocks", 0, 0], "layer1.2"),
    "block behind the last": (["space", "blocks", 0, 2], 2**30),
    "block before the first": (["space", "blocks", 0, 2], -1),
    "block always passed": (["space", "blocks", 0, 2], 0),
    "passage of a function": (["space", "blocks", 0, 3], ["os.system", "ls"]),
    "passage of text": (["space", "blocks", 0, 3], "given"),
    "passage of internals": (["space", "blocks", 0, 3], ["object", ["__class__"], None]),
    "passage of code": (["space", "blocks", 0, 3], ["given", "x); import os"]),
    "passage far away": (["space", "blocks", 0, 3], ["given", 2**60]),
    "deep passage": (["space", "blocks", 0, 3], nested_passage(40)),
    "long passage": (["space", "blocks", 0, 3], ["tuple", *[None] * 10_000]),
    "no orders": (["orders"], {}),
    "order no permutation": (["orders"], []),
    "private that is nowhere": (["private"], ["nothing"]),
    "private weight": (["private"], ["conv1.weight"]),
    "no private": (["private"], []),
    "own tensor that is nowhere": (["menu", 1, "private"], ["nothing"]),
    "own tensors left out": (["menu", 1, "private"], []),
    "empty menu": (["menu"], []),
    "menu no list": (["menu"], {"a": 1}),
    "huge macs": (["menu", 0, "macs"], 2**60),
    "negative bytes": (["menu", 0, "bytes"], -1),
    "huge accuracy": (["menu", 0, "accuracy"], 10**400),
    "accuracy of text": (["menu", 0, "accuracy"], "1"),
    "accuracy of truth": (["menu", 0, "accuracy"], True),
    "count that is not allowed": (["menu", 1, "spec"], {"conv1": 3}),
    "spec no object": (["menu", 1, "spec"], [1]),
    "name of a list": (["menu", 1, "name"], ["x"]),
    "name with a folder": (["menu", 1, "name"], "a/b"),
    "long name": (["menu", 1, "name"], "a" * 101),
    "two of a name": (["menu", 1, "name"], "full"),
    "offered 1": (["menu", 1, "offered"], 1),
    "huge input": (["inputs", "args"], [[[1, 2**60], "float32"]]),
    "large input": (["inputs", "args"], [[[1, 2**20, 2**20], "float32"]]),
    "many inputs": (["inputs", "args"], [[[1], "float32"]] * 1000),
    "input of no dtype": (["inputs", "args"], [[[1], "Tensor"]]),
    "inputs of text": (["inputs", "args"], "abc"),
    "facts no object": (["facts"], "abc"),
    "rewrites no list": (["space", "rewrites"], {"layer1": 1}),
    "rewrite row too short": (["space", "rewrites"], [["layer1.0"]]),
    "rewrite of no module": (["space", "rewrites"], [["nowhere", []]]),
    "module rewritten twice": (["space", "rewrites"], [["layer1.0", []]] * 3000),
    "rewrite of torch's code": (["space", "rewrites"], [["", [["forward", 0, 1]]]]),
    "rewrite of no method": (["space", "rewrites"], [["layer1.0", [["no_such", 0, 1]]]]),
    "rewrite of a dunder": (["space", "rewrites"], [["layer1.0", [["__init__", 0, 0]]]]),
    "rewrite of no number": (["space", "rewrites"], [["layer1.0", [["forward", 2**30, 1]]]]),
    "number rewritten twice": (["space", "rewrites"], [["layer1.0", [["forward", 0, 1]] * 2]]),
    "metric no text": (["metric"], {}),
    "id no text": (["id"], 7),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(saved, tmp_path, name):
    place, value = HOSTILE[name]
    path = reseal(saved, tmp_path, put(saved[1], place, value))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileError) as caught:
        nestling.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000  # KiB
    assert len(str(caught.value)) < 2000


# A row's own tensors: norm statistics, maybe with weights (of norms), or all that there is.


@pytest.fixture(scope="module")
def owned(small, tmp_path_factory):
    """A file whose second entry has norm weights of its own."""
    net = small.supernet()
    specs = {"full": net.space.full, "half": net.space.spec(width=0.5)}
    subnets = {name: (spec, net.subnet(spec)) for name, spec in specs.items()}
    own_norms(subnets["half"][1])
    menu = nestling.menu.menu_of(net, subnets, None, calibrate=small.batches(), measure=False)
    path = menu.save(tmp_path_factory.mktemp("owned") / "model.nest")
    return path, *container.read(path)


OWN = "entries/half/"
STATISTICS = [f"norm{n}.{k}" for n in (1, 2) for k in ("num_batches_tracked", "running_mean",
                                                       "running_var")]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv9.weight": (4, 1, 3, 3)}, "tensors of its own that are no norm statistics"),
        ({"norm1.weight": (8,)}, r"\(8,\), but the header says \(4,\)"),
        ({"norm1.weight": ()}, r"\(\), but the header says \(4,\)"),
        ({"conv1.weight": (8, 1, 3, 3)}, "header says"),
        ({"conv1.weight": (2**20, 1, 3, 3)}, "header says"),
        ({"norm1.running_var": None}, "no norm statistics"),
        ({name: None for name in STATISTICS}, "no norm statistics"),
        ({"__class__": (4,)}, "no norm statistics"),
    ],
)
def test_hostile_tensors_of_its_own(owned, small, tmp_path, change, message):
    _, header, tensors = copy.deepcopy(owned)
    listed = set(header["menu"][1]["private"])
    for name, shape in change.items():
        listed = listed - {name} if shape is None else listed | {name}
        if shape is None:
            tensors.pop(OWN + name)
        else:
            tensors[OWN + name] = torch.zeros(1).expand(shape) if shape else torch.zeros(())
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header["menu"][1]["private"] = sorted(listed)
    path = tmp_path / "hostile.nest"
    container.write(path, header, tensors)
    with pytest.raises(FileError, match=message):
        nestling.load(path, model=small.ConvNet())


def test_listed_tensors_are_there_and_those_there_are_listed(owned, small, tmp_path):
    _, header, tensors = owned
    path = tmp_path / "hostile.nest"
    fewer = {name: t for name, t in tensors.items() if name != OWN + "norm1.weight"}
    unlisted = copy.deepcopy(header)
    unlisted["menu"][1]["private"].remove("norm1.weight")
    for one, other in ((header, fewer), (unlisted, tensors)):
        container.write(path, one, other)
        with pytest.raises(FileError, match=r"entries/half/norm1\.weight"):
            nestling.load(path, model=small.ConvNet())


def test_a_listed_twice_or_any_weight_of_its_own_loads(owned, small, tmp_path):
    """What the rule allows beyond norms: it stays in its entry, and no other one sees it."""
    _, header, tensors = copy.deepcopy(owned)
    header["menu"][1]["private"] += ["norm1.weight", "conv2.weight"]
    header["menu"][0]["private"] = ["head.bias"]
    tensors[OWN + "conv2.weight"] = torch.ones(4, 4, 3, 3)
    tensors["entries/full/head.bias"] = torch.full((3,), 7.0)
    path = tmp_path / "own.nest"
    container.write(path, header, tensors)
    loaded = nestling.load(path, model=small.ConvNet())
    weights = loaded.menu.net.model
    assert torch.equal(loaded.subnet("half").conv2.weight, torch.ones(4, 4, 3, 3))
    assert torch.equal(loaded.subnet("full").head.bias, torch.full((3,), 7.0))
    assert torch.equal(weights.conv2.weight, tensors["weights/conv2.weight"])
    assert torch.equal(weights.head.bias, tensors["weights/head.bias"])
    assert torch.equal(loaded.subnet("half").head.bias, weights.head.bias)


def test_nesting_and_large_lists_are_bounded(saved, tmp_path):
    with pytest.raises(FileError):
        reseal(saved, tmp_path, put(saved[1], ["space", "works", 0, 1], [nested(10_000)]))
    row = saved[1]["menu"][0]
    rows = [{**row, "name": str(number)} for number in range(1_001)]
    with pytest.raises(FileError, match="1 to 1000"):
        nestling.load(reseal(saved, tmp_path, put(saved[1], ["menu"], rows)))


def test_hostile_tensors(saved, tmp_path):
    _, header, tensors = saved
    name = next(key for key in tensors if key.endswith("conv1.weight"))
    for change in (
        {name: tensors[name].to(torch.int32)},
        {name: tensors[name][:1]},
        {name: tensors[name].to(torch.float8_e4m3fn)},
        {"weights/extra": torch.zeros(1)},
        {"entries/full/conv1.weight": torch.zeros(1)},
    ):
        with pytest.raises(FileError):
            nestling.load(reseal(saved, tmp_path, header, {**tensors, **change}))
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(FileError):
        nestling.load(reseal(saved, tmp_path, header, rest))


def places(value, path=()):
    yield path
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:3])
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        yield from places(child, (*path, key))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**60, -1, 0, 1, 10**30, "", "__class__", "weight", "conv1", "full"])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_mutated_headers_load_or_are_refused(saved, tmp_path_factory, data):
    """Whatever stands anywhere in a header: a FileError, or a model that runs or says why not."""
    _, header, _ = saved
    place = data.draw(st.sampled_from([path for path in places(header) if path]))
    mutated = put(header, place, data.draw(JSON))
    path = reseal(saved, tmp_path_factory.getbasetemp(), mutated)
    try:
        describe(path)
        loaded = nestling.load(path)
    except FileError:
        return
    for entry in loaded.menu:
        try:
            loaded(torch.zeros(1, 3, 8, 8), subnet=entry.name)
        except NestlingError:
            continue


# -- settings: the numbers of a config ------------------------------------------------------------


class Config:
    """A config with a method and a property, as libraries have them."""

    size: int = 16  # a default of the class is no hindrance

    def __init__(self):
        self.size = 16
        self.hidden = None  # 32, says the class
        self.widths = [16, 16]

    def to_dict(self):
        return dict(vars(self))

    @property
    def labels(self):
        return len(self.names)

    @labels.setter
    def labels(self, number):
        self.names = [f"label {n}" for n in range(number)]


class Configured(nn.Module):
    """Keeps its config."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.enter = nn.Linear(6, config.size)
        hidden = config.hidden or 2 * config.size
        self.up, self.down = nn.Linear(config.size, hidden), nn.Linear(hidden, config.size)
        self.leave = nn.Linear(config.size, 3)

    def forward(self, x):
        return self.leave(self.down(self.up(self.enter(x)).relu()).relu())


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    torch.manual_seed(0)
    menu = menu_of(Configured(Config()), torch.randn(4, 6), step=8)
    path = menu.save(tmp_path_factory.mktemp("configured") / "model.nest")
    return path, *container.read(path)


def test_settings_come_back(configured):
    loaded = nestling.load(configured[0], model=Configured(Config()))
    net = loaded.menu.net
    names = {setting.name for setting in net.space.settings}
    assert {"config.size", "config.hidden"} <= names  # a number that the config leaves to the class
    spec = net.space.config_spec(net.space.spec(width=0.5))
    assert net.subnet(spec).config.size == net.subnet(spec).enter.out_features == 8
    assert net.subnet(spec).config.hidden == net.subnet(spec).up.out_features


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["", "config.labels", None, 1 << 33, [], False], "config.labels is no number of a config"),
        (["", "config.to_dict", None, 7, [], False], "config.to_dict is no number"),
        (["", "config.nothing", None, 7, [], False], "config.nothing is no number"),
        (["", "config.size", None, 15, [], False], "config.size is 16, not 15"),
        (["", "config.hidden", None, 1 << 33, [], False], "config.hidden is None, not 8589934592"),
        (["", "config.hidden", 0, 16, [], False], "config.hidden is None, not 16"),
        (["", "config.hidden", None, 16, [], True], "config.hidden is None, not 16"),
        (["", "config.hidden", None, 16, [[16, 8]], False], "to be 16 and 8 at once"),
        (["", "config.widths", None, 16, [], False], "not 16"),
        (["", "config.widths", 2, 16, [], False], "config.widths is None, not 16"),
        (["", "config.widths", None, 3, [], True], "config.widths is 2, not 3"),
        (["up", "config.size", None, 16, [], False], "holds no config"),
        (["", "config", None, 16, [], False], "not the name of a number"),
        (["", "config.__class__.size", None, 16, [], False], "not the name of a number"),
    ],
)
def test_settings_of_a_hostile_file(configured, tmp_path, row, said):
    header = copy.deepcopy(configured[1])
    header["space"]["settings"].append(row)
    path = tmp_path / "hostile.nest"
    container.write(path, header, configured[2])
    model = Configured(Config())
    with pytest.raises(FileError, match=said):
        nestling.load(path, model=model)
    assert vars(model.config) == vars(Config())
