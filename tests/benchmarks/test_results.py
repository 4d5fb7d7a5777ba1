"""Kept results: merged by copying, never mixed, damaged ones refused."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from comparison import results, tables
from comparison.cases import LONG, OURS, PLAIN, Case, cases
from comparison.figures import Comparison
from comparison.protocols import protocol
from made_results import keep, made

from nestling.errors import FileError


def test_results_of_two_machines_merge_by_copying(tmp_path):
    one, two = tmp_path / "one" / "x", tmp_path / "two" / "x"
    for folder, seed in ((one, 0), (two, 1)):
        result = made(OURS, seed, rows=[(1000, 100, 0.9, 0.8)])
        results.write(folder / f"{result.case.name}.json", result.content)
    shutil.copytree(two, one, dirs_exist_ok=True)
    (group,) = results.groups(tmp_path / "one").values()
    assert Comparison(group).seeds(OURS) == [0, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"protocol": {"epochs": 20}}, rf"epochs={protocol('short').epochs} \(now 20\)"),
        ({"protocol": {"lr": 0.2}}, r"lr=0.1 \(now 0.2\)"),
        ({"trained_in": "bfloat16"}, r"trained in='float32' \(now 'bfloat16'\)"),
    ],
)
def test_results_of_different_settings_are_not_read_together(tmp_path, more, message):
    for result in (made(OURS, 0), made(OURS, 1, **more)):
        results.write(tmp_path / "x" / f"{result.case.name}.json", result.content)
    with pytest.raises(FileError, match=message):
        results.groups(tmp_path)


def test_equal_compute_with_what_was_trained_again_is_refused(tmp_path):
    ours = made(OURS)
    long = made(LONG, method="uniform", equal_to={OURS: results.digest([ours])})
    keep(tmp_path, [ours, long])
    assert len(results.groups(tmp_path)) == 1
    keep(tmp_path, [made(OURS, seconds={"joint": 101.0})])
    with pytest.raises(FileError, match="an earlier progressive-seed0, which was trained again"):
        results.groups(tmp_path)


def test_a_kept_result_of_another_protocol_or_case_is_refused(tmp_path):
    of, case = protocol("short"), Case(OURS, "progressive")
    result = made(OURS)
    results.write(results.place(of, case, tmp_path), result.content)
    assert results.find(of, case, tmp_path).content == result.content
    with pytest.raises(FileError, match=r"batch=128 \(now 64\)"):
        results.find(replace(of, batch=64), case, tmp_path)
    with pytest.raises(FileError, match=r"options=\{\} \(now \{'draw': 1\}\)"):
        results.find(of, replace(case, options={"draw": 1}), tmp_path)
    assert results.find(of, replace(case, seed=5), tmp_path) is None


FIRST = Path(__file__).parent / "first_results"  # of the first version, commit 026d82a


def test_results_of_the_first_version_are_read_and_found(tmp_path):
    """They tell no pieces, and of a case neither its learning rate nor its steps; their nets alone
    trained for as many epochs as one stage of the others."""
    (group,) = results.groups(FIRST).values()
    assert {each.case.label for each in group} == {PLAIN, "alone uniform 50"}
    of = protocol("short", epochs=8)
    every = {(case.label, case.seed): case for case in cases(of)}
    for each in group:
        assert "pieces" not in each.content
        assert "lr" not in each.content["case"]
        case = every[each.case.label, 0]
        assert results.find(of, replace(case, stretch=1), FIRST) is not None
        with pytest.raises(FileError, match=r"stretch=1 \(now 2\)"):
            results.find(of, case, FIRST)
        assert each.commits == {"026d82a"}
        assert each.processors == {"Intel(R) Xeon(R) Processor"}
        assert (each.updates, each.complete, each.epochs) == (1, True, 8)
        assert each.spent == sum(each.seconds.values())
    again = made(PLAIN, 1, "individual", [(1000, 100, 0.5, 0.5)])
    content = {**group[0].content, "case": again.content["case"], "pieces": [results.piece()]}
    keep(tmp_path, [*group, results.Result(content)])
    assert len(next(iter(results.groups(tmp_path).values()))) == 3
    assert "commit 026d82a, abc" in tables.page(tmp_path)


def test_a_commit_is_told_with_what_differs_from_it(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks" / "comparison"
    (tmp_path / "nestling").mkdir()
    folder.mkdir(parents=True)
    code, mine = tmp_path / "nestling" / "x.py", folder / "results.py"
    code.write_text("1")
    mine.write_text("1")

    def git(*words):
        plain = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=no"]
        subprocess.run(["git", *plain, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.delenv("NESTLING_COMMIT")
    monkeypatch.setattr(results, "__file__", str(mine))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.commit() == "unknown"
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    clean = results.commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "other.py").write_text("not measured")
    assert results.commit() == clean
    told = set()
    for change in ((code, "2"), (code, "3"), (code.with_name("né w.py"), "1")):
        change[0].write_text(change[1])
        told.add(results.commit())
    assert len(told) == 3
    assert all(re.fullmatch(f"{clean} with changes [0-9a-f]{{7}}", each) for each in told)
    monkeypatch.setenv("NESTLING_COMMIT", "told")
    assert results.commit() == "told"


def test_a_damaged_result_is_one_clear_error(tmp_path):
    path = tmp_path / "x" / "progressive-seed0.json"
    path.parent.mkdir()
    path.write_text('{"format": 1')
    with pytest.raises(FileError, match="train the case again"):
        results.groups(tmp_path)
    path.write_text("{}")
    with pytest.raises(FileError, match="no result of this benchmark"):
        results.groups(tmp_path)
