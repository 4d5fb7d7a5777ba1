"""JSON comes back as it was written, or is refused; `test_container` has hostile headers."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling import strictjson
from nestling.errors import FileError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(JSON)
def test_json_round_trip(value):
    for indent in (None, 1):
        found = strictjson.parse(strictjson.dump(value, indent=indent))
        assert found == value
        assert repr(found) == repr(value)  # 1, 1.0 and True are equal


def test_brackets_in_strings_are_no_nesting():
    assert strictjson.parse(json.dumps(["[" * 1000, '\\"[' * 100])) == [
        "[" * 1000,
        '\\"[' * 100,
    ]


def test_scan_of_an_unended_string_is_linear():
    with pytest.raises(ValueError, match="not valid JSON"):
        strictjson.parse('"' + '\\"' * 2_000_000)


def test_json_files(tmp_path):
    path = tmp_path / "a.json"
    strictjson.write(path, {"é": [1, 0.5]})
    assert strictjson.read(path) == {"é": [1, 0.5]}
    with pytest.raises(FileError, match="finite"):
        strictjson.write(path, {"a": math.nan})
    assert strictjson.read(path) == {"é": [1, 0.5]}
    path.write_bytes(b'{"a": \xff}')
    with pytest.raises(FileError, match="not UTF-8 text at byte 6; bake it again"):
        strictjson.read(path, cure="bake it again")
    path.write_text('{"a": 1')
    with pytest.raises(FileError, match=r"not valid JSON.*; write it again"):
        strictjson.read(path)
