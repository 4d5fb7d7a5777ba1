from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pytest

from nestling.errors import ModelError
from nestling.models.arguments import Between, checked

SMALL = Annotated[int, Between(1, 9)]


@pytest.mark.parametrize(
    ("annotation", "value", "stored"),
    [
        (SMALL, 1, 1),
        (SMALL, 9, 9),
        (SMALL, np.int64(3), 3),
        (Annotated[float, Between(0.5, 2)], 1, 1.0),
        (Annotated[float, Between(0.5, 2)], np.float32(0.5), 0.5),
        (bool, False, False),
        (Literal["a", "b"], "b", "b"),
        (Annotated[Sequence[SMALL], Between(0, 2)], (3, 4), [3, 4]),
        (Annotated[Sequence[SMALL], Between(0, 2)], [], []),
        (int, -5, -5),
    ],
)
def test_fitting_values_become_plain_json(annotation, value, stored):
    result = checked("argument", annotation, value)
    assert result == stored
    assert type(result) is type(stored)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (SMALL, 0, "argument is 0: it takes a whole number from 1 to 9"),
        (SMALL, 10, "from 1 to 9"),
        (SMALL, True, "whole number"),
        (SMALL, 2.0, "whole number"),
        (SMALL, "2", "whole number"),
        (SMALL, None, "whole number"),
        (SMALL, 10**400, "whole number"),
        (Annotated[float, Between(0.5, 2)], float("nan"), "from 0.5 to 2"),
        (Annotated[float, Between(0.5, 2)], 10**400, "from 0.5 to 2"),
        (Annotated[float, Between(0.5, 2)], False, "a number"),
        (bool, 1, "True or False"),
        (Literal["identity", "b"], "identify", "did you mean 'identity'"),
        (Literal["a", "b"], ["a"], "choose one of"),
        (Annotated[Sequence[SMALL], Between(0, 2)], [1, 2, 3], "has 3 entries"),
        (Annotated[Sequence[SMALL], Between(0, 2)], "12", "a list or a tuple"),
        (Annotated[Sequence[SMALL], Between(0, 2)], [1, 99], "entry 1 of argument is 99"),
    ],
)
def test_other_values_are_refused_with_the_rule(annotation, value, message):
    with pytest.raises(ModelError, match=message):
        checked("argument", annotation, value)


def test_long_values_are_shortened_in_the_error():
    with pytest.raises(ModelError) as caught:
        checked("argument", Literal["a"], "x" * 10**6)
    assert len(str(caught.value)) < 200


def test_an_annotation_that_cannot_be_checked_is_a_mistake_of_the_builder():
    with pytest.raises(TypeError, match="cannot be checked"):
        checked("argument", dict, {})
