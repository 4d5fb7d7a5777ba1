import json

TWO = """
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.free, self.two = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(16, 4)
        self.last = nn.Linear(8, 4)

    def forward(self, x, mask):
        hidden = self.one(x) * mask.mean()
        return {"hidden": hidden, "logits": self.two(hidden) + self.last(self.free(x))}
"""


def test_a_builder(nestling):
    said = nestling("inspect", "digits_resnet", "--arg", "width=8")
    assert said.code == 0
    assert "elastic axes" in said.out
    assert "layer1.0-1.conv1 (2 axes)" in said.out
    assert "2 of the outputs" in said.out
    assert "proven" in said.err


def test_all_axes_one_by_one(nestling):
    said = nestling("inspect", "digits_resnet", "--arg", "width=8", "--all")
    assert "(2 axes)" not in said.out
    assert "  layer1.0.conv1 " in said.out
    assert "  layer1.1.conv1 " in said.out


def test_json(nestling):
    said = nestling("inspect", "digits_resnet", "--arg", "width=16", "--step", 4, "--json")
    found = json.loads(said.out)
    assert set(found) == {
        *("model", "macs", "params", "bytes", "elastic_share", "narrowest_macs"),
        *("axes", "frozen", "causes", "notes"),
    }
    layer = found["axes"]["layer1"]
    assert set(layer) == {"name", "kind", "size", "counts", "outer", "tensors", "blocks", "half"}
    assert (layer["size"], layer["kind"], layer["counts"]) == (16, "channels", [4, 8, 12, 16])
    assert {row["cut"] for row in layer["tensors"]} == {"view"}
    assert set(layer["tensors"][0]) == {"tensor", "dim", "size", "parameter", "cut"}
    assert {row["dim"] for row in layer["tensors"] if row["tensor"] == "conv1.weight"} == {0}
    assert found["axes"]["layer1.depth"]["blocks"] == ["layer1.1"]
    assert found["macs"] > found["narrowest_macs"] > 0
    assert {row["parameter"] for row in found["frozen"]} == {"linear.weight", "linear.bias"}
    (cause,) = found["causes"]
    assert set(cause) == {
        *("key", "reason", "op", "module", "params", "lost"),
        *("dimensions", "expected", "advice"),
    }
    assert (cause["key"], cause["lost"], cause["params"]) == ("output", ["linear.bias"], 10)


def test_one_axis(nestling):
    said = nestling("inspect", "digits_resnet", "--arg", "width=8", "--axis", "layer2")
    assert said.out.startswith("layer2: channels, 16 in the full net; a subnet keeps 8, 16\n")
    assert "  layer2.0.conv2.weight[0]" in said.out
    assert "at 8 the net saves" in said.out
    facts = nestling("inspect", "digits_resnet", "--arg", "width=8", "--axis", "layer2", "--json")
    assert json.loads(facts.out)["half"]["count"] == 8
    wrong = nestling("inspect", "digits_resnet", "--arg", "width=8", "--axis", "layer22")
    assert wrong.failed("'layer22'", "did you mean 'layer2'")


def test_freeze_and_tie(nestling):
    options = ("inspect", "digits_resnet", "--arg", "width=8", "--json")
    said = nestling(*options, "--freeze", "layer3*", "--tie", "layer1.0.conv1, layer1.1.conv1")
    found = json.loads(said.out)
    assert not [name for name in found["axes"] if name.startswith("layer3")]
    assert "layer1.1.conv1" not in found["axes"]
    tensors = {row["tensor"] for row in found["axes"]["layer1.0.conv1"]["tensors"]}
    assert {"layer1.0.conv1.weight", "layer1.1.conv1.weight"} < tensors
    assert "wish" in {cause["key"] for cause in found["causes"]}
    assert nestling(*options, "--tie", "layer1.0.conv1,layer9").failed("layer9")
    assert nestling(*options, "--freeze", "layer9").failed("layer9")


def test_outputs_and_keyword_inputs(nestling, tmp_path):
    path = tmp_path / "two.py"
    path.write_text(TWO)
    call = ("inspect", f"{path}:Two", "--input", "2,6", "--input", "mask=2,16", "--json")
    both = json.loads(nestling(*call).out)
    assert list(both["axes"]) == ["free"]
    said = nestling(*call, "--outputs", "logits")
    assert "2x6, mask=2x16" in said.err
    assert list(json.loads(said.out)["axes"]) == ["one", "free"]
    twice = nestling(*call, "--input", "mask=2,16")
    assert twice.failed("mask=2,16", "each name once")
    assert nestling(*call, "--input", "=2,16").failed("NAME=SHAPE")


def test_ones_own_model(nestling, own_file):
    said = nestling("inspect", f"{own_file}:make_model", "--input", "2,1,8,8", "--arg", "width=24")
    assert said.code == 0
    assert "24  8, 16, 24" in said.out


def test_a_model_of_ones_own_needs_an_input(nestling, own_file):
    assert nestling("inspect", f"{own_file}:make_model").failed("--input 1,3,224,224")


def test_wrong_targets(nestling, own_file, tmp_path):
    assert nestling("inspect", "resnet21").failed("'resnet21'", "did you mean 'resnet20'")
    assert nestling("inspect", own_file).failed("FILE.py:function")
    assert nestling("inspect", f"{own_file.parent}/mynet2.py:f").failed("did you mean 'mynet.py'")
    assert nestling("inspect", f"{own_file}:make_mode").failed("did you mean 'make_model'")
    assert nestling("inspect", f"{own_file}:make_nothing").failed("torch.nn.Module", "str")
    assert nestling("inspect", f"{own_file}:make_trouble").failed("out of luck", "line")
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    assert nestling("inspect", f"{broken}:f").failed("SyntaxError", "line 1")


def test_models_that_cannot_be(nestling, own_file):
    assert nestling("inspect", f"{own_file}:make_failing", "--input", "2,4").failed(
        "no forward today"
    )
    assert nestling("inspect", f"{own_file}:make_stiff", "--input", "2,4").failed("elastic")
    assert nestling("inspect", "digits_resnet", "--arg", "width=0").failed("width")
    assert nestling("inspect", "digits_resnet", "--arg", "widht=8").failed("did you mean 'width'")
    assert nestling("inspect", "digits_resnet", "--arg", "width").failed("KEY=VALUE")


def test_wrong_inputs(nestling):
    for shape in ("a,b", "0,1", "1,2:float31", "99999999999,9999"):
        assert nestling("inspect", "digits_resnet", "--input", shape).failed()
    assert nestling("inspect", "digits_resnet", "--input", "2,3,8,8").failed("3")
