"""Configs: which numbers follow which axes, on modules with configs of their own."""

import copy
import copyreg
import functools
import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling.axes.blueprint import built, numbers_in, shapes_of
from nestling.errors import SpecError
from nestling.extent import Along, Concat, Fixed, Product
from nestling.header import space_from_json, space_to_json
from nestling.setting import (
    MOST_STEPS,
    Setting,
    agreeing,
    conflicts,
    fitted,
    holder_of,
    is_config,
    shown,
)
from nestling.spec import Axis


@dataclass
class Inner:
    width: int = 16


@dataclass
class Config:
    size: int = 32
    hidden: int | None = None  # four times the size
    stem: int = 24  # must equal the first stage
    stages: list[int] = field(default_factory=lambda: [24, 40])
    scale_size: int = 48  # also the scale of the outputs
    twin: int = 32  # equal to `size` by chance
    inner: Inner = field(default_factory=Inner)


class Net(nn.Module):
    """A net with a config as users write it; every number means something else."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.enter = nn.Linear(6, config.size)
        hidden = config.hidden or 4 * config.size
        self.up = nn.ModuleList(nn.Linear(config.size, hidden) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(hidden, config.size) for _ in range(2))
        self.stem = nn.Linear(config.size, config.stem)
        self.first = nn.Linear(config.stages[0], config.stages[0])
        if config.stem != config.stages[0]:
            self.match = nn.Linear(config.stem, config.stages[0])
        self.second = nn.Linear(config.stages[0], config.stages[1])
        self.scaled = nn.Linear(config.stages[1], config.scale_size)
        self.scale = config.scale_size**-0.5
        self.fixed = nn.Parameter(torch.randn(config.twin))
        self.inside = nn.Linear(config.scale_size, config.inner.width)
        self.leave = nn.Linear(config.inner.width, 3)

    def forward(self, x):
        x = self.enter(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = down(torch.tanh(up(x)))
        x = torch.tanh(self.stem(x))
        x = torch.tanh(self.second(x + self.first(x)))
        x = torch.tanh(self.scaled(x)) * self.scale
        return self.leave(torch.tanh(self.inside(x))) + self.fixed[3]


class Wrapper(nn.Module):
    """A net of the user's own around one that keeps a config."""

    def __init__(self):
        super().__init__()
        self.body = Net(Config())
        self.head = nn.Linear(3, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.head(self.body(x))))


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nestling.Supernet(Net(Config()), X, step=8)


def again(subnet):
    """Build the class again from the subnet's config, with the subnet's weights."""
    twin = type(subnet)(copy.deepcopy(subnet.config))
    twin.load_state_dict(subnet.state_dict())
    return twin.eval()


def named(net, name, index=None):
    return next((s for s in net.space.settings if (s.name, s.index) == (name, index)), None)


def test_every_number_is_found_by_what_it_changes(net):
    assert named(net, "config.size").extent == Along("enter", 32)
    widths = {
        ("config.size", None): 32,
        ("config.hidden", None): 128,  # it was None
        ("config.stem", None): 24,
        ("config.stages", 0): 24,
        ("config.stages", 1): 40,
        ("config.inner.width", None): 16,
    }
    found = {(s.name, s.index): s.extent.size for s in net.space.settings}
    assert found == widths  # not `twin`, which no axis cuts, nor `scale_size`, which also scales
    assert any("config.scale_size: left as in the full net" in note for note in net.space.notes)


def test_the_config_is_true_and_builds_the_subnet(net):
    spec = net.space.config_spec(net.space.spec(width=0.5))
    subnet = nestling.pack(net.subnet(spec)).eval()
    config = subnet.config
    assert config.size == subnet.enter.out_features == 16
    assert config.hidden == subnet.up[0].out_features == subnet.up[1].out_features == 64
    assert config.stem == config.stages[0] == subnet.first.in_features < 24
    assert config.stages[1] == subnet.second.out_features < 40
    assert config.inner.width == subnet.inside.out_features == 8
    assert config.scale_size == 48 == subnet.scaled.out_features
    assert config.twin == 32
    assert torch.equal(again(subnet)(X), subnet(X))
    assert net.space.config_conflicts(spec) == []


def test_the_users_config_and_those_of_other_subnets_stay(net):
    model = Net(Config())
    before = copy.deepcopy(model.config)
    own = nestling.Supernet(model, X, step=8)
    small, full = own.subnet(own.space.spec(width=0.5)), own.subnet(own.space.full)
    assert model.config == own.model.config == before
    assert small.config is not full.config
    assert (small.config.size, full.config.size) == (16, 32)


def test_numbers_that_cannot_be_true_stay_whole(net):
    one, other = (name for name in net.space.axes if name.startswith("up."))
    spec = net.space.spec({one: 64, other: 32})
    subnet = net.subnet(spec)
    assert subnet.config.hidden is None
    (line,) = net.space.config_conflicts(spec)
    assert line.startswith("config.hidden: ")
    assert f"{one!r} keeps 64" in line
    assert f"{other!r} keeps 32" in line
    with pytest.raises(RuntimeError, match="size mismatch"):
        again(nestling.pack(subnet))
    assert net.space.config_spec(spec) == net.space.spec({one: 32, other: 32})


def test_an_axis_for_which_no_number_stands(net):
    (name,) = (axis for axis in net.space.axes if axis.startswith("scaled"))
    spec = net.space.spec({name: 24})
    assert net.space.config_conflicts(spec) == [
        f"no number of a config stands for {name!r}, of which 24 are kept"
    ]
    assert net.space.config_spec(spec) == net.space.full


def test_a_spec_is_true_exactly_where_the_class_builds_its_shapes(net):
    generator = torch.Generator().manual_seed(1)
    seen = set()
    for trial in range(40):
        counts = {
            name: axis.counts[int(torch.randint(len(axis.counts), (), generator=generator))]
            for name, axis in net.space.axes.items()
        }
        spec = net.space.spec(counts)
        spec = net.space.config_spec(spec) if trial % 2 else spec
        subnet = net.subnet(spec)
        builds = shapes_of(built(Net, subnet.config)) == shapes_of(subnet)
        assert builds == (not net.space.config_conflicts(spec))
        seen.add(builds)
    assert seen == {True, False}


def test_the_config_of_a_part():
    torch.manual_seed(0)
    net = nestling.Supernet(Wrapper(), X, step=8)
    assert {setting.module for setting in net.space.settings} == {"body"}
    spec = net.space.config_spec(net.space.spec(width=0.5))
    subnet = nestling.pack(net.subnet(spec)).eval()
    assert subnet.body.config.size == subnet.body.enter.out_features == 16
    assert torch.equal(again(subnet.body)(X), subnet.body(X))


def test_a_config_that_does_not_build_the_model_is_left_alone():
    class Changed(Net):
        def __init__(self, config):
            super().__init__(config)
            self.more = nn.Linear(3, 3)

        def forward(self, x):
            return self.more(super().forward(x))

    model = Changed(Config())
    model.more = nn.Linear(3, 5)
    assert not nestling.Supernet(model, X, step=8).space.settings

    class Other(Net):
        def __init__(self, size):
            super().__init__(Config(size=size))

    assert not nestling.Supernet(Other(32), X, step=8).space.settings


def test_settings_survive_json(net):
    assert net.space.settings
    again = space_from_json(space_to_json(net.space))
    assert tuple(again.settings) == tuple(net.space.settings)
    rows = space_to_json(net.space)
    for bad in ("size", "config.__class__", "config._hidden", "a.b.c.d.e.f", "config.a-b"):
        rows["settings"][0][1] = bad
        with pytest.raises(ValueError, match="not the name of a number of a config"):
            space_from_json(rows)


def test_a_file_restores_the_settings(net, tmp_path):
    menu = nestling.make_menu(net, [net.space.spec(width=0.5)], measure=False)
    path = menu.save(tmp_path / "net.nest")
    loaded = nestling.load(path, model=Net(Config()))
    small = loaded.subnet(menu.entries[-1].name)
    assert small.config == net.subnet(menu.entries[-1].spec).config
    other = Net(Config())
    other.config.stages = [24, 41]
    with pytest.raises(nestling.FileError, match=r"config\.stages"):
        nestling.load(path, model=other)


def test_ties_by_pattern():
    torch.manual_seed(0)
    net = nestling.Supernet(Net(Config()), X, step=8, tie=["up.*"])
    assert sum(name.startswith("up.") for name in net.space.axes) == 1
    with pytest.raises(SpecError, match="at least two axes"):
        nestling.Supernet(Net(Config()), X, step=8, tie=["second*"])


# -- settings as data -----------------------------------------------------------------------------

AXES = {
    "e": Axis("e", 16, "embedding", (4, 8, 12, 16)),
    "h": Axis("h", 4, "heads", (1, 2, 3, 4)),
    "s": Axis("s", 4, "head_size", (2, 4)),
    "x": Axis("x", 8, "neurons", (4, 8)),
}
E, H, S = Along("e", 16), Along("h", 4), Along("s", 4)
AGREE = ((E, Product((H, S))),)
SETTINGS = [
    Setting("", "config.size", None, E, AGREE),
    Setting("", "config.heads", None, H, AGREE),
]


def test_agreeing_is_what_exhaustion_finds():
    expected = {
        (e, h, s)
        for e in AXES["e"].counts
        for h in AXES["h"].counts
        for s in AXES["s"].counts
        if e == h * s
    }
    found = [(way["e"], way["h"], way["s"]) for way in agreeing(AXES, AGREE, {"e", "h", "s"})]
    assert len(found) == len(expected)
    assert set(found) == expected


def test_the_nearest_counts_are_within_where_they_can_be():
    near = fitted(AXES, SETTINGS, {"e": 12, "h": 3, "s": 4, "x": 8})
    assert near == {"e": 12, "h": 3, "s": 4, "x": 8}
    near = fitted(AXES, SETTINGS, {"e": 12, "h": 2, "s": 4, "x": 4})
    assert near == {"e": 8, "h": 2, "s": 4, "x": 8}  # nothing stands for x
    near = fitted(AXES, SETTINGS, {"e": 4, "h": 1, "s": 2})
    assert near == {"e": 4, "h": 1, "s": 4, "x": 8}  # beyond: 1 x 2 is no size of e


def test_too_many_ways_are_bounded(monkeypatch):
    monkeypatch.setattr("nestling.setting.MOST_STEPS", MOST_STEPS // 8)
    axes = {f"a{n}": Axis(f"a{n}", 16, "neurons", tuple(range(1, 17))) for n in range(30)}
    total = Concat(tuple(Along(name, 16) for name in axes))
    settings = [Setting("", "config.total", None, total, ((total, Fixed(480)),))]
    full = dict.fromkeys(axes, 16)
    assert list(agreeing(axes, settings[0].agree, set(axes))) == []  # 16 ** 30 were to be tried
    assert fitted(axes, settings, dict.fromkeys(axes, 8)) == full
    # Sums of which very many agree: those near to the wanted counts are found.
    parts = [Concat(tuple(Along(f"a{n}", 16) for n in half)) for half in (range(15), range(15, 30))]
    settings = [Setting("", "config.total", None, parts[0], (tuple(parts),))]
    wanted = dict.fromkeys(axes, 8)
    assert fitted(axes, settings, wanted) == wanted
    # Thousands of axes are no deeper than one.
    axes = {f"a{n}": Axis(f"a{n}", 2, "neurons", (1, 2)) for n in range(3000)}
    total = Concat(tuple(Along(name, 2) for name in axes))
    way = next(agreeing(axes, ((total, total),), set(axes)))
    assert len(way) == 3000 < MOST_STEPS // 8


def test_a_header_whose_full_net_disagrees_is_refused(net):
    value = copy.deepcopy(space_to_json(net.space))
    row = next(row for row in value["settings"] if row[1] == "config.size")
    row[4].append([["axis", "enter", 32], 31])
    with pytest.raises(ValueError, match=r"'config.size' would have to be 32 and 31 at once"):
        space_from_json(value)


def test_conflicts_name_the_numbers_and_the_counts():
    (line,) = conflicts(AXES, SETTINGS, {"e": 8, "h": 4, "s": 4, "x": 8})
    assert line == "config.size, config.heads: 'e' keeps 8, but 'h' x 's' keeps 16"
    assert shown(Product((H, Concat((S, Fixed(2)))))) == "'h' x ('s' + 2)"


def test_what_is_a_config():
    assert is_config(Config())
    assert not any(map(is_config, (nn.Linear(1, 1), Config, len, 3, {"size": 3}, torch.ones(1))))
    module = Net(Config())
    holder, name = holder_of(module, "config.inner.width")
    assert (holder, name) == (module.config.inner, "width")
    with pytest.raises(AttributeError, match="holds no config named 'enter'"):
        holder_of(module, "enter.weight")
    names = [(n.name, n.index) for n in numbers_in(module.config)]
    assert names == [
        ("config.size", None),
        ("config.stem", None),
        ("config.stages", 0),
        ("config.stages", 1),
        ("config.scale_size", None),
        ("config.twin", None),
        ("config.inner.width", None),
    ]


class Tabled:
    """Copied as `copyreg` says."""

    def __init__(self):
        self.size = 3


class Reduced(Tabled):
    """One object for the whole program, whatever copies it."""

    def __reduce__(self):
        return (_reduced, ())


class Single(Tabled):
    """One object for the whole program, whoever makes it."""

    only = None

    def __new__(cls):
        cls.only = object.__new__(cls) if cls.only is None else cls.only
        return cls.only


def _reduced():
    return REDUCED


REDUCED = Reduced()


def test_what_says_how_it_is_copied_is_no_config(monkeypatch):
    assert is_config(Tabled())
    assert is_config(SimpleNamespace(size=3))  # of the built-in ways, these make new objects
    assert is_config(type("Table", (OrderedDict,), {})())
    own = Tabled()
    own.__deepcopy__ = lambda memo: own
    monkeypatch.setitem(copyreg.dispatch_table, Tabled, lambda each: (Tabled, ()))
    shared = (logging.getLogger("x"), REDUCED, Tabled(), own, functools.partial(len))
    assert not any(map(is_config, shared))
    monkeypatch.delitem(copyreg.dispatch_table, Tabled)
    assert not is_config(own)


class Reader(nn.Module):
    """Reads a size from what it was given, which all copies of it share."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.one, self.two, self.out = nn.Linear(6, 20), nn.Linear(20, 24), nn.Linear(24, 3)

    def forward(self, x):
        hidden = torch.tanh(self.one(x)).view(-1, self.config.size)
        return self.out(torch.tanh(self.two(hidden)))

    @classmethod
    def make(cls, config):
        config.size, config.next = 20, 24
        return cls(config)


@pytest.mark.parametrize("config", [REDUCED, Single()], ids=["reduce", "new"])
def test_what_all_copies_share_is_never_written(config):
    model = Reader.make(config)
    writes = []
    type(config).__setattr__ = lambda each, key, value: writes.append((key, value))
    try:
        net = nestling.Supernet(model, X, step=4)
        for width in (0.25, 0.5, 1.0):
            net.subnet(net.space.spec(width=width))(X)
    finally:
        del type(config).__setattr__
    assert (writes, config.size) == ([], 20)


def test_a_logger_keeps_its_level():
    log = logging.getLogger("mine")
    log.setLevel(20)
    model = Reader.make(Config())
    model.log = log
    net = nestling.Supernet(model, X, step=4)
    net.subnet(net.space.spec(width=0.5))(X)
    assert net.model.log is log
    assert log.level == 20


def test_building_leaves_the_random_state_alone(net):
    before = torch.random.get_rng_state()
    nestling.Supernet(Net(Config()), X, step=8)
    # The model itself draws its weights; from the same state, they are the same.
    torch.random.set_rng_state(before)
    expected = F.linear(X, Net(Config()).enter.weight)
    torch.random.set_rng_state(before)
    built(Net, Config())
    assert torch.equal(F.linear(X, Net(Config()).enter.weight), expected)
