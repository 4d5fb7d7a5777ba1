"""The driver: answers what a search asks for, keeps every answer, and goes on where it stopped.

One for all searches. A resumed search is the same generator, which is told the answers of the log
first; weights that were fine-tuned lie beside the log, so that it goes on with these.
"""

from __future__ import annotations

import hashlib
import inspect
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from nestling import container
from nestling.checkpoint import RandomState, seed_all
from nestling.errors import FileError, ModelError, SpecError
from nestling.interruption import Interrupted, at_once
from nestling.progress import Reporter
from nestling.search.log import Log
from nestling.search.request import (
    Choice,
    Cost,
    CostOf,
    Found,
    Pick,
    Progress,
    Request,
    Score,
    Search,
    Tune,
    best_of,
    front,
)
from nestling.spec import Space, Spec
from nestling.supernet import Supernet
from nestling.weights import cloned, fill, misfit, tensors_of

LINES_EVERY = 10.0  # seconds between progress lines where there is no terminal
SHOWN = 6  # points of the Pareto front in a progress line

ScoreOf = Callable[[Spec], float]
TuneTo = Callable[[Spec, float, int], float]


def conduct(
    search: Search,
    net: Supernet,
    *,
    score: ScoreOf,
    tune: TuneTo | None = None,
    cost: CostOf | None = None,
    log: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[Found]:
    """Run a search and return what it finds; the weights of the net are left as they were.

    Fine-tuning changes them for the time of the search, so that menus made before it refuse to run.

    Args:
        search: a search that has not begun, such as `progressive(net.space)`.
        net: the supernet whose space is searched.
        score: accuracy (0 to 1) of a spec on held-out data, such as a `Scorer`. Where it has a
            method `pick(specs, worth)`, that one chooses among candidates.
        tune: fine-tunes the weights of a spec until an accuracy or a number of epochs is reached,
            and returns the accuracy, such as a `Tuner`; needed by searches that ask for it.
        cost: of a spec; multiply-accumulates by default.
        log: file in which every evaluation is kept as a line of JSON, as soon as it is made.
        resume: go on from `log` if it exists, exactly as if there had been no break; otherwise it
            is replaced.
        seed: of the random choices of scoring and tuning.
        reporter: shows the progress, with the Pareto front so far (against MACs).

    Raises:
        SpecError: the search asks for what is not in the space of the net.
        ModelError: the search has begun already, or asks for fine-tuning without `tune`.
        FileError: the log cannot be used, or is that of another search.
        Interrupted: Ctrl-C or SIGTERM; the log is kept.

    Example:
        >>> score = Scorer(net, held_out, calibrate=train)
        >>> found = conduct(progressive(net.space), net, score=score, log="search.jsonl")
    """
    if inspect.getgeneratorstate(search) != inspect.GEN_CREATED:
        raise ModelError(
            "a search is conducted once, from its beginning, and this one has begun; make it again"
        )
    if resume and log is None:
        raise ModelError("resume=True needs the file to go on from: give log= too")
    path = None if log is None else Path(log)
    kept = Log(path, _facts(search, net, score, seed), resume=resume)
    before = RandomState.now()
    with ExitStack() as stack:
        stack.callback(before.restore)
        show = stack.enter_context(reporter or Reporter(quiet=True))
        driver = _Driver(net, score, tune, cost, kept, seed, show)
        stack.callback(driver.restore)
        stack.enter_context(at_once())
        try:
            return driver.run(search)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                "the search was stopped; "
                + (f"resume=True goes on from {path}" if path else "there is no log= to resume")
            ) from stop


class _Driver:
    """The state of one search: what is known, and how often the weights were tuned."""

    def __init__(
        self,
        net: Supernet,
        score: ScoreOf,
        tune: TuneTo | None,
        cost: CostOf | None,
        log: Log,
        seed: int,
        reporter: Reporter,
    ) -> None:
        self.name, self.net, self.log = "", net, log
        self.score_of, self.tune_to, self.seed, self.reporter = score, tune, seed, reporter
        self.cost_of: CostOf = cost or net.space.macs
        self.pick_of = getattr(score, "pick", None)
        self.known: dict[Spec, float] = {}  # accuracies under the present weights
        self.costs: dict[Spec, float] = {}
        self.evaluated: list[Found] = []
        self.tunes = 0  # that were answered
        self.applied = 0  # that the present weights have seen
        self.before: dict[str, torch.Tensor] | None = None
        self.shown = -1

    def run(self, search: Search) -> list[Found]:
        self.name = _name(search)
        answer: Any = None
        while True:
            try:
                request = search.send(answer)
            except StopIteration as end:
                return self._finish(list(end.value))
            answer = self._answer(request)

    def restore(self) -> None:
        """Put back the weights as they were before the first fine-tuning."""
        if self.before is not None:
            fill(self.net.model, self.before)
            self.net.zero_grad()

    def _finish(self, found: list[Found]) -> list[Found]:
        for each in found:
            self._checked(each.spec)
        if self.log.answers:
            raise self._other("has ended")
        self.log.write([self._row("found", each.spec, each.accuracy) for each in found])
        if self.log.path is not None:
            self._weights(self.tunes).unlink(missing_ok=True)
        return found

    # -- requests -----------------------------------------------------------------------------

    def _answer(self, request: Request) -> Any:
        match request:
            case Score(spec):
                return self._score(self._checked(spec))
            case Pick(specs, worth):
                if not specs:
                    raise SpecError("a search picks from at least one candidate, but it has none")
                return self._pick([self._checked(spec) for spec in specs], worth)
            case Tune(spec, until, epochs):
                return self._tune(self._checked(spec), until, epochs)
            case Cost(specs):
                return self._cost([self._checked(spec) for spec in specs])
            case Progress(done, total, reached):
                if reached is not None:
                    self._reach(self._checked(reached))
                return self._progress(done, total)
        raise SpecError(
            f"a search yields requests, such as Score(spec), but this one yielded {request!r:.200}"
        )

    def _score(self, spec: Spec) -> float:
        if spec in self.known:
            return self.known[spec]
        row = self._replayed("score", spec)
        if row is None:
            started = time.perf_counter()
            self._prepare()
            accuracy = float(self.score_of(spec))
            row = self._row("score", spec, accuracy, seconds=time.perf_counter() - started)
            self.log.write([row])
        return self._learn(spec, float(row["accuracy"]))

    def _pick(self, specs: Sequence[Spec], worth: Any) -> Choice:
        row = self._replayed("pick", *specs)
        if row is None:
            started = time.perf_counter()
            self._prepare()
            accuracies, shares = self._compare(specs, worth)
            whole = [n for n, share in enumerate(shares) if share == 1]
            place = whole[
                best_of(
                    [specs[n] for n in whole],
                    [accuracies[n] for n in whole],
                    None if worth is None else lambda n, reached: worth(whole[n], reached),
                )
            ]
            rows = [
                self._row("candidate", spec, accuracy, share=share)
                for spec, accuracy, share in zip(specs, accuracies, shares, strict=True)
            ]
            row = self._row(
                "pick",
                specs[place],
                accuracies[place],
                seconds=time.perf_counter() - started,
                of=_identity(specs),
                place=place,
                accuracies=accuracies,
                shares=shares,
            )
            self.log.write([*rows, row])
        for spec, accuracy, share in zip(specs, row["accuracies"], row["shares"], strict=True):
            if share == 1:
                self._learn(spec, accuracy)
        return Choice(row["place"], row["accuracy"], tuple(row["accuracies"]))

    def _compare(self, specs: Sequence[Spec], worth: Any) -> tuple[list[float], list[float]]:
        """Return each candidate's accuracy, and the share of the held-out slice that it is of."""
        if self.pick_of is not None:
            accuracies, shares = self.pick_of(specs, worth)
            return list(accuracies), list(shares)
        found = [self.known.get(spec) for spec in specs]
        pairs = zip(specs, found, strict=True)
        return [float(self.score_of(s)) if a is None else a for s, a in pairs], [1.0] * len(specs)

    def _tune(self, spec: Spec, until: float, epochs: int) -> float:
        if self.tune_to is None:
            raise ModelError(
                f"the {self.name} search fine-tunes below its threshold, but conduct has no "
                "tune=; give a Tuner, or search without a threshold"
            )
        row = self._replayed("tune", spec)
        if row is None:
            started = time.perf_counter()
            self._prepare()
            self._remember()
            self.tunes = self.applied = self.tunes + 1
            seed_all((self.seed + self.tunes) % 2**63)
            accuracy = float(self.tune_to(spec, until, epochs))
            seconds = time.perf_counter() - started
            row = self._row("tune", spec, accuracy, seconds=seconds, until=until, epochs=epochs)
            self._keep_weights(row)
        else:
            self.tunes += 1
        self.known.clear()  # they were those of other weights
        return self._learn(spec, float(row["accuracy"]))

    def _cost(self, specs: Sequence[Spec]) -> tuple[float, ...]:
        missing = list(dict.fromkeys(spec for spec in specs if spec not in self.costs))
        if missing:
            row = self._replayed("cost", *missing)
            if row is None:
                costs = [self.cost_of(spec) for spec in missing]
                row = {"kind": "cost", "of": _identity(missing), "costs": costs}
                self.log.write([row])
            self.costs.update(zip(missing, row["costs"], strict=True))
        return tuple(self.costs[spec] for spec in specs)

    def _reach(self, spec: Spec) -> None:
        """Keep a step of a chain.

        A log that is replayed has all up to its last answer; those after it were cut off.
        """
        if spec in self.known and not self.log.answers:
            self.log.write([self._row("step", spec, self.known[spec])])

    def _progress(self, done: int, total: int) -> None:
        if self.shown < 0:
            self.reporter.start(self.name, total)
        space, last = self.net.space, done == total
        full = space.macs(space.full)
        points = front(self.evaluated, space.macs)
        every = max(1, -(-len(points) // SHOWN))
        shown = ", ".join(
            f"{one.accuracy:.3f} at {space.macs(one.spec) / full:.0%}" for one in points[::every]
        )
        for _ in range(max(self.shown, 0), done):
            self.reporter.advance(shown)
        self.shown = done
        text = f"{self.name}: {done} of {total}, {len(self.evaluated)} evaluations; front: {shown}"
        self.reporter.line(text, at_most_every=0.0 if last else LINES_EVERY)

    # -- what they share ----------------------------------------------------------------------

    def _checked(self, spec: Mapping[str, int]) -> Spec:
        return Spec(self.net.space, spec)

    def _learn(self, spec: Spec, accuracy: float) -> float:
        if spec not in self.known:
            self.known[spec] = accuracy
            self.evaluated.append(Found(spec, accuracy))
        return accuracy

    def _row(self, kind: str, spec: Spec, accuracy: float, **more: Any) -> dict[str, Any]:
        if "seconds" in more:
            more["seconds"] = round(more["seconds"], 4)
        macs = self.net.space.macs(spec)
        return {"kind": kind, "spec": dict(spec), "accuracy": accuracy, "macs": macs, **more}

    def _replayed(self, kind: str, *specs: Spec) -> dict[str, Any] | None:
        """Return the next answer of the log; None where it has no more.

        Raises:
            FileError: it answers another request.
        """
        if not self.log.answers:
            return None
        row = self.log.answers.popleft()
        mine = _identity(specs) if kind in ("pick", "cost") else dict(specs[0])
        theirs = row.get("of") if kind in ("pick", "cost") else row.get("spec")
        if row["kind"] != kind or mine != theirs:
            raise self._other(f"asks for a {kind}")
        return row

    def _other(self, does: str) -> FileError:
        return FileError(
            f"{self.log.path} is the log of another search: where this one {does}, it has another "
            "answer; start with another log, or without resume"
        )

    # -- tuned weights ------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Before the first answer that is not in the log: go on with the weights it ended with."""
        if self.applied < self.tunes:
            self._remember()
            self._load_weights()
            self.applied = self.tunes

    def _remember(self) -> None:
        if self.before is None:
            self.before = cloned(tensors_of(self.net.model))

    def _weights(self, number: int) -> Path:
        assert self.log.path is not None
        return self.log.path.with_name(f"{self.log.path.name}.tuned-{number}")

    def _keep_weights(self, row: Mapping[str, Any]) -> None:
        """Write the weights, then the log, then drop older weights: the log never lacks any."""
        if self.log.path is None:
            return
        container.write(self._weights(self.tunes), {}, tensors_of(self.net.model))
        self.log.write([row])
        self._weights(self.tunes - 1).unlink(missing_ok=True)

    def _load_weights(self) -> None:
        path = self._weights(self.tunes)
        if not path.exists():
            raise FileError(
                f"the weights that the search had tuned are missing: {path}; start it anew, "
                "without resume"
            )
        _, tensors = container.read(path)
        problem = misfit(self.net.model, tensors)
        if problem:
            raise FileError(f"{path} holds the weights of another model: {problem}")
        fill(self.net.model, tensors)


# -- what tells one search from another -------------------------------------------------------


def _facts(search: Search, net: Supernet, score: ScoreOf, seed: int) -> dict[str, Any]:
    options = {
        name: _plain(value)
        for name, value in inspect.getgeneratorlocals(search).items()
        if not isinstance(value, Space)
    }
    shape = [(axis.name, axis.counts, axis.kind) for axis in net.space.axes.values()]
    digest = hashlib.sha256(repr(shape).encode())
    weights = hashlib.sha256()
    for name, tensor in sorted(tensors_of(net.model).items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        weights.update(name.encode() + flat.numpy().tobytes())
    return {
        "search": _name(search),
        "options": options,
        "axes": digest.hexdigest()[:16],
        "order": net.order,
        "weights": weights.hexdigest()[:16],
        "seed": seed,
        "score": _plain(getattr(score, "facts", {})),
    }


def _name(search: Search) -> str:
    return str(getattr(search, "__name__", "search"))


def _plain(value: Any) -> Any:
    """Return a value as the log holds it: JSON, and what is none by the name of its type."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (bool, int, str, float)):
        return value
    return type(value).__name__


def _identity(specs: Sequence[Spec]) -> int:
    """Return a number that tells lists of specs apart, the same in every process."""
    return zlib.crc32(repr([sorted(spec.items()) for spec in specs]).encode())
