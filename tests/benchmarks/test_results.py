"""Kept results: merged by copying, never mixed, damaged ones refused."""

import shutil
from dataclasses import replace

import pytest
from comparison import results
from comparison.cases import LONG, OURS, Case
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
        ({"protocol": {"epochs": 20}}, r"epochs=10 \(now 20\)"),
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


def test_a_damaged_result_is_one_clear_error(tmp_path):
    path = tmp_path / "x" / "progressive-seed0.json"
    path.parent.mkdir()
    path.write_text('{"format": 1')
    with pytest.raises(FileError, match="train the case again"):
        results.groups(tmp_path)
    path.write_text("{}")
    with pytest.raises(FileError, match="no result of this benchmark"):
        results.groups(tmp_path)
