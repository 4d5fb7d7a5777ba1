"""LoadGen: the MLCommons load generator in front of the engine.

Its scenarios, not an MLPerf result: the net, the data and the rules of a submission are others.
"""

from __future__ import annotations

import array
import re
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import nestling
from nestling.errors import ModelError
from serving_parts import rivals
from serving_parts.menus import Served
from serving_parts.scenarios import Scenario
from serving_parts.trial import held

NOTE = "LoadGen scenario, not an MLPerf result"
QUERIES = 2010  # with at most 10 late ones the p99 is held with 99 % confidence
SINGLE = 500
LONGEST_MS = 60_000


def server(scenario: Scenario, served: Served, queries: int = QUERIES) -> dict[str, Any]:
    """Return the result of LoadGen's Server scenario (Poisson arrivals) with our governor.

    Raises:
        ModelError: the package is not installed.
    """
    lg = _package()
    forecast = nestling.engine.figures.forecast(served.model)
    limit, rate = scenario.objective(forecast), scenario.rate(forecast)
    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.Server
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(limit * 1e6)
    settings.server_target_latency_percentile = scenario.percentile / 100
    settings.min_query_count = queries
    settings.max_query_count = queries
    found = _tested(lg, settings, served, scenario, limit)
    return {**found, "scenario": "loadgen-server", "load": scenario.name, "rate": rate}


def single_stream(scenario: Scenario, served: Served, queries: int = SINGLE) -> dict[str, Any]:
    """Return the result of LoadGen's SingleStream scenario: one request after the other."""
    lg = _package()
    forecast = nestling.engine.figures.forecast(served.model)
    limit = scenario.objective(forecast)
    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.SingleStream
    settings.single_stream_expected_latency_ns = int(limit * 1e6)
    settings.min_query_count = queries
    settings.max_query_count = queries
    found = _tested(lg, settings, served, scenario, limit)
    return {**found, "scenario": "loadgen-single-stream", "load": scenario.name}


def _tested(
    lg: Any, settings: Any, served: Served, scenario: Scenario, limit: float
) -> dict[str, Any]:
    """Run a test and return LoadGen's own figures beside ours."""
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = 0
    settings.max_duration_ms = LONGEST_MS
    replies: list[nestling.engine.Reply] = []
    made = rivals.made(rivals.OURS, limit, scenario.percentile)
    with nestling.Engine(served.model, made) as engine, tempfile.TemporaryDirectory() as folder:

        def issue(samples: Any) -> None:
            for sample in samples:
                reply = engine.submit(served.examples[sample.index])
                replies.append(reply)
                reply.add_done_callback(_completion(lg, sample.id))

        count = len(served.examples)
        sut = lg.ConstructSUT(issue, lambda: None)
        qsl = lg.ConstructQSL(count, count, lambda _: None, lambda _: None)
        output = lg.LogOutputSettings()
        output.outdir = folder
        output.copy_summary_to_stdout = False
        logs = lg.LogSettings()
        logs.log_output = output
        logs.enable_trace = False
        lg.StartTestWithLogSettings(sut, qsl, settings, logs)
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
    took = [reply.ms for reply in replies if not reply.exception()]
    late = len(replies) - sum(ms <= limit for ms in took)
    return {
        "policy": rivals.OURS,
        "objective_ms": limit,
        "queries": len(replies),
        "late": late,
        "attained": 1 - late / len(replies),
        "held": held(len(replies), late),
        "mean_accuracy": sum(served.accuracy[r.entry] for r in replies if r.entry) / len(took),
        "p99_ms": _figure(summary, "99.00 percentile latency (ns)"),
        "p90_ms": _figure(summary, "90.00 percentile latency (ns)"),
        "loadgen": _word(summary, "Result is"),
        "note": NOTE,
    }


def _completion(lg: Any, number: int) -> Any:
    """Return what tells LoadGen that a request was answered."""
    empty = array.array("B", b"\0")
    address, length = empty.buffer_info()

    def complete(_: Future[Any]) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(number, address, length)])

    return complete


def _figure(summary: str, name: str) -> float | None:
    """Return a figure of LoadGen's summary, in milliseconds."""
    found = re.search(rf"^{re.escape(name)}\s*:\s*(\d+)", summary, re.MULTILINE)
    return None if found is None else int(found[1]) / 1e6


def _word(summary: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(\w+)", summary, re.MULTILINE)
    return None if found is None else found[1]


def _package() -> Any:
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise ModelError(
            "this part needs MLCommons' load generator; run `pip install mlcommons-loadgen`"
        ) from error
    return mlperf_loadgen
