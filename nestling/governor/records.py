"""Records: what the governor is told, what it remembers, and what it answers; all read-only.

What a step makes are tuples, which are made in a quarter of a frozen dataclass's time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from nestling.governor.forecast import Forecast

# (rung, factor on the profile's times for a usual call, milliseconds of a slow call over a usual
# one, arrivals a millisecond, factor on the profile's joules) -> whether the rung could go on like
# this for good, and how many examples it may run at a time
Judge: TypeAlias = Callable[[int, float, float, float, float], tuple[bool, int]]
# (rung, factor on its times for a usual call, milliseconds of a slow call over that, factor on the
# times of the least rung, waiting, milliseconds that the next one has waited, arrivals a
# millisecond) -> how many examples it may run now; 0 where it must not run, for the sake of those
# that wait
Relief: TypeAlias = Callable[[int, float, float, float, int, float, float], int]


class Reading(NamedTuple):
    """What was seen since the last step. What is no sensible number counts as not seen.

    Attributes:
        time: now, in seconds of a clock that does not jump.
        queue: requests that wait.
        waited_ms: milliseconds that the next of them has waited.
        arrived: requests that came since the last reading.
        rung: of the entry that ran last.
        batch: examples that it ran; 0 if nothing ran.
        took_ms: milliseconds that it took.
        answered: requests that ended since the last reading.
        late: of these, the ones that took longer than the policy's limit, or expired.
        joules: that were measured for the last batch; negative where nothing can be measured.
    """

    time: float
    queue: int = 0
    waited_ms: float = 0.0
    arrived: int = 0
    rung: int = 0
    batch: int = 0
    took_ms: float = 0.0
    answered: int = 0
    late: int = 0
    joules: float = -1.0


@dataclass(frozen=True)
class Policy:
    """What the governor holds, ready to judge the entries of a menu.

    Attributes:
        goal: what is held, in words.
        forecast: what the entries cost.
        judge: whether a rung could go on for good with what arrives.
        relief: whether a rung may run now with what waits; None where the queue does not matter.
        hold: seconds for which a better entry must fit before it is chosen.
        limit_ms: milliseconds after which a request is late; None where there is no such limit.
        percentile: share of requests that are to be within it, 0 to 100.
        least: the lowest rung that it ever chooses.
        gap: most seconds between two steps that count, since clocks may jump.
        moment: for what changes with the time alone: seconds -> the policy that holds then.
    """

    goal: str
    forecast: Forecast
    judge: Judge
    relief: Relief | None = None
    hold: float = 1.0
    limit_ms: float | None = None
    percentile: float = 99.0
    least: int = 0
    gap: float = 10.0
    moment: Callable[[float], Policy] | None = None


class State(NamedTuple):
    """What the governor remembers between two steps.

    Attributes:
        policy: that is followed.
        rung: that was chosen.
        steady: the one that fits what arrives; `rung` is below it while the queue is too long.
        clock: the last reading's time that made sense; None before the first.
        time: seconds that have passed, without jumps of the clock.
        rate: arrivals a millisecond, smoothed over a hold.
        surge: the same over a fifth of a hold, for what comes while the queue is long.
        pace: how many times as long as profiled all calls take here now.
        factors: by rung, how many times as long as that its calls take.
        excess: milliseconds that the slow ones take over usual ones.
        caution: at least 1; grows where requests are late although the forecast said otherwise.
        ran: batches since the steady rung changed.
        better: the best rung that fitted throughout since `calm`; equal to `steady` if none.
        calm: since when a better rung fits.
        raised: when the governor last went up.
        patience: how many times the usual hold it waits before it goes up.
        until: time before which it does not go up.
        spent: how many times as much energy as profiled an example takes.
        ratios: by rung, how many times as long as forecast its last call took.
    """

    policy: Policy
    rung: int
    steady: int
    clock: float | None
    time: float
    rate: float
    surge: float
    pace: float
    factors: tuple[float, ...]
    excess: float
    caution: float
    ran: int
    better: int
    calm: float
    raised: float
    patience: float
    until: float
    spent: float
    ratios: tuple[float, ...]

    def usual_ms(self, rung: int, batch: int) -> float:
        """Return what a call usually takes here now; of the largest batch that is known at most."""
        times = self.policy.forecast.times[rung]
        return times[min(batch, len(times) - 1)] * self.pace * self.factors[rung]


class Choice(NamedTuple):
    """What runs next, and why.

    Attributes:
        rung: of the entry.
        entry: its name.
        batch: examples that it may run at most.
        before: the entry of the choice before.
        cause: in short: start, stay, down, up, wait (a better one fits, but not for long enough
            yet), relief (a faster one until the queue is shorter), back (the queue is shorter),
            overload (not even the fastest fits).
        policy: that decided: of a schedule, the one that holds now.
        reading: what was seen.
        state: what was known.
    """

    rung: int
    entry: str
    batch: int
    before: str
    cause: str
    policy: Policy
    reading: Reading
    state: State

    @property
    def reason(self) -> str:
        """The reason in words."""
        state = self.state
        factor = state.pace * state.factors[self.rung]
        seen = (
            f"{self.reading.queue} waiting, the next for {self.reading.waited_ms:.1f} ms, "
            f"{1000 * max(state.rate, state.surge):.0f} a second, calls take {factor:.2f} times "
            f"the profile (slow ones {state.excess:.1f} ms more), caution {state.caution:.2f}"
        )
        told = {
            "start": f"{self.entry} to begin with",
            "stay": f"{self.entry} fits",
            "down": f"{self.entry} fits, and better ones no longer do",
            "up": f"{self.entry} has fitted for long enough after {self.before}",
            "wait": (
                f"{self.entry} fits; {state.policy.forecast.names[state.better]} would too, but "
                "not for long enough yet"
            ),
            "relief": (
                f"{state.policy.forecast.names[state.steady]} would keep those waiting too long, "
                f"{self.entry} runs until the queue is shorter"
            ),
            "back": f"{self.entry} again, since the queue is shorter",
            "overload": f"not even {self.entry}, the fastest, fits; it runs",
        }
        return f"{self.policy.goal}: {told[self.cause]} ({seen})"
