"""The dispatcher and the governor in simulated time: arrivals and service times are given."""

import random
from dataclasses import dataclass, field

from nestling.engine.dispatcher import Dispatcher, steered
from nestling.engine.request import Request
from nestling.governor import Forecast, policy


def ladder(count=5, step=1.7, first=1.0, batches=(1, 2, 4, 8, 16, 32), share=0.4):
    """A forecast of entries e0 ... whose calls cost `share` for themselves, the rest an example."""
    alone = {f"e{k}": first * step**k for k in range(count)}
    times = {b: {n: ms * (share + (1 - share) * b) for n, ms in alone.items()} for b in batches}
    return Forecast.of({name: 0.5 + 0.1 * k for k, name in enumerate(alone)}, times)


@dataclass
class Outcome:
    forecast: Forecast
    answers: list = field(default_factory=list)  # (arrival, latency in ms, rung)
    expired: int = 0
    changes: list = field(default_factory=list)  # (time, choice)
    batches: int = 0

    def late(self, limit):
        asked = len(self.answers) + self.expired
        return (sum(ms > limit for _, ms, _ in self.answers) + self.expired) / asked

    @property
    def score(self):
        return sum(self.forecast.scores[r] for _, _, r in self.answers) / len(self.answers)


def serve(forecast, arrivals, *, steer=None, took=None, deadline=None, **options):
    """Run requests through a dispatcher, one worker, in simulated time.

    Args:
        arrivals: ascending seconds.
        took: (rung, batch, now) -> milliseconds; the forecast's by default.
        deadline: milliseconds of each request.
        **options: of the policy "latency".
    """
    took = took or (lambda rung, batch, now: forecast.times[rung][batch])
    desk = Dispatcher(steer or steered(policy("latency", forecast, options)), room=100_000)
    found = Outcome(forecast)
    now, place = 0.0, 0
    while place < len(arrivals) or len(desk):
        while place < len(arrivals) and arrivals[place] <= now:
            since = arrivals[place]
            end = since + deadline / 1000 if deadline else float("inf")
            desk.add(Request((), since, end))
            place += 1
        batch = desk.next(now)
        found.expired += len(desk.over())
        if batch is None:
            if place == len(arrivals):
                break
            now = max(now, arrivals[place])
            continue
        if len(desk.log) and (not found.changes or found.changes[-1][1] is not desk.log[-1]):
            found.changes.append((now, desk.log[-1]))
        milliseconds = took(batch.rung, len(batch.requests), now)
        now += milliseconds / 1000
        desk.done(batch, now, milliseconds)
        found.batches += 1
        for request in batch.requests:
            found.answers.append((request.since, 1000 * (now - request.since), batch.rung))
    return found


def evenly(rate, seconds):
    return [k / rate for k in range(int(rate * seconds))]


def poisson(rate, seconds, seed=0, cv2=1.0):
    """Arrivals whose gaps are Gamma distributed; Poisson arrivals for cv2 = 1."""
    draw, now, found = random.Random(seed), 0.0, []
    while now < seconds:
        now += draw.gammavariate(1 / cv2, cv2 / rate)
        found.append(now)
    return found
