import pytest

from nestling.errors import ModelError
from nestling.extras import absent, imported, versions


def test_what_is_missing_names_the_extra():
    with pytest.raises(ModelError) as caught:
        imported("no_such_package", "onnx", "the backend of a test")
    assert "the backend of a test needs no_such_package, which is not installed" in str(
        caught.value
    )
    assert "pip install 'nestling[onnx]'" in str(caught.value)
    assert imported("json", "onnx", "this").loads("[1]") == [1]


def test_what_cannot_be_loaded_says_why(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be loaded .*no_such_module_anywhere"):
        imported("halfway", "onnx", "this")


def test_absent_and_versions():
    assert absent(["json", "no_such_package", "torch"]) == ["no_such_package"]
    assert versions(["no_such_package"]) == {"no_such_package": "unknown"}
    assert versions(["numpy"])["numpy"][0].isdigit()
