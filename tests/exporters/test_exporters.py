"""Every export target: what is written is what the subnet computes, and nothing else stays."""

import hashlib
import json
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling import DataError, FileError, ModelError, SpecError, exporters
from nestling.exporters import safetensors as weights
from nestling.exporters.certificate import tolerance_of
from nestling.exporting import certificate_of


@pytest.fixture(scope="module")
def menu(small):
    net = small.supernet()
    for _ in range(3):  # the norms have seen something
        net.subnet(net.space.full).train()(small.pictures(16)[0])
    specs = {"half": net.space.spec(width=0.5)}
    return nestling.make_menu(net, specs, small.batches(), calibrate=small.batches(), measure=False)


@pytest.fixture(scope="module")
def written(menu, small, tmp_path_factory):
    """Every target once: path and certificate."""
    folder = tmp_path_factory.mktemp("exports")
    found = {}
    for name in exporters.names():
        path = folder / f"half{exporters.find(name).suffix}"
        found[name] = (
            path,
            nestling.export(
                nestling.LoadedModel(menu), path, to=name, subnet="half", data=small.batches()
            ),
        )
    return found


def opened(name, path):
    """Return what runs a file with the target's own software alone."""
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    if name == "openvino":
        import openvino

        model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: torch.from_numpy(model({"x": x.numpy()})[0])
    if name == "torch-export":
        return torch.export.load(path).module()
    from safetensors.torch import load_file

    return lambda x: by_hand(load_file(path), x)


def by_hand(w, x):
    """The net of `small.py`, from its weights alone."""
    for number in (1, 2):
        x = F.conv2d(x, w[f"conv{number}.weight"], padding=1)
        x = F.batch_norm(
            x,
            w[f"norm{number}.running_mean"],
            w[f"norm{number}.running_var"],
            w[f"norm{number}.weight"],
            w[f"norm{number}.bias"],
        ).relu()
    return F.linear(x.mean((2, 3)), w["head.weight"], w["head.bias"])


@pytest.mark.parametrize("name", exporters.names())
def test_the_file_computes_what_the_subnet_computes(written, menu, name):
    path, certificate = written[name]
    run, subnet = opened(name, path), menu.module("half")
    for batch in (1, 5):
        images = torch.randn(batch, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(run(images), subnet(images), atol=1e-5, rtol=1e-5)
    assert certificate.relative < 1e-5


@pytest.mark.parametrize("name", exporters.names())
def test_the_certificate_says_what_was_seen(written, menu, name):
    path, certificate = written[name]
    kept = json.loads(certificate_of(path).read_text())
    assert kept == json.loads(json.dumps(certificate.to_json()))
    assert kept["format"] == "nestling-certificate"
    assert kept["target"] == name
    assert kept["subnet"]["spec"] == dict(menu["half"].spec)
    assert kept["subnet"]["id"] == menu.profile.file_id
    assert kept["subnet"]["order"] == menu.order
    assert [each["batch"] for each in kept["differences"]] == [1, 2, 3, 7, 16]
    assert kept["largest_absolute_difference"] == max(d["absolute"] for d in kept["differences"])
    assert kept["accuracy"]["subnet"] == menu["half"].accuracy
    assert kept["accuracy"]["export"] == menu["half"].accuracy
    assert kept["versions"]["torch"] == torch.__version__
    assert path.name in kept["files"]
    for file, facts in kept["files"].items():
        content = (path.parent / file).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_onnx_has_readable_names(written):
    import onnx

    graph = onnx.load(written["onnx"][0]).graph
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert (graph.input[0].name, graph.output[0].name) == ("x", "output")
    assert dims == ["batch", 1, 8, 8]
    assert {"conv1.weight", "conv2.weight", "head.weight"} <= {i.name for i in graph.initializer}


def test_no_pickle_in_a_traced_program(written):
    with zipfile.ZipFile(written["torch-export"][0]) as archive:
        for name in archive.namelist():
            assert not archive.read(name).startswith(b"\x80"), name  # how every pickle begins
            assert b"PK\x03\x04" not in archive.read(name)[:4], name  # nor an archive with one


def test_weights_have_the_sizes_of_the_subnet(written, menu):
    path, _ = written["safetensors"]
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert about["shapes"]["conv1.weight"][0] == menu["half"].spec["conv1"]
    assert about["class"].endswith("ConvNet")


class Named(nn.Module):
    """Two inputs, one by keyword alone; named outputs, one of them as an input is."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, left, *, right):
        return {"logits": self.head(left) + right, "left": left * 2}


def test_a_module_with_several_inputs_and_outputs(tmp_path):
    inputs = {"left": torch.randn(2, 4), "right": torch.randn(2, 3)}
    model = Named().eval()
    found = nestling.export(model, tmp_path / "named", to="onnx", inputs=inputs)
    assert found.outputs == ("logits", "left_output")
    assert [each["name"] for each in found.inputs] == ["left", "right"]
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "named.onnx")
    left, right = torch.randn(6, 4), torch.randn(6, 3)
    logits, _ = session.run(None, {"left": left.numpy(), "right": right.numpy()})
    wanted = model(left, right=right)["logits"].detach().numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-5)


# -- what is refused ------------------------------------------------------------------------------


def test_a_file_that_differs_is_removed(menu, tmp_path, monkeypatch):
    write = weights.write

    def drifted(subject, path):
        with torch.no_grad():
            subject.module.head.bias.add_(0.01)
            write(subject, path)
            subject.module.head.bias.sub_(0.01)

    found = exporters.find("safetensors")
    monkeypatch.setattr(exporters, "find", lambda name: exporters.Exporter(
        name, drifted, found.reopen, found.suffix, "", ()
    ))  # fmt: skip
    with pytest.raises(ModelError, match=r"differs by .*it was removed"):
        nestling.export(menu, tmp_path / "a.safetensors", to="safetensors")
    assert list(tmp_path.iterdir()) == []
    nestling.export(menu, tmp_path / "a.safetensors", to="safetensors", tolerance=1.0)
    assert (tmp_path / "a.safetensors").exists()


def test_a_target_that_fails_leaves_nothing(menu, tmp_path, monkeypatch):
    found = exporters.find("safetensors")

    def broken(path, subject):
        raise RuntimeError("cannot open this")

    monkeypatch.setattr(exporters, "find", lambda name: exporters.Exporter(
        name, found.write, broken, found.suffix, "", ()
    ))  # fmt: skip
    with pytest.raises(ModelError, match="cannot be opened: RuntimeError: cannot open this"):
        nestling.export(menu, tmp_path / "a.safetensors", to="safetensors")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(menu, tmp_path):
    path = tmp_path / "a.safetensors"
    for taken in (path, certificate_of(path), path.with_name("a.safetensors.json")):
        taken.write_text("mine")
        with pytest.raises(FileError, match=f"never overwrites anything, and '{taken}' exists"):
            nestling.export(menu, path, to="safetensors")
        assert [file.name for file in tmp_path.iterdir()] == [taken.name]
        assert taken.read_text() == "mine"
        taken.unlink()


def test_bad_requests(menu, tmp_path):
    def export(model, path="a.pt2", to="torch-export", **options):
        return nestling.export(model, tmp_path / path, to=to, **options)

    with pytest.raises(ModelError, match="unknown export target 'onx'; did you mean 'onnx'"):
        export(menu, to="onx")
    with pytest.raises(SpecError, match="no entry 'hal'; did you mean 'half'"):
        export(menu, subnet="hal")
    with pytest.raises(FileError, match=r"ends in \.pt2, but the path is .*a\.onnx"):
        export(menu, "a.onnx")
    with pytest.raises(FileError, match=r"No such file.*choose a folder that exists"):
        export(menu, "no/such/a.pt2")
    with pytest.raises(ModelError, match=r"export net\.subnet\(spec\)"):
        export(menu.net)
    with pytest.raises(ModelError, match="pass example inputs"):
        export(nn.Linear(3, 2))
    with pytest.raises(ModelError, match="names an entry of a menu"):
        export(nn.Linear(3, 2), subnet="half", inputs=torch.zeros(1, 3))
    with pytest.raises(SpecError, match=r"call net\.recalibrate"):
        export(menu.net.subnet(menu["half"].spec), inputs=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ModelError, match=r"fails on inputs like .*mat1"):
        export(nn.Linear(3, 2), inputs=torch.zeros(1, 4))
    with pytest.raises(ModelError, match="cannot trace Stubborn"):
        export(Stubborn(), inputs=torch.zeros(2, 4))
    assert list(tmp_path.iterdir()) == []


class Stubborn(nn.Module):
    """Takes two examples and no other number."""

    def forward(self, x):
        return x.reshape(2, 4) * 2


def test_a_folder_that_cannot_be_written_to(menu, monkeypatch, tmp_path):
    with pytest.raises(FileError, match="choose a folder that exists and that you may write to"):
        nestling.export(menu, "/proc/a.safetensors", to="safetensors")


def test_a_missing_package_is_named(menu, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match=r"pip install 'nestling\[openvino\]'"):
        nestling.export(menu, tmp_path / "a.xml", to="openvino")


def test_data_that_can_be_read_once_is_refused_before_the_work(menu, small, tmp_path):
    once = (batch for batch in small.batches(8))
    with pytest.raises(DataError):
        nestling.export(menu, tmp_path / "m.onnx", subnet="half", data=once)
    assert list(tmp_path.iterdir()) == []


def test_inputs_in_few_bits_may_take_another_step(small):
    net = nestling.Supernet(
        small.seeded(small.ConvNet), small.pictures(2)[0], bits=nestling.Bits((4, 8), inputs=8)
    )
    rounded = net.subnet({name: 8 for name, axis in net.space.axes.items() if axis.kind == "bits"})
    assert tolerance_of(nestling.pack(rounded)) == 2e-2
    assert tolerance_of(nestling.pack(net.subnet(net.space.full))) == 1e-4
