import json

import pytest

from nestling.costs.latency import Latency
from nestling.errors import FileError
from nestling.profile import Key, Profile
from nestling.upkeep import Upkeep

KEY = Key("some processor", "onnxruntime", threads=2, batch=1, dtype="float32")
FULL = Upkeep(
    bytes=12_345,
    ready_seconds=0.5,
    switch_us=1.5,
    energy="rapl: package-0",
    joules={"full": 0.25},
    minutes=10.0,
    drift=-0.01,
    left_out={"small": "it fails"},
)


def test_a_profile_keeps_it(tmp_path):
    profile = Profile("abc").with_table(KEY, {"full": Latency(2.0, 1.9, 2.1, 40)}, FULL)
    profile.save(tmp_path / "a")
    assert Profile.load(tmp_path / "a", "abc") == profile
    later = profile.with_table(KEY, {"full": Latency(1.0, 1.0, 1.0, 40)})
    assert later.upkeeps == {}  # figures of another run are not kept beside new ones
    assert Upkeep().energy == "not available here"


def test_a_profile_of_an_earlier_release_is_read(tmp_path):
    profile = Profile("abc").with_table(KEY, {"full": Latency(2.0, 1.9, 2.1, 40)})
    profile.save(tmp_path / "a")
    assert "upkeep" not in (tmp_path / "a").read_text()
    assert Profile.load(tmp_path / "a", "abc") == profile


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(upkeep=3),
        lambda row: row["upkeep"].pop("bytes"),
        lambda row: row["upkeep"].update(more=1),
        lambda row: row["upkeep"].update(bytes=-1),
        lambda row: row["upkeep"].update(switch_us="1"),
        lambda row: row["upkeep"].update(drift=float("inf")),
        lambda row: row["upkeep"].update(joules=[1]),
        lambda row: row["upkeep"].update(joules={"full": -1}),
        lambda row: row["upkeep"].update(joules={"full": 10**400}),
        lambda row: row["upkeep"].update(left_out={"full": 3}),
        lambda row: row["upkeep"].update(energy=None),
    ],
)
def test_damaged_ones(tmp_path, change):
    path = tmp_path / "a"
    Profile("abc").with_table(KEY, {"full": Latency(2.0, 1.9, 2.1, 40)}, FULL).save(path)
    content = json.loads(path.read_text())
    change(content["tables"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match="nestling profile"):
        Profile.load(path, "abc")
