"""Scenarios: a shape of load, at a share of what the largest or the smallest subnet can do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nestling.governor import Forecast

LARGEST, SMALLEST = "largest", "smallest"


@dataclass(frozen=True)
class Scenario:
    """One load and one objective.

    Attributes:
        name: of the scenario.
        shape: of the arrivals, see `nestling.engine.arrivals`.
        share: of the capacity.
        of: whose capacity: the largest or the smallest subnet's.
        times: the objective, in times of the largest subnet's median for one example.
        percentile: of the requests that are to be within it.
    """

    name: str
    shape: str
    share: float
    of: str
    times: float
    percentile: float = 99.0

    def scaled(self, factor: float) -> Scenario:
        """Return the scenario with an objective that is so many times as loose."""
        return replace(self, times=self.times * factor)

    def rate(self, forecast: Forecast) -> float:
        """Return the requests a second."""
        rung = forecast.top if self.of == LARGEST else 0
        return self.share * forecast.capacity(rung)

    def objective(self, forecast: Forecast) -> float:
        """Return the objective in milliseconds, to two digits."""
        return float(f"{self.times * forecast.times[forecast.top][1]:.2g}")


SCENARIOS = (
    Scenario("poisson-70-largest-tight", "poisson", 0.7, LARGEST, 3.0),
    Scenario("poisson-70-largest", "poisson", 0.7, LARGEST, 5.0),
    Scenario("poisson-70-largest-loose", "poisson", 0.7, LARGEST, 10.0),
    Scenario("poisson-70-smallest", "poisson", 0.7, SMALLEST, 5.0),
    Scenario("bursty4-70-largest", "bursty4", 0.7, LARGEST, 5.0),
    Scenario("bursty4-40-smallest", "bursty4", 0.4, SMALLEST, 5.0),
    Scenario("bursty8-40-smallest", "bursty8", 0.4, SMALLEST, 5.0),
    Scenario("step-20-smallest", "step", 0.2, SMALLEST, 5.0),
    Scenario("trace-25-smallest", "trace", 0.25, SMALLEST, 5.0),
)
