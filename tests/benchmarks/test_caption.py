"""The README's caption tells what results show, whichever way they go."""

import pytest
from comparison.caption import caption
from comparison.cases import BASELINE, OURS, PLAIN, Case, Shape, alone_label
from comparison.figures import Comparison
from comparison.protocols import BUDGETS
from made_results import made, rows_at

BASE = [0.9, 0.8, 0.7, 0.6, 0.5]


def told(*leads, alone=None, full=None):
    """The caption on one line, from our leads in points.

    Args:
        leads: of each seed over the uniform widths, the same at every budget but the last.
        alone: lead over the nets alone, the same at every budget.
        full: lead over the full net alone.
    """
    group = []
    for seed, (lead, last) in enumerate(leads):
        ours = [BASE[0], *(each + lead / 100 for each in BASE[1:-1]), BASE[-1] + last / 100]
        group.append(made(BASELINE, seed, "uniform", rows_at(*BASE)))
        group.append(made(OURS, seed, rows=rows_at(*ours)))
        if full is not None:
            group.append(made(PLAIN, seed, "individual", [(1000, 100, None, BASE[0] - full / 100)]))
        for share, reached in zip(BUDGETS, ours[1:], strict=True) if alone is not None else ():
            shape = Shape(OURS, share)
            case = Case(alone_label(shape), "individual", {}, seed, shapes=(shape,))
            row = (round(1000 * share), round(100 * share), None, reached - alone / 100)
            group.append(made(case.label, seed, rows=[row], case=case))
    return " ".join(caption(Comparison(group)).split())


def test_a_lead_that_is_certain():
    text = told((1.0, 3.0), (1.1, 3.1), (0.9, 2.9), alone=2, full=1)
    assert "3 seeds. The non-uniform shapes, trained together, are 1.0 to 2.0 points better" in text
    assert "alone for as many epochs, the full net included. They lead the best of" in text
    assert "by 1.5 points on average (+1.0 at 75 % of the multiply-accumulates, +3.0 at" in text
    assert text.endswith("The 95 % interval of that average is +1.3 to +1.7.*")


def test_a_lag_and_seeds_that_disagree():
    text = told((-4.0, -1.0), (1.0, 1.0), alone=-2)
    assert "are 2.0 points worse than the same shapes trained alone for as many epochs." in text
    assert "They trail the best of Universally Slimmable's uniform widths by 1.1 points" in text
    assert "(-1.5 at 75 % of the multiply-accumulates, 0.0 at 15 %)" in text
    assert "is -28.1 to +25.9, so that it is not certain which are better." in text


def test_next_to_nothing():
    text = told((-0.01, 0.02), alone=0.01, full=-0.02)
    assert "1 seed. The non-uniform shapes, trained together, are as good as" in text
    assert "On average they are level with the best of" in text
    assert "(0.0 at 75 % of the multiply-accumulates, 0.0 at 15 %)" in text
    assert text.endswith("One seed cannot tell how much of that is chance.*")


@pytest.mark.parametrize(
    ("alone", "full", "words"),
    [
        (1, -2, "from 2.0 points worse to 1.0 points better than"),
        (0, -2, "up to 2.0 points worse than"),
        (1, 0, "up to 1.0 points better than"),
    ],
)
def test_shapes_alone_that_are_better_here_and_worse_there(alone, full, words):
    assert f"are {words} the same shapes" in told((1, 1), alone=alone, full=full)


def test_what_is_not_trained_yet_is_not_told():
    text = told((-0.5, -0.5))
    assert "1 seed. The non-uniform shapes trail the best of" in text
    assert "alone" not in text
    only = Comparison([made(PLAIN, 0, "individual", [(1000, 100, None, 0.9)])])
    assert caption(only) == "*ResNet-20 on 10,000 pictures of CIFAR-10, 8 epochs, 1 seed.*"


def test_two_stages_are_told():
    case = Case(PLAIN, "individual", {}, 0, stretch=2)
    only = Comparison([made(PLAIN, rows=[(1000, 100, None, 0.9)], case=case)])
    assert caption(only) == "*ResNet-20 on 10,000 pictures of CIFAR-10, twice 8 epochs, 1 seed.*"
