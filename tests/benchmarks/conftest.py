"""The benchmarks in reach, and a few cases that are trained once for all tests of this folder."""

import sys
from pathlib import Path

import pytest

import nestling

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent.parent / "benchmarks"), str(HERE)]

from benchmark_scripts import opened  # noqa: E402
from comparison import protocols  # noqa: E402
from comparison.cases import BASELINE, LONG, OURS, PLAIN, UNIFORM_SHAPE, Case, Shape  # noqa: E402
from made_results import TINY, TWO, run, small  # noqa: E402


@pytest.fixture(scope="package", autouse=True)
def small_net():
    """A net of the comparison that trains in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(protocols.NETS, "small", protocols.Net("small", step=2))
        patch.setattr(nestling.models, "small", small, raising=False)
        patch.setenv("NESTLING_COMMIT", "abc")  # whoever edits a file meanwhile
        yield


@pytest.fixture(scope="package")
def accuracy():
    """The script, under another name than the metric."""
    return opened("accuracy")


@pytest.fixture(scope="package")
def given():
    return protocols.material(TINY)


@pytest.fixture(scope="package")
def trained(given, tmp_path_factory):
    """Some cases of a tiny protocol, trained one after the other."""
    folder = tmp_path_factory.mktemp("trained")
    every = [
        Case(PLAIN, "individual", shapes=(Shape(UNIFORM_SHAPE, 1.0),)),
        Case(BASELINE, "uniform", {"fractions": [1.0, 0.3]}),
        Case(OURS, "progressive", TWO),
        Case("alone progressive 50", "individual", shapes=(Shape(OURS, 0.5),)),
        Case(LONG, "uniform", {"fractions": [1.0, 0.3]}, equals=(BASELINE,)),
    ]
    for case in every:
        run(case, given, folder, every=every)
    return folder, every
