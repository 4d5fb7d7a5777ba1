"""The documentation is true: generated parts are up to date, and examples run."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

import nestling

ROOT = Path(__file__).resolve().parent.parent


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert loaded(ROOT / "docs" / "generate.py").main() == 0, capsys.readouterr().err


def test_the_example_of_an_own_model_runs(capsys):
    loaded(ROOT / "examples" / "own_model.py").main(epochs=1)
    assert "right" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/models.md", "docs/bits.md"])
def test_python_blocks_parse(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, page, "exec")


def test_the_listing_of_the_guide_runs(tmp_path):
    """The calls that the guide shows on a loaded model, on a tiny net."""
    net = nestling.Supernet(nestling.models.mlp(64, (32,)), torch.randn(1, 64))
    menu = nestling.make_menu(
        net, [net.space.spec(width=w) for w in (1.0, 0.5)], calibrate=[torch.randn(4, 64)]
    )
    model = nestling.load(menu.save(tmp_path / "model.nest"))
    x = torch.randn(3, 64)
    for budget in ({}, {"fraction": 0.6}, {"macs": 5e6}, {"params": 1e5}, {"bytes": 5e5}):
        assert model(x, **budget).shape == (3, 10)
    assert model(x[:1], latency_ms=1e3).shape == (1, 10)
    assert model.choose(latency_ms=1e3).name in {entry.name for entry in menu}


def test_the_page_on_own_models_runs(capsys):
    """Its listings run one after the other; what is shown as text is what was printed before."""
    page = (ROOT / "docs" / "models.md").read_text()
    blocks = re.findall(r"```(python|text)\n(.*?)```", page, re.DOTALL)
    assert {kind for kind, _ in blocks} == {"python", "text"}
    namespace = {"__name__": "page"}
    try:
        for kind, block in blocks:
            if kind == "text":
                assert capsys.readouterr().out == block
            else:
                torch.manual_seed(0)
                exec(compile(block, "docs/models.md", "exec"), namespace)
    finally:
        known = nestling.axes.rules.RULES.pop("gated_norm", None)
    assert known is not None
    with pytest.raises(nestling.ModelError, match="no rule for the op 'gated_norm'"):
        nestling.Supernet(namespace["Gated"](), torch.randn(4, 8))


@pytest.mark.usefixtures("unmeasured")
def test_the_page_on_bits_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "bits.md").read_text()
    model = nestling.models.resnet20(width=8)
    net = None
    namespace = {"model": model, "images": torch.randn(2, 3, 8, 8)}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/bits.md", "exec"), namespace)
        net = namespace["net"]
    assert net.space.bitops({"layer1.0.conv1.bits": 2}) < net.space.bitops({})
    assert [entry.name for entry in nestling.load("few.nest").menu] == ["small", "tiny"]


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda path: path.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
