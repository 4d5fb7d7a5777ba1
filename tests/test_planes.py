"""Bit planes in a file: some entries are read without the finer bits of the others."""

import json

import pytest
import torch
from small import ConvNet, seeded, supernet

import nestling
from nestling import container
from nestling.bits import Bits
from nestling.coding import coded_layers
from nestling.errors import FileError, SpecError


def images(count=4):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))


COUNTS = (8, 5, 3, 2)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    net = supernet(seeded(lambda: ConvNet(16)), bits=Bits(COUNTS, first=COUNTS, last=COUNTS))
    own = [n for n in net.space.axes if n.endswith(".bits")]
    specs = {f"b{count}": dict.fromkeys(own, count) for count in COUNTS}
    specs["mixed"] = {**specs["b2"], own[0]: 5}
    menu = nestling.make_menu(net, specs, calibrate=[images(8)], measure=False)
    kept = menu.only(*specs)
    return kept.save(tmp_path_factory.mktemp("some") / "all.nest", integers=True)


def load(path, **options):
    return nestling.Menu.load(path, seeded(lambda: ConvNet(16)), **options)


@pytest.mark.parametrize("name", ["b8", "b5", "b3", "b2", "mixed"])
def test_it_is_the_whole_files_subnet(file, name):
    whole, alone = load(file), load(file, only=[name])
    assert [entry.name for entry in alone] == [name]
    assert alone[name].bytes == whole[name].bytes
    assert alone[name].spec == whole[name].spec
    one, other = whole.module(name), alone.module(name)
    assert torch.equal(one(images()), other(images()))
    for path, layer in coded_layers(one):
        assert torch.equal(layer.weight, other.get_submodule(path).weight)


@pytest.mark.parametrize("name", ["b5", "b2", "mixed"])
def test_other_planes_are_neither_read_nor_held(file, tmp_path, name, monkeypatch):
    header, _ = container.read(file)
    spec = next(row["spec"] for row in header["menu"] if row["name"] == name)
    content, slots = bytearray(file.read_bytes()), places_of(file)
    needed = 0
    for tensor, (begin, end) in slots.items():
        kind, place, weight = [*tensor.split("/", 2), ""][:3]
        bits = spec.get(weight.replace(".weight", ".bits"), 32)
        if (kind == "planes" and int(place) > bits) or (kind == "entries" and place != name):
            content[begin:end] = bytes(255 - byte for byte in content[begin:end])
        else:
            needed += end - begin
    damaged = tmp_path / "damaged.nest"
    damaged.write_bytes(content)
    read, real = [], container._bytes_of
    monkeypatch.setattr(container, "_bytes_of", lambda t: read.append(t.nbytes) or real(t))
    alone = load(damaged, only=name)
    assert sum(read) == needed
    wanted = load(file, only=[name]).module(name)
    assert torch.equal(alone.module(name)(images()), wanted(images()))
    with pytest.raises(FileError, match="altered"):
        load(damaged)
    with pytest.raises(FileError, match="altered"):
        load(damaged, only=["b8"])


@pytest.mark.parametrize("part", ["planes/2/", "weights/", "entries/b3/"])
def test_what_is_read_is_not_believed(file, tmp_path, part):
    slots = places_of(file)
    begin = next(slots[tensor][0] for tensor in slots if tensor.startswith(part))
    content = bytearray(file.read_bytes())
    content[begin] ^= 1
    (tmp_path / "damaged.nest").write_bytes(content)
    with pytest.raises(FileError, match="altered"):
        load(tmp_path / "damaged.nest", only=["b3", "b2"])


def test_a_file_without_digests_is_read_whole(file, tmp_path):
    header, tensors = container.read(file)
    del header["digests"]
    container.write(tmp_path / "older.nest", header, tensors)
    older, alone = (
        load(path, only=["b3"]).module("b3") for path in (tmp_path / "older.nest", file)
    )
    assert torch.equal(older(images()), alone(images()))
    floats = load(file).save(tmp_path / "floats.nest")
    few = load(floats, only=["b3"])
    assert torch.equal(few.module("b3")(images()), alone(images()))


def test_it_saves_and_runs_as_any_menu(file, tmp_path):
    alone = load(file, only=["b3", "b2"])
    small = alone.save(tmp_path / "small.nest", integers=True)
    assert small.stat().st_size < file.stat().st_size
    assert load(small).identity() == alone.identity()
    model = nestling.load(file, seeded(lambda: ConvNet(16)), only=["b3", "b2"])
    assert torch.equal(model(images(), subnet="b2"), alone.module("b2")(images()))


def test_a_file_that_is_replaced_between_header_and_tensors_is_refused(file, tmp_path, monkeypatch):
    path = load(file).save(tmp_path / "served.nest")
    header, tensors = container.read(path)
    others = {name: tensor + 1 for name, tensor in tensors.items()}
    read_header = container.read_header

    def replaced(path):
        found = read_header(path)
        container.write(path, {**header, "id": "f" * len(header["id"])}, others)
        return found

    monkeypatch.setattr(container, "read_header", replaced)
    with pytest.raises(FileError, match="another file took its place"):
        load(path, only=["b3"])


@pytest.mark.parametrize(
    ("only", "why"), [(["b9"], "no entry 'b9'"), ([], "at least one"), ([7], "no entry 7")]
)
def test_mistakes(file, only, why):
    with pytest.raises(SpecError, match=why):
        load(file, only=only)


def places_of(path):
    """Where each tensor of a file lies, read from the format's own table."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8:start])
    del table["__metadata__"]
    return {
        name: tuple(start + place for place in row["data_offsets"]) for name, row in table.items()
    }
