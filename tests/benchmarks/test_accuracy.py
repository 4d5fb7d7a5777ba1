"""The command: what it measures, draws and prints, and what it says to mistakes."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparison import latencies, pictures, results, steps, tables, trial
from comparison.cases import BASELINE, LONG, OURS, PLAIN, Case, cases
from comparison.figures import Comparison, summary
from comparison.protocols import protocol, supernet
from made_results import KEYS, TINY, compared, keep, made, rows_at

ROOT = Path(__file__).resolve().parent.parent.parent


# -- what is shown -----------------------------------------------------------------------------


def test_the_tables_have_the_figures(tmp_path):
    variant = Case(f"{OURS}, 4 groups", "progressive", {}, 0, "groups")
    row = made(variant.label, rows=rows_at(0.9, 0.8, 0.7, 0.6, 0.5), case=variant)
    keep(tmp_path, [*compared(), row])
    text = tables.page(tmp_path)
    assert "## ResNet-20 on CIFAR-10, short protocol" in text
    assert "| plain | 89.50 ± 0.00 |" in text
    assert "| uniform | +3.75 (-4.47 to +11.97) | +0.00" in text
    assert "| progressive | 31.0% | 10.0% | 100 s |" in text
    assert "| groups | progressive, 4 groups | 90.00 | 80.00 |" in text
    assert "| progressive | -1.25 |" in text  # the variant's lead over the default, of seed 0
    assert "-0.75 (-0.75 to -0.75)" in text  # against the same shape alone
    assert "latency" not in text
    for table in text.split("\n\n"):
        bars = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(bars) <= 1
    assert tables.page(tmp_path / "none") == "No result is kept yet."


def test_the_page_and_its_pictures_are_those_of_the_kept_results(tmp_path, accuracy):
    assert "<!-- table accuracy -->" in (ROOT / "docs" / "accuracy.md").read_text()
    assert pictures.stale(results.KEPT, accuracy.PICTURES) == []
    keep(tmp_path, compared())
    assert pictures.stale(tmp_path, tmp_path) == ["short-cifar10-resnet20"]


def test_pictures_are_drawn_and_known_as_fresh(trained, tmp_path):
    folder, every = trained
    kept = tmp_path / "kept"
    shutil.copytree(folder / "kept", kept)
    trial.keep_search_log(TINY, every[2], folder / "work", kept)
    drawn = pictures.draw(kept, tmp_path / "pictures")
    kinds = [path.stem.rpartition("-")[2] for path in drawn]
    assert kinds == ["methods", "subnets", "search"]
    assert all(path.stat().st_size > 10_000 for path in drawn)
    assert pictures.stale(kept, tmp_path / "pictures") == []
    path = results.place(TINY, every[0], kept)
    path.write_text(path.read_text().replace('"test": 0', '"test": 1'))
    assert pictures.stale(kept, tmp_path / "pictures") == [TINY.folder]
    text = tables.page(kept, tmp_path / "pictures")
    assert f"![{TINY.folder}-search](pictures/{TINY.folder}-search.png)" in text


def test_latencies_are_ratios_to_the_full_net_and_complete(trained, tmp_path):
    folder, _ = trained
    (group,) = results.groups(folder / "kept").values()
    content = latencies.measure(replace(TINY, latency_batch=2), group, seconds=0.001)
    latencies.write(tmp_path, content)
    ratios, where = latencies.read(tmp_path)
    assert {row.counts for each in group for row in each.rows} <= set(ratios)
    full = max(ratios, key=lambda counts: sum(counts))
    assert ratios[full] == 1
    assert all(value > 0 for value in ratios.values())
    assert where["batch"] == 2
    found = Comparison(group, {counts: sum(counts) / sum(full) for counts in ratios})
    row = found.at(BASELINE, 0, 0.75, "latency")
    assert sum(row.counts) <= 0.75 * sum(full)
    assert latencies.read(tmp_path / "none") == ({}, {})


def test_a_joint_step_is_measured_against_its_passes(trained, tmp_path):
    folder, _ = trained
    (group,) = results.groups(folder / "kept").values()
    content = steps.measure(TINY, (1, 8, 8), 10, Comparison(group), 0.05)
    (row,) = content["rows"]
    assert 0.5 < row["value"] < 3
    assert row["low"] <= row["value"] <= row["high"]
    steps.write(tmp_path, content)
    assert f"| {row['what']} | {row['value']:.3f}" in steps.table(tmp_path)


def test_graphs_of_a_compiled_training_are_counted_by_epoch(monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "compiling", lambda of: {"compile": "eager"})
    net = supernet(TINY, (1, 8, 8), 10)
    specs = [net.space.full, net.space.spec(fraction=0.3)]
    batch = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    found = steps.graphs(replace(TINY, compiled=True), net, specs, batch)
    assert found == [2, 0, 0]


# -- the command -------------------------------------------------------------------------------


def test_the_summary_is_a_line_of_json_for_each_net(accuracy, tmp_path, capsys):
    keep(tmp_path, compared())
    keep(tmp_path, [made(OURS, rows=rows_at(*[0.5] * 5), protocol={"net": "resnet18"})])
    assert accuracy.main(["--summary", "--results", str(tmp_path)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["net"] for line in found] == ["resnet18", "resnet20"]
    assert all(list(line) == KEYS for line in found)
    assert found[1] == summary(Comparison(compared()))


def test_a_mistake_is_one_line_without_a_traceback(accuracy, capsys):
    for words, message in (
        (["--protocol", "shrot"], "unknown protocol 'shrot'; did you mean 'short'?"),
        (["--net", "resnet21"], "unknown net 'resnet21'"),
        (["--part", "5/4"], "--part is i/n"),
        (["--only", "nothing"], "no case is called 'nothing'"),
    ):
        assert accuracy.main(words) == 1
        assert message in capsys.readouterr().err


def test_cases_are_listed_with_their_states(accuracy, tmp_path, capsys):
    keep(tmp_path, [each for each in compared() if each.case.label == OURS])
    words = ["--list", "--results", str(tmp_path), "--seeds", "0"]
    of = protocol("short", seeds=(0,))
    ours = next(case for case in cases(of) if case.label == OURS)
    results.write(
        results.place(of, ours, tmp_path), made(OURS, case=ours, rows=rows_at(*[0.5] * 5)).content
    )
    assert accuracy.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    state = {line.split("'")[1]: line.rpartition("seed 0")[2].strip() for line in lines}
    assert state[OURS] == "kept"
    assert state[BASELINE] == "to do"
    assert state["alone progressive 50"] == "to do"
    assert state["alone norms 50"] == "waits for norms"
    assert state[LONG] == "waits for uniform"


@pytest.mark.parametrize(("name", "side"), [("imagenet", 224), ("tiny-imagenet", 64)])
def test_a_folder_of_pictures_goes_through_the_same_command(accuracy, tmp_path, capsys, name, side):
    image = pytest.importorskip("PIL.Image")
    draw = random.Random(0)
    for part, count in (("train", 6), ("val", 2)):
        for kind in ("n1", "n2"):
            place = tmp_path / "data" / part / kind
            place.mkdir(parents=True)
            for number in range(count):
                color = tuple(draw.randrange(256) for _ in range(3))
                image.new("RGB", (70, 64), color).save(place / f"{number}.JPEG")
    words = ["--protocol", "full", "--net", "small", "--data", name]
    words += ["--data-dir", str(tmp_path / "data"), "--device", "cpu", "--eager"]
    words += ["--epochs", "1", "--batch", "4", "--held-out", "2", "--seeds", "0"]
    words += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "kept")]
    assert accuracy.main([*words, "--only", PLAIN, "alone progressive 50"]) == accuracy.UNFINISHED
    said = capsys.readouterr().out
    assert "alone-progressive-50-seed0 waits for progressive" in said
    (path,) = (tmp_path / "kept").glob("*/*.json")
    assert path.parent.name == f"full-{name}-small"
    content = json.loads(path.read_text())
    assert content["shape"] == [3, side, side]
    assert content["classes"] == 2
    assert content["subnets"][0]["held_out"] is None
    assert 0 <= content["subnets"][0]["test"] <= 1
    before = path.stat().st_mtime_ns
    assert accuracy.main([*words, "--only", PLAIN]) == 0  # kept: nothing to do
    assert path.stat().st_mtime_ns == before
