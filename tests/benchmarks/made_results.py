"""A tiny protocol, and results that no training has made; shared by the tests of this folder."""

import json
from dataclasses import asdict, replace

from comparison import results, trial
from comparison.cases import BASELINE, LONG, OURS, PLAIN, Case, Shape, alone_label
from comparison.protocols import BUDGETS, Protocol, protocol
from torch import nn

KEYS = [
    *("protocol", "net", "data", "seeds", "mean_gain_over_us", "max_gain_over_us"),
    *("worst_against_individual", "full_against_plain", "search_share", "rank_share"),
    "mean_gain_at_equal_compute",
]
TINY = Protocol(
    *("tiny", "digits", "small"),
    epochs=2,
    lr=0.1,
    batch=50,
    seeds=(0, 1),
    pictures=200,
    held_out=100,
)
TWO = {"fractions": [1.0, 0.75, 0.5, 0.3], "search_options": {"groups": 4}}


def small(num_classes, in_channels, width=8):
    """Two convolutions, whose widths are free."""
    return nn.Sequential(
        *(nn.Conv2d(in_channels, width, 3, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)),
    )


def made(label, seed=0, method="progressive", rows=(), seconds=None, **more):
    """A result without a training: rows are (macs, params, held_out, test) of 1000 and 100."""
    case = more.pop("case", Case(label, method, {}, seed))
    content = {
        "protocol": replace(protocol("short"), **more.pop("protocol", {})).settings(),
        "case": json.loads(json.dumps(asdict(case))),
        "machine": {"processor": "some", "torch": "2"},
        "commit": "abc",
        "format": results.FORMAT,
        "axes": ["a", "b"],
        "full": {"macs": 1000, "params": 100},
        "shape": [1, 8, 8],
        "classes": 10,
        "epochs": 10,
        "equal_to": {},
        "trained_in": "float32",
        "seconds": seconds or {"joint": 100.0},
        "seconds_complete": True,
        "subnets": [
            {"name": f"m{n}", "counts": [macs, params], "macs": macs, "params": params}
            | {"held_out": held_out, "test": test}
            for n, (macs, params, held_out, test) in enumerate(rows)
        ],
    }
    return results.Result({**content, **more})


def run(case, given, folder, of=TINY, every=(), **options):
    """Train a case, and keep its result in a folder."""
    known = {(each.label, each.seed): each for each in (*every, case)}
    needed = trial.Needed(of, case, known, folder / "kept")
    content = trial.run(of, case, given, needed, folder / "work", **options)
    results.write(results.place(of, case, folder / "kept"), content)
    return content


def rows_at(*tests):
    """The full net and one subnet at each budget, with these accuracies."""
    return [
        (round(1000 * share), round(100 * share), test, test)
        for share, test in zip((1.0, *BUDGETS), tests, strict=True)
    ]


def compared():
    """Three seeds of ours and the baseline, one of the nets alone."""
    made_ = []
    for seed, lead in enumerate((0.01, 0.02, 0.06)):
        base = [0.9, 0.8, 0.7, 0.6, 0.5]
        ours = [0.9, 0.8 + lead, 0.7 + lead, 0.6 + lead, 0.5 + 2 * lead]
        spent = {"noise ranking": 30.0 + seed, "search": 10.0, "joint": 100.0, "other": 1.0}
        made_.append(made(BASELINE, seed, "uniform", rows_at(*base)))
        made_.append(made(LONG, seed, "uniform", rows_at(*(value + 0.01 for value in base))))
        made_.append(made(OURS, seed, rows=rows_at(*ours), seconds=spent))
        made_.append(made(PLAIN, seed, "individual", [(1000, 100, 0.9, 0.895)]))
        for share, value in zip(BUDGETS, ours[1:], strict=True):
            shape = Shape(OURS, share)
            alone = [(round(1000 * share), round(100 * share), None, value + share / 100)]
            case = Case(alone_label(shape), "individual", {}, seed, shapes=(shape,))
            made_.append(made(case.label, seed, rows=alone, case=case))
    return made_


def keep(folder, group):
    for result in group:
        name = Protocol.of(result.settings).folder
        results.write(folder / name / f"{result.case.name}.json", result.content)
