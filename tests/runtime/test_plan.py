import pytest

from nestling.costs.latency import Latency
from nestling.profile import Key, Profile
from nestling.runtime.plan import plan, tables_for


def table(**medians):
    return {name: Latency(ms, ms, ms, 20) for name, ms in medians.items()}


TABLES = {
    "eager": table(full=10, half=4, tiny=1.0),
    "packed": table(full=9.95, half=3, tiny=1.2),
    "onnxruntime": table(full=5.02, half=2.99, tiny=1.1),
    "openvino": table(full=5.0, half=6),
}


def test_the_fastest_runs_an_entry_and_of_equals_the_lightest():
    found = plan(["full", "half", "tiny"], TABLES, "auto")
    assert found == {"full": "openvino", "half": "packed", "tiny": "eager"}


def test_what_was_not_measured_runs_on_views():
    assert plan(["full", "new"], {}, "auto") == {"full": "eager", "new": "eager"}
    assert plan(["new"], TABLES, "auto") == {"new": "eager"}


def test_a_backend_that_was_asked_for_runs_all():
    assert plan(["full", "tiny"], TABLES, "compiled") == {"full": "compiled", "tiny": "compiled"}


def test_only_figures_of_this_device_and_of_what_is_installed_count(monkeypatch):
    here = {name: Key("here", name, 1, 1, "float32") for name in TABLES}
    there = Key("there", "packed", 1, 1, "float32")
    profile = Profile("a").with_table(there, TABLES["packed"])
    for name in ("eager", "openvino"):
        profile = profile.with_table(here[name], TABLES[name])
    monkeypatch.setattr("nestling.runtime.plan.installed", lambda: ["eager", "packed"])
    found = tables_for(profile, here.__getitem__, "auto")
    assert found == {"eager": TABLES["eager"]}
    assert set(tables_for(profile, here.__getitem__, "openvino")) == {"eager", "openvino"}


@pytest.mark.parametrize("slower", [1.005, 1.5])
def test_a_percent_is_no_reason_to_copy(slower):
    tables = {"eager": table(full=slower), "packed": table(full=1.0)}
    wanted = "eager" if slower < 1.01 else "packed"
    assert plan(["full"], tables, "auto") == {"full": wanted}
