"""The benchmark of backends and of paper A's subnets, on tiny nets: figures are those measured."""

import json
from types import SimpleNamespace

import pytest
import torch
from benchmark_scripts import opened
from torch import nn

import nestling


@pytest.fixture(scope="module")
def script():
    return opened("backends")


def test_its_figures_belong_together(script):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3)).eval()
    net = nestling.Supernet(model, torch.randn(2, 1, 8, 8))
    menu = nestling.make_menu(net, {"quarter": net.space.spec(width=0.25)}, measure=False)
    options = SimpleNamespace(backends=["eager", "packed"], seconds=0.01)
    found = script.run(model, menu, 3, options)
    assert set(found["backends"]) == {"eager", "packed"}
    assert set(found["plain_ms"]) == {"eager", "eager channels-last"}
    assert found["best_runtime"] == min(found["plain_ms"], key=found["plain_ms"].get)
    fastest = {
        name: min(row[f"{name}_ms"] for row in found["backends"].values())
        for name in ("full", "quarter")
    }
    for name, backend in found["auto"].items():
        assert found["backends"][backend][f"{name}_ms"] <= 1.01 * fastest[name]
    for figure in ("auto_against_best_runtime", "quarter_macs_speedup"):
        assert found[figure]["low"] <= found[figure]["median"] <= found[figure]["high"]
        assert found[figure]["runs"] >= 11


def test_the_summary_and_the_table_say_what_is_kept(script):
    kept = json.loads(script.KEPT.read_text())
    batch = kept["batches"]["1"]
    worse = {**batch, "auto_against_best_runtime": {**batch["auto_against_best_runtime"]}}
    worse["auto_against_best_runtime"]["median"] = 9.0
    found = script.summary({"batches": {"1": batch, "32": worse}})
    assert found["auto_against_best_engine"] == 9.0
    assert set(found) == {
        "quarter_macs_speedup_b1", "quarter_macs_speedup_b32", "auto_against_best_engine",
    }  # fmt: skip
    for name, row in batch["backends"].items():
        assert f"| 1 | {name} |" in script.table(kept)
        assert f" {row['quarter_ms']:.1f} |" in script.table(kept)
    assert script.summary({"batches": {}}) == {}


def test_subnets_beside_those_of_paper_a():
    paper = opened("paper_a")
    assert paper.table({}) == "Not measured yet."
    model = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten())
    menu = paper.menu_of(model.eval(), torch.randn(2, 1, 8, 8), step=2)
    rows = paper.run(menu, 2, ["eager", "packed"], 0.01)
    assert [row["share"] for row in rows] == pytest.approx(paper.shares(), abs=0.05)
    for row in rows:
        assert row["ms"].keys() == {"eager", "packed"}
        assert row["backend"] in row["ms"]
    for row, milliseconds in zip(rows, (2.0, 3.0, 4.0, 8.0), strict=True):
        row["ms"], row["backend"], row["joules"] = {"packed": milliseconds}, "packed", {}
    facts = {"batch": 2, "machine": {"processor": "Some CPU"}, "versions": {}}
    result = {"cpu": {"rows": rows, "commit": "abc", "load": 1.0, **facts}}
    text = paper.table(result)
    assert " | 30.5 | 2.0 | 2.14 | 4.00 | packed |" in text
    assert " | 65.4 | 8.0 | 1.00 | 1.00 | packed |" in text
    assert "Some CPU" in text
    rows[0]["joules"] = {"packed": 0.25}
    assert " | 4.00 | packed | 0.25 |" in paper.table(result)
