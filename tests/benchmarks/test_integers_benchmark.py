"""What is said of the speed of integers follows from the rows that were measured."""

import pytest
from benchmark_scripts import opened


@pytest.fixture(scope="module")
def integers():
    return opened("integers")


def rows():
    for runtime, factor in (("openvino", 4.0), ("onnxruntime", 0.5)):
        for bits in (4, 7, 8):
            for batch in (1, 32):
                speed = factor + batch / 100 + (bits == 8)
                yield {
                    "runtime": runtime,
                    "bits": bits,
                    "batch": batch,
                    "speedup": speed,
                    "low": speed - 0.1,
                    "high": speed + 0.1,
                    "float32_ms": 10.0,
                    "integers_ms": 10.0 / speed,
                }


def test_the_summary_takes_the_best_runtime_at_seven_bits(integers):
    found = integers.summary({"net": "resnet18", "rows": list(rows())})
    assert found["runtimes"] == ["openvino", "openvino"]
    assert (found["int8_speedup_b1"], found["int8_speedup_b32"]) == (4.01, 4.32)


def test_the_table_has_a_line_for_each_case(integers):
    lines = integers.table({"rows": list(rows())}).splitlines()
    assert len(lines) == 2 + 12
    assert lines[2] == "| openvino | 4 | 1 | 10.0 | 2.5 | 4.01 (3.91 to 4.11) |"


def test_kept_figures_are_of_every_case_and_the_outputs_agreed(integers):
    kept = integers.kept()
    cases = {(row["runtime"], row["bits"], row["batch"]) for row in kept["rows"]}
    wanted = {(r, n, b) for r in integers.RUNTIMES[:2] for n in (4, 7, 8) for b in (1, 32)}
    assert wanted <= cases
    ours = [row for row in kept["rows"] if row["runtime"] != integers.TORCHAO]
    assert all(row["difference"] < 0.02 for row in ours)  # torchao rounds a net by itself


def test_the_best_runtime_is_the_fastest_not_that_of_the_slowest_floats(integers):
    slow = [{**row, "runtime": "slow"} for row in rows() if row["runtime"] == "openvino"]
    for row in slow:
        row.update(speedup=50.0, float32_ms=500.0)
        row["integers_ms"] = 10.0
    found = integers.summary({"net": "resnet18", "rows": [*slow, *rows()]})
    assert found["runtimes"] == ["openvino", "openvino"]
