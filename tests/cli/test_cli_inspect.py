import json


def test_a_builder(nestling):
    said = nestling("inspect", "digits_resnet", "--arg", "width=8")
    assert said.code == 0
    assert "elastic axes" in said.out
    assert "size of the model's output" in said.out
    assert "proven" in said.err


def test_json(nestling):
    said = nestling("inspect", "digits_resnet", "--arg", "width=16", "--step", 4, "--json")
    found = json.loads(said.out)
    assert found["axes"]["layer1"] == {"size": 16, "kind": "channels", "counts": [4, 8, 12, 16]}
    assert found["macs"] > 0
    assert {row["parameter"] for row in found["frozen"]} == {"linear.weight", "linear.bias"}


def test_ones_own_model(nestling, own_file):
    said = nestling("inspect", f"{own_file}:make_model", "--input", "2,1,8,8", "--arg", "width=24")
    assert said.code == 0
    assert "8 to 24" in said.out


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
