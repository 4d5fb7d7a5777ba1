import json
import math
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nestling import profile as profiles
from nestling.costs.latency import Latency, Ratio
from nestling.errors import BudgetError, FileError
from nestling.narrowing import Comparison, Narrowing
from nestling.profile import Key, Profile, beside, machine, this_key

KEY = Key("some processor", "eager", threads=2, batch=1, dtype="float32")
WIDE = Key("some processor", "onnxruntime", threads=4, batch=64, dtype="float32")
TABLE = {"small": Latency(2.0, 1.9, 2.1, 40), "full": Latency(8.25, 8.0, 8.5, 11)}


@pytest.fixture
def profile():
    return Profile("abc").with_table(KEY, TABLE).with_table(WIDE, {"full": TABLE["full"]})


@pytest.fixture
def path(tmp_path, profile):
    profile.save(tmp_path / "model.profile.json")
    return tmp_path / "model.profile.json"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_round_trip(path, profile):
    found = Profile.load(path, "abc")
    assert found == profile
    assert found.table(KEY) == TABLE
    assert found.machines[KEY] == machine()
    before = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == before


def test_an_empty_profile_is_saved_too(tmp_path):
    Profile("abc").save(tmp_path / "a")
    assert Profile.load(tmp_path / "a", "abc") == Profile("abc")


def test_with_table_replaces_and_leaves_the_old_one(profile):
    table = {"small": Latency(1.0, 1.0, 1.0, 11)}
    assert profile.with_table(KEY, table).table(KEY) == table
    assert profile.table(KEY) == TABLE


def test_later_changes_of_the_table_do_not_reach_it():
    table = dict(TABLE)
    profile = Profile("abc").with_table(KEY, table)
    table.clear()
    assert profile.table(KEY) == TABLE


def test_an_absent_key_says_what_is_there_and_what_to_run(profile):
    with pytest.raises(BudgetError) as caught:
        profile.table(Key("some processor", "eager", threads=1, batch=8, dtype="float32"))
    message = str(caught.value)
    assert "measured on this device" in message
    assert "some processor, eager, 1 thread(s), batch 8, float32" in message
    assert str(KEY) in message
    assert str(WIDE) in message
    assert "`nestling profile FILE --batch 8 --threads 1`" in message
    with pytest.raises(BudgetError, match="nothing yet"):
        Profile("abc").table(KEY)
    with pytest.raises(BudgetError, match="--backend onnxruntime"):
        Profile("abc").table(WIDE)


@pytest.mark.parametrize(
    "latency",
    [
        Latency(math.nan, 1.0, 2.0, 11),
        Latency(1.0, math.nan, 2.0, 11),
        Latency(1.0, 1.0, math.inf, 11),
        Latency(0.0, 0.0, 0.0, 11),
        Latency(-1.0, -2.0, 1.0, 11),
        Latency(1.0, 2.0, 3.0, 11),
        Latency(3.0, 1.0, 2.0, 11),
        Latency(1.0, 1.0, 1.0, 0),
    ],
    ids=str,
)
def test_impossible_figures_are_refused(latency):
    with pytest.raises(FileError, match="'small' must be positive, finite and in order"):
        Profile("abc").with_table(KEY, {"small": latency})


def test_an_empty_table_is_refused():
    with pytest.raises(FileError, match="must have an entry"):
        Profile("abc").with_table(KEY, {})


def test_another_models_figures_are_never_used(path):
    with pytest.raises(FileError, match="belong to another model") as caught:
        Profile.load(path, "xyz")
    assert "'abc'" in str(caught.value)
    assert "'xyz'" in str(caught.value)


def first(content):
    return content["tables"][0]


DAMAGE = {
    "other format": (lambda c: c.update(format="x"), "not a Nestling profile"),
    "version 2": (lambda c: c.update(version=2), "of version 2"),
    "version true": (lambda c: c.update(version=True), "of version True"),
    "no version": (lambda c: c.pop("version"), "of version None"),
    "no tables": (lambda c: c.pop("tables"), "tables must be of type list"),
    "table": (lambda c: c["tables"].append(3), "a table must be of type dict"),
    "no key": (lambda c: first(c).pop("key"), "a key must be of type dict"),
    "short key": (lambda c: first(c)["key"].pop("batch"), "a key must have"),
    "long key": (lambda c: first(c)["key"].update(x=1), "a key must have"),
    "threads": (
        lambda c: first(c)["key"].update(threads="2"),
        "threads of a key must be of type int",
    ),
    "batch": (lambda c: first(c)["key"].update(batch=True), "batch of a key must be of type int"),
    "twice": (lambda c: c["tables"].append(first(c)), "has two"),
    "no figures": (lambda c: first(c).update(milliseconds={}), "must have an entry"),
    "figures": (lambda c: first(c).update(milliseconds=[]), "milliseconds must be of type dict"),
    "zero": (lambda c: first(c)["milliseconds"]["small"].update(low=0), "positive"),
    "text": (lambda c: first(c)["milliseconds"]["small"].update(low="1"), "must be of type float"),
    "huge": (lambda c: first(c)["milliseconds"]["small"].update(high=10**400), "finite"),
    "NaN": (lambda c: first(c)["milliseconds"]["small"].update(low=math.nan), "finite"),
    "machine": (lambda c: first(c).update(machine={"a": 1}), "a fact must be of type str"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_profiles(path, case):
    change, word = DAMAGE[case]
    with pytest.raises(FileError) as caught:
        Profile.load(edit(path, change), "abc")
    message = str(caught.value)
    for part in (word, str(path), "`nestling profile`"):
        assert part in message


IDLE = Narrowing(
    (Comparison({"a": 33}, {"a": 40}, 0.1, Ratio(1.04, 1.02, 1.06, 40)),),
    (Comparison({"a": 33, "b": 4}, {"a": 40, "b": 4}, 0.05, Ratio(1.01, 0.99, 1.02, 40)),),
    open=2,
)


def test_narrowings_of_several_conditions(tmp_path, profile):
    before = Profile("abc").with_narrowing(KEY, Narrowing())
    found = before.with_narrowing(WIDE, IDLE).with_table(KEY, TABLE).with_narrowing(KEY, IDLE)
    assert list(found.narrowings) == [WIDE, KEY]  # the last one measured stands last
    assert found.tables[KEY] == TABLE
    assert before.narrowings == {KEY: Narrowing()}
    found.save(tmp_path / "a")
    assert Profile.load(tmp_path / "a", "abc") == found
    assert found.with_table(WIDE, TABLE).narrowings == found.narrowings
    assert profile.narrowings == {}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: c.update(narrowings=3), "narrowings must be of type list"),
        (lambda c: c["narrowings"].append(3), "a narrowing must be of type dict"),
        (lambda c: c["narrowings"].append(c["narrowings"][0]), "has two"),
        (lambda c: c["narrowings"][0].pop("key"), "a key must be of type dict"),
        (lambda c: c["narrowings"][0].pop("axes"), "a narrowing has axes, specs and open"),
        (lambda c: c["narrowings"][0]["axes"][0].update(gain=2), "a share from 0 to 1"),
        (lambda c: c["narrowings"][0]["specs"][0]["larger"].update(a=3), "fewer units"),
    ],
)
def test_damaged_narrowings(tmp_path, change, word):
    Profile("abc").with_narrowing(KEY, IDLE).save(tmp_path / "a")
    edit(tmp_path / "a", change)
    with pytest.raises(FileError, match=word):
        Profile.load(tmp_path / "a", "abc")


@pytest.mark.parametrize("content", ["", "[]", "null", '{"format": ', "\x00", '{"a":1,"a":1}'])
def test_files_that_are_no_profile(tmp_path, content):
    (tmp_path / "a").write_text(content)
    with pytest.raises(FileError, match="nestling profile"):
        Profile.load(tmp_path / "a", "abc")


def test_missing_profile(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        Profile.load(tmp_path / "a", "abc")


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_damaged_byte_gives_an_error_or_sound_figures(path, tmp_path, data):
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (tmp_path / "b").write_bytes(raw)
    try:
        found = Profile.load(tmp_path / "b", "abc")
    except FileError:
        return
    for table in found.tables.values():
        for latency in table.values():
            assert 0 < latency.low <= latency.median <= latency.high < math.inf


def test_a_failed_save_leaves_the_earlier_profile(path, profile, monkeypatch):
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FileError, match="No space left"):
        profile.with_table(KEY, {"x": TABLE["full"]}).save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("model.nest", "model.profile.json"),
        ("a/b.v2.nest", "a/b.v2.profile.json"),
        ("plain", "plain.profile.json"),
    ],
)
def test_beside(model, expected):
    assert beside(model).as_posix() == expected


def test_this_key():
    key = this_key(4, dtype=torch.bfloat16)
    assert key == Key(profiles.processor(), "eager", torch.get_num_threads(), 4, "bfloat16")
    assert this_key(4, dtype="bfloat16") == key
    assert this_key(1, device="meta", backend="x").device == "meta"
    with pytest.raises(BudgetError, match="at least 1 input, not 0"):
        this_key(0)


def test_this_key_names_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert this_key(1, device="cuda:1").device == "GPU of cuda:1"


def test_machine():
    facts = machine()
    assert all(isinstance(fact, str) and fact for fact in facts.values())
    assert {"processor", "cores", "threads", "memory", "system", "python", "torch"} <= set(facts)
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == str(torch.get_num_threads())


def test_processor_without_cpuinfo(monkeypatch):
    monkeypatch.setattr(profiles, "_cpuinfo", dict)
    monkeypatch.setattr(profiles.platform, "processor", lambda: "")
    monkeypatch.setattr(profiles.platform, "machine", lambda: "riscv64")
    assert profiles.processor.__wrapped__() == "riscv64"
    assert machine()["cpu_capability"]
