import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from nestling.errors import FileError
from nestling.report import pareto, skyline


def pixels(path):
    from matplotlib.image import imread

    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return imread(io.BytesIO(data), format="png")


def has_color(image, color):
    wanted = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    return bool(np.any(np.all(np.abs(image[..., :3] - wanted) < 0.01, axis=-1)))


@pytest.mark.parametrize("draw", [pareto, skyline])
@pytest.mark.parametrize("menu", ["small", "awkward"])
def test_a_picture_is_made(draw, menu, request, tmp_path):
    path = draw(request.getfixturevalue(menu), tmp_path / "p.png")
    image = pixels(path)
    assert 1100 <= image.shape[1] <= 2560
    assert 500 <= image.shape[0] <= 4000
    assert 20_000 < path.stat().st_size < 1_000_000
    assert has_color(image, "#0072B2")
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


def test_pareto_draws_the_ideal_line_only_with_latencies(small, tmp_path):
    timed = pixels(pareto(small, tmp_path / "timed.png"))
    rows = [replace(row, latency=None) for row in small.rows]
    untimed = pixels(pareto(replace(small, rows=rows), tmp_path / "untimed.png"))
    assert has_color(timed, "#D55E00")
    assert not has_color(untimed, "#D55E00")


def test_pareto_without_accuracies_says_so(small, tmp_path):
    rows = [replace(row, accuracy=None) for row in small.rows]
    image = pixels(pareto(replace(small, rows=rows), tmp_path / "p.png"))
    assert not has_color(image, "#0072B2")


def test_pareto_spans_a_wide_range(small, tmp_path):
    far = replace(small.rows[-1], latency=(0.011, 0.010, 0.012), macs=10)
    pareto(replace(small, rows=[small.full, far]), tmp_path / "p.png")


@pytest.mark.parametrize("draw", [pareto, skyline])
def test_the_full_net_alone_is_drawn(draw, small, tmp_path):
    page = replace(small, rows=[small.full], sizes={"conv1": 16})
    pixels(draw(page, tmp_path / "p.png"))


def test_skyline_keeps_many_axes_within_its_width(small, tmp_path):
    rows = [replace(row, counts={}) for row in small.rows[:3]]
    page = replace(small, rows=rows, sizes={f"axis{n}": 8 for n in range(200)})
    assert pixels(skyline(page, tmp_path / "p.png")).shape[1] == 2560


@pytest.mark.parametrize("draw", [pareto, skyline])
def test_a_missing_folder_is_a_file_error(draw, small, tmp_path):
    with pytest.raises(FileError, match=r"make the folder .* first"):
        draw(small, tmp_path / "nowhere" / "p.png")


def test_a_failed_write_leaves_nothing_behind(small, tmp_path):
    goal = tmp_path / "p.png"
    goal.mkdir()
    with pytest.raises(FileError, match="not a regular file; choose another name"):
        pareto(small, goal)
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


def test_importing_the_report_loads_no_matplotlib_and_drawing_no_pyplot(tmp_path):
    code = (
        "import sys, nestling.report as r\n"
        "assert 'matplotlib' not in sys.modules\n"
        "row = r.Row('full', 9, 1, 1, 0.5, None, True, {})\n"
        "page = r.Page('t', [row], {'a': 4}, 'accuracy', {}, {})\n"
        f"r.pareto(page, {str(tmp_path / 'p.png')!r})\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_machine_line_fits(small):
    from nestling.report.pareto import _machine

    machine = {"processor": "x" * 99, "cores": "2", "threads": "1", "torch": "2.9.0+cu130"}
    page = replace(small, machine={**machine, "system": "y" * 99, "gpu": "NVIDIA H200"})
    line = _machine(page)
    assert line.endswith("NVIDIA H200, cores 2, threads 2, torch 2.9.0+cu130, batch 1")
    assert len(f"Measured on: {line}") <= 118
    assert _machine(small) == "threads 2, batch 1"
