"""The coverage benchmark's own logic: right nets pass, wrong ones do not."""

import importlib.util
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import nestling
from nestling.extent import Along, Fixed, Product

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(FOLDER))

import checks  # noqa: E402
import masked  # noqa: E402
import zoo  # noqa: E402

KEYS = [
    "architectures",
    "passed",
    "min_elastic_share",
    "median_elastic_share",
    "rival_passed",
    "discovery_vit_b_s",
    "discovery_llama_s",
]
PROMISED = (
    *("vit", "swin", "deit", "convnext", "bert", "gpt2", "llama", "mistral", "qwen2", "qwen2-moe"),
    *("t5", "mamba", "whisper", "clip", "detr", "segformer"),
)


@pytest.fixture(scope="module")
def coverage():
    """The script, under another name than the package `coverage`."""
    spec = importlib.util.spec_from_file_location("coverage_benchmark", FOLDER / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mlp():
    torch.manual_seed(0)
    layers = nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)
    return zoo.Case(nn.Sequential(*layers), (torch.randn(2, 16),))


def subject(change=lambda space: space):
    case = mlp()
    net = nestling.Supernet(case.model, *case.args)
    damaged = nestling.Supernet.restore(
        net.model, change(net.space), net.orders, net.private, net.signature
    )
    return checks.Subject(case, damaged)


def row(**more):
    usual = {
        "parameters": 100,
        "failures": [],
        "share": 1.0,
        "axes": 2,
        "axes_checked": 2,
        "axes_by": {"weights": 2},
        "axes_wrong": [],
        "unnamed": [],
        "unmoved": [],
        "reasons": {},
        "joint": 3,
        "joint_wrong": [],
        "macs_equal": 4,
        "macs_of": 4,
        "macs_ratio": 1.0,
        "quarter_right": True,
        "controls": 2,
        "caught": 2,
        "missed": [],
        "discovery_s": 0.1,
        "seconds": 1.0,
        "rival": {"ok": True, "left": 0.25, "note": "", "hints": ""},
    }
    return {**usual, **more}


# -- the checks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["traps/many-outputs", "plain/lstm-cell"])
def test_tiny_models_pass(name):
    found = checks.check(zoo.make(name))
    assert found["failures"] == []
    assert found["share"] > 0.99
    assert found["axes_by"] == {"weights": found["axes"]}
    assert found["joint_by"] == {"weights": checks.JOINT}
    assert found["gradient_difference"] < 1e-12
    assert found["macs_equal"] == found["macs_of"] == checks.JOINT + 1
    assert found["caught"] == found["controls"] > 0
    assert found["quarter_file"] == pytest.approx(found["quarter_params"], abs=0.15)


class Pairs(nn.Module):
    """Scores of all pairs of examples, and a product of weights that is made once."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8)
        self.scale = nn.Parameter(torch.randn(8, 5))

    def forward(self, x):
        return (self.left(x) @ self.right(x).t()) * (self.scale.t() @ self.scale).mean()


def test_what_an_example_costs_in_a_batch():
    for batch in (1, 2, 4):
        x = torch.randn(batch, 6)
        once, each, pair = 5 * 8 * 5, 2 * 6 * 8, 8
        net = nestling.Supernet(Pairs(), x, step=2)
        assert checks._for_one(net.model, ((x,), {})) == once + each + batch * pair
        found = checks.macs(checks.Subject(zoo.Case(net.model, (x,)), net), random.Random(0))
        assert found["macs"] == once + each + batch * pair
        assert found["macs_equal"] == found["macs_of"]


class Grouped(nn.Module):
    def forward(self, one, other, ends):
        return torch._grouped_mm(one, other, offs=ends)


@pytest.mark.parametrize(
    ("one", "other", "ends"),
    [
        ((12, 8), (3, 8, 16), [4, 4, 12]),  # rows in groups
        ((8, 12), (12, 16), [4, 4, 12]),  # inner entries in groups
        ((3, 8, 4), (4, 12), [4, 4, 12]),  # columns in groups
        ((3, 8, 4), (3, 4, 16), None),
    ],
)
def test_grouped_products_are_counted(one, other, ends):
    """As the products of the groups are, one by one."""
    a, b = torch.randn(one), torch.randn(other)
    starts = [0, *ends[:-1]] if ends else [0] * 3
    expected = 0
    for group, (start, end) in enumerate(zip(starts, ends or [0] * 3, strict=True)):
        rows = a[group] if a.dim() == 3 else a[start:end] if b.dim() == 3 else a[:, start:end]
        columns = b[group] if b.dim() == 3 else b[start:end] if a.dim() == 2 else b[:, start:end]
        expected += rows.shape[0] * rows.shape[1] * columns.shape[1]
    offsets = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    assert checks._counted(Grouped(), (a, b, offsets), {}) == expected


class FrozenBatchNorm(nn.Module):
    """Batch norm whose scale and shift are no parameters, as detectors have in their backbones."""

    def __init__(self, size):
        super().__init__()
        for name in ("weight", "bias", "running_mean"):
            self.register_buffer(name, torch.rand(size))

    def forward(self, x):
        shift = self.bias - self.running_mean * self.weight
        return x * self.weight.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


@pytest.mark.parametrize("width", [8, 5])
def test_frozen_norms_are_masked(width):
    """Pictures are as wide as there are channels, or not."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), FrozenBatchNorm(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    case = zoo.Case(nn.Sequential(*layers), (torch.randn(2, 3, 8, width),))
    net = nestling.Supernet(case.model, *case.args, step=2)
    found = checks.compare(checks.Subject(case, net), {"0": 4})
    assert found.by == "weights"
    assert found.moved


def test_equal_subnets_are_told_from_damaged_ones():
    """A bias that follows the wrong axis keeps as many entries, but not the right ones."""
    spec = {"0": 32, "2": 16}
    assert checks.compare(subject(), spec).by == "weights"

    def wrong_bias(space):
        layout = space.layouts["0.bias"]
        assert layout.extents == (Along("0", 64),)
        other = replace(layout, extents=(Product((Fixed(2), Along("2", 32))),))
        return replace(space, layouts={**space.layouts, "0.bias": other})

    found = checks.compare(subject(wrong_bias), spec)
    assert not found.by
    assert found.outputs > 1e-3


def test_a_subnet_that_does_not_run_is_wrong():
    damaged = subject(lambda space: checks.damage(space, "0", "2.weight", 1))
    found = checks.compare(damaged, {"0": 32})
    assert not found.by
    assert "RuntimeError" in found.wrong


def test_the_control_notices_a_proof_that_refuses_nothing(monkeypatch):
    """If every axis survived, damaged ones too, the row would fail."""
    monkeypatch.setattr(checks, "_survives", lambda *given: True)
    found = checks.control(subject(), random.Random(0))
    assert (found["controls"], found["caught"]) == (2, 0)
    missed = checks.failures(row(controls=2, caught=0, missed=found["missed"]))
    assert missed == [f"damage not caught: {found['missed'][0]}"]


def test_wrong_figures_of_the_space_are_noticed():
    """Work that is counted twice, and a file that keeps a whole storage."""

    def twice(space):
        return replace(space, works=(*space.works, *space.works))

    found = checks.macs(subject(twice), random.Random(0))
    assert (found["macs_equal"], found["macs_ratio"]) == (0, pytest.approx(2))
    assert checks.macs(subject(), random.Random(0))["macs_equal"] == 4
    assert checks.files(subject(), random.Random(0))["quarter_right"]


def test_a_file_that_holds_whole_storages_is_noticed(monkeypatch):
    monkeypatch.setattr(nestling, "pack", lambda subnet: _leaky(subnet))
    assert not checks.files(subject(), random.Random(0))["quarter_right"]


def _leaky(subnet):
    """A stand-alone net whose tensors are views of much larger ones."""
    plain = nn.Module()
    for number, parameter in enumerate(subnet.parameters()):
        storage = torch.zeros(100_000)
        view = storage[: parameter.numel()].view(parameter.shape)
        plain.register_parameter(f"p{number}", nn.Parameter(view))
    return plain


def test_reasons_are_asked_for_where_little_is_elastic():
    kept = checks.failures(row(share=0.5, unnamed=[]))
    assert kept == []
    assert "no reason" in checks.failures(row(share=0.5, unnamed=["a"]))[0]


def test_the_report_counts_what_has_no_reason():
    space = subject().net.space
    frozen = space.without("0", nestling.spec.Frozen("", 0, 0, "mm", "", "it is too short"))
    found = checks.report(frozen)
    assert found["reasons"]["it is too short (mm)"] == 64  # of the bias; the weight has an input
    assert found["share"] == pytest.approx(
        2176 / 3267
    )  # the second layer, and the weight of the third
    assert found["unnamed"] == []
    silent = checks.report(replace(frozen, frozen=()))
    assert set(silent["unnamed"]) == {"0.weight", "0.bias", "4.bias"}


def test_norms_work_on_the_kept_units():
    """The masked model of a layer norm is the norm over what is kept, and its gradient too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 4)).double().eval()
    x = torch.randn(3, 8, dtype=torch.float64)
    net = nestling.Supernet(model, x)
    kept = {next(iter(net.space.axes)): 16}
    value, leaves = masked.run_masked(net.model, net.space, kept, (x,), {})
    first, norm, last = net.model
    hidden = nn.functional.layer_norm(
        x @ first.weight[:16].T + first.bias[:16], (16,), norm.weight[:16], norm.bias[:16]
    )
    expected = hidden @ last.weight[:, :16].T + last.bias
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(leaves["0.weight"].grad, first.weight.grad)
    assert leaves["0.weight"].grad[:16].abs().min() > 0


# -- the zoo -----------------------------------------------------------------------------------


def test_the_zoo_has_what_the_benchmark_promises():
    names = zoo.ARCHITECTURES
    assert len([name for name in names if not names[name].full]) >= 45
    for name in nestling.models.names():
        assert f"nestling/{name}" in names
    for name in PROMISED:
        assert f"transformers/{name}" in names


def test_a_missing_library_is_told_not_raised(monkeypatch, coverage):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "missing" in coverage.measure("timm/vit")


def test_inputs_and_weights_are_the_same_at_every_call():
    one, other = zoo.make("traps/many-outputs"), zoo.make("traps/many-outputs")
    assert torch.equal(one.args[0], other.args[0])
    assert torch.equal(one.model.body[0].weight, other.model.body[0].weight)


# -- the command -------------------------------------------------------------------------------


def test_the_summary_is_one_line_of_json(tmp_path, coverage):
    rows = {
        "a/one": row(),
        "a/two": row(share=0.5, rival={"ok": False, "left": 1.0, "note": "no", "hints": ""}),
        "a/three": {"failures": ["RuntimeError: no"]},
        "a/four": {"missing": "no such library"},
        "transformers/llama-full": {"discovery_s": 1.25, "discovery_cpu_s": 1.0},
    }
    path = tmp_path / "kept.json"
    path.write_text(json.dumps({"rows": rows}))
    done = subprocess.run(
        [sys.executable, str(FOLDER / "coverage.py"), "--summary", "--results", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert list(found) == KEYS
    assert found == coverage.summary({"rows": rows})
    assert list(found.values()) == [3, 2, 0.0, 0.5, 1, None, 1.25]


def test_the_table_shows_failures_and_reasons(coverage):
    rows = {
        "a/one": row(share=0.5, reasons={"it is odd (view)": 5}),
        "a/two": {"failures": ["RuntimeError: a | b"], "parameters": 7},
        "a/three": {"missing": "no such library"},
    }
    text = coverage.table({"rows": rows})
    lines = text.splitlines()
    assert "50.0%" in lines[2]
    assert "it is odd (view)" in lines[2]
    assert "RuntimeError: a / b" in lines[3]
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "a/three (no such library)" in text


def test_a_process_that_takes_too_long_is_stopped(coverage, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(coverage, "PATIENCE", 1)
    assert coverage._apart(["-c", "sleep 60"], 0.2) is None
    monkeypatch.setattr(coverage, "PATIENCE", 100)
    assert coverage._apart(["-c", "while :; do :; done"], 1) is None
    assert coverage._apart(["-c", "echo loading; echo '{\"ok\": true}'"], 9) == {"ok": True}
    assert coverage._apart(["-c", "echo gone >&2; exit 1"], 9)["failures"] == ["gone"]


def test_the_rival_prunes_what_it_can(coverage):
    pytest.importorskip("torch_pruning")
    found = coverage.rival_apart("nestling/mlp", 60)
    assert found["ok"], found["note"]
    assert 0.1 < found["left"] < 0.7
