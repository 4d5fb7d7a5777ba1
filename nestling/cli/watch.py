"""`nestling run --watch`: a loaded model under a load, as it happens."""

from __future__ import annotations

import itertools
import shlex
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nestling import governor
from nestling.cli import terminal
from nestling.engine import Engine, Sight
from nestling.engine.arrivals import arrivals
from nestling.engine.figures import BATCHES, forecast, known_batches, measured
from nestling.engine.sending import send
from nestling.report.units import human_ms, human_percent
from nestling.runtime import LoadedModel

SHARE = 0.7  # of the best subnet's capacity: the load where none is given
ROOM = 5.0  # times the best subnet's time for one example: the limit where none is given
EXAMPLES = 16  # made-up ones, sent in turn
REFRESH = 0.25  # seconds between two pictures on a terminal
LINE = 1.0  # seconds between two lines elsewhere
PLAIN_SECONDS = 10.0  # how long it lasts where nobody can press Ctrl-C
HISTORY = 60
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for.

    Attributes:
        objective: a policy of the governor.
        options: of it.
        rate: requests a second; None for a share of what the best subnet can do.
        shape: of the load, see `arrivals`.
        seconds: how long; None until Ctrl-C, or for a while where there is no terminal.
        seed: of the load.
    """

    objective: str = "latency"
    options: Mapping[str, Any] = field(default_factory=dict)
    rate: float | None = None
    shape: str = "step"
    seconds: float | None = None
    seed: int = 0


def watch(model: LoadedModel, file: Path, wishes: Wishes, *, json: bool = False) -> None:
    """Run a model under a load that is made up, and show what the governor does.

    Raises:
        BudgetError: no subnet meets the objective.
        ModelError: an unknown objective, option or shape.
    """
    governor.find(wishes.objective)  # slips are told before anything is measured
    arrivals(wishes.shape, wishes.rate or 1.0)
    if len(known_batches(model)) < 2:
        terminal.say(
            f"measuring {len(model.menu)} subnets here, with "
            f"{', '.join(map(str, BATCHES))} examples a call; `nestling profile "
            f"{shlex.quote(str(file))} --batch 1 --batch 8 --batch 32` keeps what it measures"
        )
        model = measured(model)
    options = dict(wishes.options)
    if wishes.objective == "latency" and "ms" not in options:
        options["ms"] = _limit(model)
        terminal.say(f"objective: p99 <= {options['ms']:g} ms; another one: --option ms=20")
    with Engine(model, wishes.objective, **options) as engine:
        best = engine.forecast.capacity(engine.forecast.top)
        rate = wishes.rate or SHARE * best
        terminal.say(
            f"load: {wishes.shape}, {rate:.3g} a second ({rate / best:.0%} of what "
            f"{engine.forecast.names[-1]} can do); made-up inputs"
        )
        _show(engine, wishes, rate)
        sight = engine.sight()
    if json:
        terminal.put_json(_figures(sight, engine))


def _show(engine: Engine, wishes: Wishes, rate: float) -> None:
    """Send the load and show what happens until it ends, or Ctrl-C."""
    console = Console(stderr=True)
    live = console.is_terminal and not console.is_dumb_terminal
    seconds = wishes.seconds or (None if live else PLAIN_SECONDS)
    stop = threading.Event()
    times = arrivals(wishes.shape, rate, wishes.seed)
    if seconds is not None:
        times = itertools.takewhile(lambda due: due <= seconds, times)
    pictures = _examples(engine)
    sender = threading.Thread(target=send, args=(engine, times, pictures), kwargs={"stop": stop})
    sender.start()
    try:
        if live:
            _draw(engine, console, sender)
        else:
            _tell(engine, sender)
    except KeyboardInterrupt:
        pass  # that is how it is meant to end
    finally:
        stop.set()
        sender.join()


def _draw(engine: Engine, console: Console, sender: threading.Thread) -> None:
    """Draw the view anew again and again."""
    rates: deque[float] = deque(maxlen=HISTORY)
    with Live(console=console, auto_refresh=False, transient=False) as view:
        while sender.is_alive():
            sight = engine.sight()
            rates.append(sight.rate)
            view.update(picture(engine, sight, rates), refresh=True)
            sender.join(REFRESH)


def _tell(engine: Engine, sender: threading.Thread) -> None:
    """Write a line now and then."""
    start = time.monotonic()
    while sender.is_alive():
        sender.join(LINE)
        terminal.say(line(engine, engine.sight(), time.monotonic() - start))


def line(engine: Engine, sight: Sight, seconds: float) -> str:
    """Return what the engine does as one line."""
    counts = sight.counts
    return (
        f"{seconds:5.1f} s  {sight.rate:6.1f}/s  {sight.queue:3d} waiting  "
        f"p50 {_ms(sight.p50_ms)}  p95 {_ms(sight.p95_ms)}  p99 {_ms(sight.p99_ms)} ms  "
        f"{sight.entry or '-'}  {_score(engine, sight)}  {counts.answered} answered, "
        f"{counts.expired + counts.refused + counts.failed} not, {counts.switches} changes"
    )


def picture(engine: Engine, sight: Sight, rates: deque[float]) -> Panel:
    """Return the view: load, latencies, the subnet in use and the accuracy that is expected."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("load", f"{sight.rate:.1f} a second   {sparks(rates)}")
    table.add_row("waiting", str(sight.queue))
    table.add_row(
        "latency",
        f"p50 {_ms(sight.p50_ms)}   p95 {_ms(sight.p95_ms)}   p99 {_ms(sight.p99_ms)} ms",
    )
    names = Text()
    for name in reversed(engine.forecast.names):
        names.append(f" {name} ", style="reverse bold" if name == sight.entry else "dim")
        names.append(" ")
    table.add_row("subnet", names)
    table.add_row("expected", _score(engine, sight))
    counts = sight.counts
    table.add_row(
        "requests",
        f"{counts.answered} answered, {counts.expired} expired, {counts.refused} refused, "
        f"{counts.failed} failed; {counts.switches} changes of the subnet",
    )
    reason = Text(sight.reason, style="dim")
    return Panel(Group(table, reason), title="nestling run --watch   (Ctrl-C ends it)")


def sparks(values: Iterable[float]) -> str:
    """Return numbers as a row of bars, the largest a full one.

    Example:
        >>> sparks([0.0, 1.0, 2.0])
        '▁▄█'
    """
    shown = list(values)
    most = max(shown, default=0.0) or 1.0
    return "".join(BARS[int(value / most * (len(BARS) - 1))] for value in shown)


def _examples(engine: Engine) -> list[Any]:
    """Return made-up examples of the model's inputs."""
    net = engine.model.menu.net
    args, kwargs = net.signature.example(EXAMPLES, next(net.parameters()).device)
    if kwargs:
        return [{name: each[k] for name, each in kwargs.items()} for k in range(EXAMPLES)]
    if len(args) == 1:
        return list(args[0].unbind())
    return [tuple(each[k] for each in args) for k in range(EXAMPLES)]


def _limit(model: LoadedModel) -> float:
    """Return a limit that the best subnet can hold, rounded to two digits."""
    known = forecast(model)
    return float(f"{ROOM * known.times[known.top][1]:.2g}")


def _ms(value: float | None) -> str:
    return "-" if value is None else human_ms(max(value, 1e-3))


def _score(engine: Engine, sight: Sight) -> str:
    """Return the mean accuracy of the subnets that gave the last answers."""
    known = all(entry.accuracy is not None for entry in engine.model.menu)
    if sight.score is None or not known:
        return "accuracy unknown"
    return f"{engine.model.menu.metric} {human_percent(sight.score)}"


def _figures(sight: Sight, engine: Engine) -> dict[str, Any]:
    return {**asdict(sight), "changes": [choice.reason for choice in engine.log]}
