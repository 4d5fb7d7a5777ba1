"""The line of the user's code that needs a full size is told, and no line of torch or of ours."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import nestling
from nestling.axes import location, tracer
from nestling.axes.location import line_of, line_of_run


def caught(function):
    try:
        function()
    except RuntimeError as error:
        return line_of(error)
    raise AssertionError


def test_the_innermost_line_of_the_user():
    line = inspect.currentframe().f_lineno + 1
    assert caught(lambda: torch.zeros(3).view(2)) == f"{Path(__file__).name}:{line}"
    layer = nn.Linear(3, 4)  # it fails inside torch's own Python code
    assert caught(lambda: layer(torch.zeros(2, 5))) == f"{Path(__file__).name}:{line + 2}"


def test_an_error_that_was_never_raised_has_no_line():
    assert line_of(RuntimeError()) == ""


class Strict(nn.Module):
    """Refuses another width than its own."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 4)
        self.free = nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 4))

    def forward(self, x):
        hidden = self.one(x)
        if hidden.shape[-1] != len("sixteen letters!"):
            raise ValueError("not wide enough")
        return self.two(hidden) + self.free(x)


def test_the_report_names_the_line_that_needs_the_full_size():
    lines, first = inspect.getsourcelines(Strict)
    line = first + next(n for n, text in enumerate(lines) if "raise" in text)
    net = nestling.Supernet(Strict(), torch.randn(2, 6))
    report = " ".join(str(net.space).split())
    where = f"{Path(__file__).name}:{line}"
    assert f"the code needs the full size: ValueError: not wide enough ({where})" in report
    assert "-> read sizes from tensors" in report
    assert set(net.space.axes) == {"free.0"}


class Branching(nn.Module):
    """Goes one way or the other by the values of its hidden units."""

    def __init__(self, activation=None):
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 4)
        nn.init.constant_(self.one.bias, 10.0)
        self.activation = activation

    def forward(self, x):
        y = self.one(x)
        if float(y.mean(0).sum()) > 140:
            return self.two(y.relu())
        return self.two(self.activation(y) if self.activation else y.sin())


def test_a_branch_on_values_is_told_with_its_line():
    code, first = inspect.getsourcelines(Branching)
    line = first + len(code) - 1
    with pytest.raises(nestling.ModelError) as found:
        nestling.Supernet(Branching(), torch.ones(2, 6))
    assert f"(it runs 'sin at {Path(__file__).name}:{line}')" in str(found.value)
    assert "a branch on values" in str(found.value)


LOOK = """
class Look(Mode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise Stop(line_of_run())
"""


def test_a_line_of_what_calls_us_is_not_the_model_s():
    """A module of torch's that is run by us has no line of the user's, though he calls us."""

    class Stop(Exception):
        pass

    names = {"Mode": TorchDispatchMode, "Stop": Stop, "line_of_run": line_of_run}
    exec(compile(LOOK, location.__file__, "exec"), names)  # as if it were one of our own modes
    for module, expected in ((nn.Linear(2, 2), ""), (Strict(), Path(__file__).name)):
        with pytest.raises(Stop) as found:
            tracer.run(module, (torch.ones(1, 6 if expected else 2),), {}, names["Look"]())
        assert str(found.value).partition(":")[0] == expected
