import pytest

from nestling import quickstart


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(quickstart, "SECONDS", 0.02)
    monkeypatch.setattr(quickstart, "WIDTH", 32)


def test_the_whole_story(nestling, tmp_path):
    said = nestling("quickstart", "--epochs", 1, "--out", tmp_path / "run")
    assert said.code == 0, said.err
    assert said.out.count(" of 64 right") == 3
    for word in ("latency_ms=", "fraction=", "bytes=", "looked at only now", "nestling.load"):
        assert word in said.out
    rows = [line for line in said.out.splitlines() if line.endswith((" yes", " no"))]
    assert len(rows) >= 6
    for name in ("model.nest", "model.profile.json", "report.html", "pareto.png", "skyline.png"):
        assert (tmp_path / "run" / name).stat().st_size > 1000
        assert name in said.out
    again = nestling("quickstart", "--out", tmp_path / "run")
    assert again.failed("never overwrites")


def test_budgets_are_rounded_up():
    assert quickstart._rounded_up(0.0972) == 0.098
    assert quickstart._rounded_up(10.41) == 11
    assert quickstart._rounded_up(491_234) == 500_000
    assert quickstart._rounded_up(0.5) == 0.5
    assert quickstart._rounded_up(1.0) == 1.0
