"""The command: what it measures, draws and prints, and what it says to mistakes."""

import gzip
import json
import os
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import joint_step
import pytest
import torch
from comparison import latencies, pictures, results, steps, tables, trial, work
from comparison.cases import BASELINE, CONTROL, LONG, OURS, PLAIN, UNIFORM_SHAPE, Case, Shape, cases
from comparison.commands import UNFINISHED
from comparison.figures import Comparison, summary
from comparison.protocols import BUDGETS, protocol, supernet
from made_results import KEYS, TINY, compared, keep, made, rows_at

from nestling import report
from nestling.precision import choose
from nestling.report.picture import COLORS
from nestling.search.stage import log_of

PLAIN_SHAPE = Shape(UNIFORM_SHAPE, 1.0)
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
    variant = "| groups | progressive, 4 groups | progressive | -1.25 | 90.00 | 80.00 | 70.00 "
    assert f"{variant}| 60.00 | 50.00 | -1.25 | 1 |" in text  # leads over the default, of seed 0
    assert "Updates of the weights for a batch: 1 (nets alone), 4 (progressive, uniform" in text
    assert "-0.75 (-0.75 to -0.75)" in text  # against the same shape alone
    assert "latency" not in text
    for table in text.split("\n\n"):
        bars = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(bars) <= 1
    assert tables.page(tmp_path / "none") == "No result is kept yet."


def test_variants_are_ordered_by_held_out_pictures_and_not_by_the_test(tmp_path):
    group = [each for each in compared() if each.case.seed == 0]
    for words, held_out, test in (("a", 0.1, 0.9), ("b", 0.3, 0.1), ("c", 0.2, 0.95)):
        case = Case(f"{OURS}, {words}", "progressive", {}, 0, "groups")
        rows = [(macs, params, held_out, test) for macs, params, _, _ in rows_at(*[0.5] * 5)]
        group.append(made(case.label, rows=rows, case=case))
    text = tables.ablation(Comparison(group))
    order = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| groups")]
    assert order == [f"{OURS}, b", f"{OURS}, c", f"{OURS}, a"]
    (line,) = (line for line in text.splitlines() if f"{OURS}, c" in line)
    ours = [0.81, 0.71, 0.61, 0.52]
    for on, value in ((3, 0.2), (9, 0.95)):
        assert float(line.split(" | ")[on]) == pytest.approx(
            100 * (value - sum(ours) / 4), abs=0.01
        )
    group = [each for each in group if each.case.method == "individual"]
    case = Case(f"{PLAIN}, {CONTROL}", "individual", {}, 0, "updates", (PLAIN_SHAPE,), steps=4)
    control = made(case.label, rows=[(1000, 100, 0.93, 0.925)], case=case)
    text = tables.ablation(Comparison([*group, control]))
    assert f"| updates | {PLAIN}, {CONTROL} | {PLAIN} | +3.00 | 92.50 |" in text
    assert "| +3.00 | 1 |" in text


def test_the_control_is_a_row_of_its_own():
    group = [each for each in compared() if each.case.seed == 0]
    case = Case(f"{PLAIN}, {CONTROL}", "individual", {}, 0, "updates", (PLAIN_SHAPE,), steps=4)
    control = made(case.label, rows=[(1000, 100, 0.93, 0.925)], case=case)
    text = tables.against_alone(Comparison([*group, control]))
    assert f"| {OURS}, over {CONTROL} alone | -2.50 |" in text
    assert f"| {OURS} | +0.50 |" in text
    assert CONTROL not in tables.against_alone(Comparison(group))


def test_the_page_and_its_pictures_are_those_of_the_kept_results(accuracy):
    page = (ROOT / "docs" / "accuracy.md").read_text()
    assert tables.page(results.KEPT, accuracy.PICTURES) in page
    assert pictures.stale(results.KEPT, accuracy.PICTURES) == []


def test_pictures_of_changed_added_and_removed_results_are_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_found", lambda *_: [])  # these were never trained
    keep(tmp_path / "kept", compared())
    name, to = "short-cifar10-resnet20", tmp_path / "pictures"
    assert pictures.stale(tmp_path / "kept", to) == [name]
    assert pictures.draw(tmp_path / "kept", to) == [to / f"{name}-methods.png"]
    assert pictures.stale(tmp_path / "kept", to) == []
    one = next((tmp_path / "kept").glob("*/uniform-seed1.json"))
    kept = one.read_text()
    one.write_text(
        kept.replace('"test": 0.8,', '"test": 0.81,').replace('"test": 0.8}', '"test": 0.81}')
    )
    assert one.read_text() != kept
    assert pictures.stale(tmp_path / "kept", to) == [name]
    one.unlink()
    assert pictures.stale(tmp_path / "kept", to) == [name]
    one.write_text(kept)
    assert pictures.stale(tmp_path / "kept", to) == []
    keep(tmp_path / "kept", [made(OURS, rows=rows_at(*[0.5] * 5), protocol={"net": "resnet18"})])
    assert pictures.stale(tmp_path / "kept", to) == ["short-cifar10-resnet18"]


def test_the_picture_of_methods_has_the_figures_of_the_tables(tmp_path, monkeypatch):
    """Even where a dearer subnet, chosen on held-out pictures, is worse on the test pictures."""
    rows = [(1000, 100, 0.9, 0.6), (700, 70, 0.8, 0.5), (400, 40, 0.7, 0.7), (200, 20, 0.6, 0.4)]
    group = [each for each in compared() if each.case.label != OURS]
    group += [
        made(OURS, 0, rows=rows),
        made(OURS, 1, rows=[(*row[:3], row[3] + 0.1) for row in rows]),
    ]
    found = Comparison(group)
    given = []
    monkeypatch.setattr(report, "comparison", lambda points, path, **_: given.extend(points))
    pictures._methods(found, tmp_path / "p.png")
    shown = {(point.label, point.cost): point.accuracy for point in given}
    for share, mean in ((1.0, 0.65), (0.75, 0.55), (0.5, 0.75), (0.25, 0.45)):
        assert shown[OURS, 1000 * share].mean == pytest.approx(mean)
        assert shown[OURS, 1000 * share] == found.accuracy(OURS, share)
        assert f"{100 * mean:.2f} ± " in tables.matched(found, "macs")
    assert (OURS, 150) not in shown  # nothing so cheap
    assert shown[BASELINE, 150] == found.accuracy(BASELINE, 0.15)
    assert shown[PLAIN, 1000] == found.accuracy(PLAIN, 1.0)
    assert {label for label, _ in shown} == {OURS, BASELINE, LONG, PLAIN, pictures.ALONE}


def colours(path):
    """How many points of a picture have each colour of the labels, or nearly."""
    from matplotlib.image import imread

    image = (255 * imread(path)[..., :3]).round().reshape(-1, 3).astype(int)
    return Counter({c: int((abs(image - rgb(c)).max(-1) <= 2).sum()) for c in COLORS})


def rgb(colour):
    return [int(colour[n : n + 2], 16) for n in (1, 3, 5)]


def test_pictures_are_drawn_and_known_as_fresh(trained, tmp_path, monkeypatch):
    folder, every = trained
    kept = tmp_path / "kept"
    shutil.copytree(folder / "kept", kept)
    trial.keep_search_log(TINY, every[2], folder / "work", kept)
    shown, plain = {}, report.skylines
    monkeypatch.setattr(
        report,
        "skylines",
        lambda specs, *a, **more: shown.update(specs) or plain(specs, *a, **more),
    )
    methods, subnets, search = pictures.draw(kept, tmp_path / "pictures")
    kinds = [path.stem.rpartition("-")[2] for path in (methods, subnets, search)]
    assert kinds == ["methods", "subnets", "search"]
    seen = colours(methods)
    assert all(seen[COLORS[place]] > 20 for place in range(4)), seen  # plain comes last
    assert all(colours(subnets)[COLORS[place]] > 200 for place in (0, 1))
    assert sum(colours(search).values()) > 200
    (group,) = results.groups(kept).values()
    found = Comparison(group)
    chosen = {share: found.at(OURS, 0, share) for share in BUDGETS}
    assert {label: tuple(spec.values()) for label, spec in shown.items() if OURS in label} == {
        f"{OURS}, {100 * share:g} %": row.counts for share, row in chosen.items() if row is not None
    }
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
    rows = content["rows"]
    assert [row["what"] for row in rows] == [
        steps.CALLED[name][0] for name in (joint_step.JOINT, joint_step.SUMMED)
    ]
    steps.write(tmp_path, content)
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert f"| {row['what']} | {row['value']:.3f}" in steps.table(tmp_path)


def steps_of():
    """The steps of a tiny net with three subnets, and the weights that they start from."""
    torch.manual_seed(0)
    net = supernet(TINY, (1, 8, 8), 10)
    specs = [net.space.full, net.space.spec(fraction=0.5), net.space.spec(fraction=0.3)]
    images, labels = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    return joint_step.Material(
        net, specs, images, labels, choose("float32", torch.device("cpu"), net.model)
    )


@pytest.mark.parametrize("summed", [True, False])
def test_a_joint_step_is_the_step_of_a_training(summed):
    """The same weights come out, to the bit, as of a training with the optimiser's rate."""
    given, other = steps_of(), steps_of()
    given.joint("", summed=summed)()

    def objective(net):
        for spec in other.specs:
            yield net.pooled(spec).train(), joint_step.task_loss

    batch = other.images, other.labels
    monotone = [group["lr"] for group in other.optimizer.param_groups]
    training = steps.Run(other.net, [batch], 1, precision="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nestling.loop.cosine", lambda *_: 1.0)
        training.train_stage(objective, summed=summed)
    assert monotone[0] > 0
    for one, same in zip(given.net.parameters(), other.net.parameters(), strict=True):
        assert torch.equal(one, same)


def test_passes_apart_have_steps_of_their_own(monkeypatch):
    """Each net is stepped once, by an optimiser that has its weights alone."""
    given, made_ = steps_of(), []
    plain = joint_step.default_optimizer
    monkeypatch.setattr(
        joint_step, "default_optimizer", lambda net: made_.append(plain(net)) or made_[-1]
    )
    step = given.apart("")
    before = [[p.clone() for g in o.param_groups for p in g["params"]] for o in made_]
    step()
    sizes = [sum(p.numel() for p in each) for each in before]
    assert sizes == [given.net.space.params(spec) for spec in given.specs]
    for optimizer, old in zip(made_, before, strict=True):
        now = [p for group in optimizer.param_groups for p in group["params"]]
        assert all(not torch.equal(a, b) for a, b in zip(now, old, strict=True))
        assert all(not p.grad.any() for p in now)


def test_ratios_of_steps_are_told_by_name(monkeypatch):
    """The clock counts what each step does: a pass 10, an optimiser's step as many as its net has
    tensors."""
    given, time = steps_of(), [0.0]
    monkeypatch.setattr(joint_step.time, "process_time", lambda: time[0])
    run, update = given.run, joint_step.update

    def timed(passes, module):
        time[0] += 10
        run(passes, module)

    def stepped(optimizer):
        whole = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
        time[0] += 10 * whole / given.net.space.params(given.net.space.full)
        update(optimizer)

    monkeypatch.setattr(given, "run", timed)
    monkeypatch.setattr(joint_step, "update", stepped)
    found = joint_step.compare(given, compiled=False, seconds=0.05)
    space = given.net.space
    apart = sum(10 + 10 * space.params(spec) / space.params(space.full) for spec in given.specs)
    assert found[joint_step.JOINT].median == pytest.approx(60 / apart)
    assert found[joint_step.SUMMED].median == pytest.approx(40 / apart)
    assert list(found) == [joint_step.JOINT, joint_step.SUMMED]


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
    words += ["--data-dir", str(tmp_path / "data"), "--device", "cpu", "--no-compile"]
    words += ["--epochs", "1", "--batch", "4", "--held-out", "2", "--seeds", "0"]
    words += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "kept")]
    assert accuracy.main([*words, "--only", PLAIN, "alone progressive 50"]) == UNFINISHED
    said = capsys.readouterr().out
    assert "alone-progressive-50-seed0 waits for progressive" in said
    (path,) = (tmp_path / "kept").glob("*/*.json")
    assert path.parent.name == f"full-{name}-small"
    content = json.loads(path.read_text())
    assert content["shape"] == [3, side, side]
    assert content["classes"] == 2
    assert content["subnets"][0]["held_out"] is None
    assert 0 <= content["subnets"][0]["test"] <= 1
    assert not (tmp_path / "work" / path.parent.name / path.stem).exists()  # nothing to relabel
    before = path.stat().st_mtime_ns
    assert accuracy.main([*words, "--only", PLAIN]) == 0  # kept: nothing to do
    assert path.stat().st_mtime_ns == before


def test_what_the_compiler_makes_is_shared_by_all_cases(accuracy, tmp_path, monkeypatch):
    monkeypatch.setenv(work.COMPILED, "")
    monkeypatch.delenv(work.COMPILED)
    work.share_compiled(TINY, tmp_path)
    assert work.COMPILED not in os.environ
    work.share_compiled(replace(TINY, compiled=True), tmp_path)
    assert os.environ[work.COMPILED] == str(tmp_path / "compiled")
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(tmp_path / "compiled")
    monkeypatch.setenv(work.COMPILED, "mine")
    work.share_compiled(replace(TINY, compiled=True), tmp_path)
    assert os.environ[work.COMPILED] == "mine"


def test_what_a_training_leaves_is_the_result_and_the_log_of_one_search(
    accuracy, tmp_path, monkeypatch
):
    """Its work folder would pass for a new training once somebody removes the result."""
    asked = []

    def run(of, case, given, needed, work, **options):
        asked.append(options)
        folder = work / of.folder / case.name
        folder.mkdir(parents=True)
        log_of(folder / trial.STATE).write_text("the log")
        return made(OURS, case=case, rows=rows_at(*[0.5] * 5)).content

    monkeypatch.setattr(work, "material", lambda *_: None)
    monkeypatch.setattr(trial, "run", run)
    words = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "kept"), "--seeds", "0"]
    assert accuracy.main([*words, "--only", OURS]) == 0
    assert accuracy.main([*words, "--only", f"{OURS}, l2", "--any-commit"]) == 0
    assert asked == [{"any_commit": False}, {"any_commit": True}]
    kept = tmp_path / "kept" / "short-cifar10-resnet20"
    names = ["progressive-l2-seed0.json", "progressive-seed0.json", results.SEARCH_LOG]
    assert sorted(path.name for path in kept.iterdir()) == names
    assert gzip.decompress((kept / results.SEARCH_LOG).read_bytes()) == b"the log"
    assert list((tmp_path / "work").glob("*/*")) == []
