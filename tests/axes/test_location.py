"""The line of the user's code that needs a full size is told, and no line of torch or of ours."""

import inspect
from pathlib import Path

import torch
from torch import nn

import nestling
from nestling.axes.location import line_of


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
