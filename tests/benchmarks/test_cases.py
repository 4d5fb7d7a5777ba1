"""Cases: their names, needs, options and parts."""

import pytest
from comparison.cases import (
    BASELINE,
    BUNDLE,
    CONTROL,
    LONG,
    OURS,
    PLAIN,
    Case,
    Shape,
    cases,
    chosen,
    parse_part,
)
from comparison.protocols import protocol

from nestling import catalogue, methods, rankers, search
from nestling.errors import FileError, ModelError


def test_cases_have_names_of_their_own_and_stand_after_those_that_they_need():
    every = cases(protocol("full", seeds=(0, 1)))
    assert len({case.name for case in every}) == len(every)
    for number, case in enumerate(every):
        before = {other.label for other in every[:number] if other.seed == case.seed}
        assert set(case.needs) <= before, case.label
    labels = {case.label for case in every}
    assert {PLAIN, BASELINE, LONG, BUNDLE, OURS, "norms", "slimmable"} <= labels
    groups = {case.group for case in every}
    assert {"ranker", "noise", "groups", "threshold", "distillation", "shortcuts"} <= groups
    assert {"re-selection", "start", "norms", "draws", "search", "steps", "paper", "main"} <= groups
    assert {"updates", "learning rate"} <= groups


def test_what_varies_beside_the_options_of_a_method():
    every = {case.label: case for case in cases(protocol("short", seeds=(0,)))}
    slower = {label for label, case in every.items() if case.lr == 0.3}
    assert {case.lr for case in every.values()} == {1, 0.3}
    words = "lr x 0.3", "one step for all passes, lr x 0.3"
    assert slower == {f"{label}, {each}" for label in (OURS, BASELINE) for each in words}
    assert every[f"{OURS}, one step for all passes, lr x 0.3"].options["summed"]
    several = {label: case for label, case in every.items() if case.steps > 1}
    assert len(several) == 9
    for label, case in several.items():
        alone = every[label.replace(CONTROL, "").strip(", ")]
        assert (case.steps, case.group) == (4, "updates")
        assert (case.method, case.shapes, case.needs) == (alone.method, alone.shapes, alone.needs)


def test_a_case_of_a_file_has_the_settings_that_were_not_known_then():
    old = {
        "label": "x", "method": "individual", "options": {}, "seed": 1, "group": "main",
        "shapes": [{"of": OURS, "share": 0.5}], "arguments": {}, "equals": ["y"],
    }  # fmt: skip
    wanted = Case("x", "individual", {}, 1, shapes=(Shape(OURS, 0.5),), equals=("y",))
    assert Case.of(old) == wanted
    assert (wanted.lr, wanted.steps) == (1, 1)
    with pytest.raises(FileError, match=r"does not know, mood; read it with the version"):
        Case.of({**old, "mood": 1})


def test_options_of_all_cases_exist():
    for case in cases(protocol("short", seeds=(0,))):
        methods.check_options(case.method, methods.find(case.method), case.options)
        if case.method == "progressive":
            by = search.find(case.options.get("search", "progressive"))
            assert set(case.options.get("search_options", {})) <= set(catalogue.options(by))
            ranker = rankers.find(case.options.get("rank_by", "noise"))
            assert set(case.options.get("rank_options", {})) <= set(catalogue.options(ranker))


@pytest.mark.parametrize("count", [1, 2, 7, 400])
def test_parts_have_every_case_once(count):
    every = cases(protocol("short"))
    wanted = chosen(every, only=["*"])
    parts = [chosen(every, only=["*"], part=(i + 1, count)) for i in range(count)]
    assert sorted(case.name for part in parts for case in part) == sorted(c.name for c in every)
    assert len(wanted) == len(every)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_cases_are_chosen_by_label_and_pattern():
    every = cases(protocol("short", seeds=(0,)))
    assert {case.group for case in chosen(every)} == {"main"}
    assert [case.label for case in chosen(every, only=[OURS])] == [OURS]
    alone = [case.label for case in chosen(every, only=["alone uniform*"])]
    assert alone == ["alone uniform 75", "alone uniform 50", "alone uniform 25", "alone uniform 15"]
    with pytest.raises(ModelError, match="no case is called 'progresive'; did you mean"):
        chosen(every, only=["progresive"])


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(ModelError, match="--part is i/n"):
        parse_part(text)
