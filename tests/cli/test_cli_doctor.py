import json


def test_json(nestling, tmp_path):
    found = json.loads(nestling("doctor", "--json", "--data-dir", tmp_path).out)
    assert found["machine"]["torch"] == found["packages"]["torch"]
    assert found["data"]["digits"].startswith("found: 1437")
    assert any("cifar10" in line and "https://" in line for line in found["missing"])


def test_text_fits_a_terminal(nestling, tmp_path):
    said = nestling("doctor", "--data-dir", tmp_path)
    assert said.code == 0
    assert "AMX" in said.out or "cpu_capability" in said.out
    assert "  cifar10         not there" in said.out
    lines = said.out.partition("missing")[0].splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
