"""`fit`: train a supernet with a named method and return its menu."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from nestling import methods
from nestling.binding import binding
from nestling.checkpoint import RandomState
from nestling.errors import ModelError
from nestling.evaluation import Metric, accuracy, check_metric
from nestling.menu import Menu, menu_of
from nestling.narrowing import Narrowing
from nestling.objectives.sandwich import Loss
from nestling.progress import Reporter
from nestling.spec import Spec
from nestling.supernet import Supernet, check_supernet
from nestling.timing import check_narrow, narrowing_of
from nestling.training import MakeOptimizer, Run


def fit(
    net: Supernet,
    train: Iterable[Any],
    val: Iterable[Any] | None = None,
    *,
    method: str = "uniform",
    epochs: int = 10,
    seed: int = 0,
    loss: Loss | None = None,
    metric: Metric = accuracy,
    optimizer: MakeOptimizer | None = None,
    precision: str = "auto",
    compile: bool | str = False,
    narrow: float = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool | Reporter = True,
    **options: Any,
) -> Menu:
    """Train a supernet's shared weights and return a menu of subnets with measured figures.

    Args:
        net: the supernet; its weights are trained in place.
        train: training batches, `(inputs, targets)` pairs or mappings of the model's keywords with
            "labels", iterated once an epoch; also used to recalibrate norm statistics.
        val: held-out batches: for the accuracies of the menu, and for methods that choose among
            subnets. Never test data.
        method: one of `nestling.methods.names()`.
        epochs: passes over `train`.
        seed: of all random choices; the global random state is put back afterwards.
        loss: from (outputs, targets); by default the `loss` that the model's output holds, or the
            cross-entropy of its scores. All subnets train on it; where they shall learn from the
            full net, see the method's `labels_first=` and `distill=`.
        metric: mean score of a batch, larger is better; top-1 accuracy by default.
        optimizer: a function from parameters to a torch optimiser; SGD with momentum by default.
            Its learning rate is the peak of a warmed-up cosine schedule.
        precision: "auto" trains in bf16 with channels-last pictures where the device is faster so
            and the model takes them, as its first batch shows. "float32" is plain float32;
            "bfloat16" and "float32-channels-last" use channels-last pictures where the model takes
            them. The weights of a training that succeeds keep that layout.
        compile: compile the passes of a step with `torch.compile`, once for every subnet that
            trains: seconds to a minute for each at its first step, less time for every later one.
            What cannot be compiled runs eagerly, which is said. It may be the name of a backend.
        narrow: seconds for measuring which counts are worth having on this device, see
            `make_menu`; 0 takes what the method proposes. Nets that were trained alone stay.
        checkpoint: file in which the state is saved after every epoch and on Ctrl-C or SIGTERM; one
            that is there is replaced, unless the run resumes.
        resume: go on from `checkpoint` if it exists, exactly as if there had been no break. One
            limit: norms that read running statistics while they train start anew in small subnets.
        progress: show progress on stderr.
        **options: of the method, such as `fractions=` of "uniform".

    Raises:
        ModelError: an unknown method or option, a bad setting, or a training that diverged.
        DataError: batches that are no pairs, do not fit the model or the loss, or hold NaN.
        SpecError: an option that asks for subnets that do not exist.
        FileError: a checkpoint that cannot be written or does not fit.
        Interrupted: Ctrl-C or SIGTERM, after the state was saved.

    Example:
        >>> menu = nestling.fit(net, train, val, epochs=20)
        >>> menu.save("model.nest")
    """
    check_supernet(net, "fit")
    check_narrow(narrow)
    recipe = methods.find(method)
    methods.check_options(method, recipe, options)
    before = RandomState.now()
    reporter = progress if isinstance(progress, Reporter) else Reporter(quiet=not progress)
    try:
        if val is not None:
            check_metric(net.subnet(net.space.full), val, metric)
        run = Run(
            net,
            train,
            epochs,
            seed=seed,
            loss=loss,
            metric=metric,
            held_out=val,
            optimizer=optimizer,
            precision=precision,
            compile=compile,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            reporter=reporter,
            settings={"method": method, "options": options},
        )
        with run.undone_on_failure():
            if resume:
                run.resume()
            with reporter:
                reporter.say(f"training in {run.precise} on {run.device}")
                modules = recipe(run, **options)
            menu = _made(run, modules, val, metric=metric, narrow=narrow)
            menu = _measured(menu, reporter)
    finally:
        before.restore()
    return replace(menu, facts=_facts(run, method, options, narrow))


def _facts(run: Run, method: str, options: Mapping[str, Any], narrow: float) -> dict[str, Any]:
    """Return what a menu tells of its training."""
    facts: dict[str, Any] = {
        "method": method,
        "epochs": run.epochs,
        "seed": run.seed,
        "precision": str(run.precise),
    }
    chooses = "held_out" in methods.options(methods.find(method))
    if chooses and options.get("held_out") is None:  # else on other batches than the menu's
        facts["chosen on"] = "the held-out batches"
    if run.backend:
        facts["compiled by"] = run.backend
    if narrow:
        facts["narrowed in"] = f"{narrow:g} s"
    return facts


def _made(
    run: Run,
    modules: Mapping[str, tuple[Spec, nn.Module]],
    val: Iterable[Any] | None,
    *,
    metric: Metric,
    narrow: float,
) -> Menu:
    """Make the menu of a training, narrowed where that is asked for; not measured yet."""
    net, reporter = run.net, run.reporter
    found = _narrowing(net, modules, narrow, reporter) if narrow else None
    batches = run.calibration()
    menu = menu_of(
        net, modules, val, calibrate=batches, metric=metric, measure=False, narrowing=found
    )
    if found is not None:
        sizes = {axis.name: axis.size for axis in net.space.axes.values()}
        for line in found.told(sizes, [entry.spec for entry in menu]):
            reporter.say(f"with 1 example a call, {line}")
    return menu


def _narrowing(
    net: Supernet,
    modules: Mapping[str, tuple[Spec, nn.Module]],
    seconds: float,
    reporter: Reporter,
) -> Narrowing | None:
    """Measure which counts are worth having; None where that does not work, which is said."""
    specs = [spec for spec, module in modules.values() if binding(module) is not None]
    if not specs:
        reporter.say("nothing is narrowed: these nets were trained alone, each at its own shape")
        return None
    reporter.say(f"measuring which counts are worth having here, for at most {seconds:g} s or so")
    try:
        return narrowing_of(net, specs, seconds=seconds)
    except ModelError as error:
        reporter.say(f"nothing is narrowed: {error}")
        return None


def _measured(menu: Menu, reporter: Reporter) -> Menu:
    """Measure latencies, and say which subnets are not offered; training is never lost to it.

    The verdict is that of one example a call, and says so: another batch may have another one.
    """
    reporter.say(f"measuring {len(menu)} subnets")
    try:
        menu = menu.measured()
    except ModelError as error:
        reporter.say(f"latencies were not measured: {error}")
    for entry in menu:
        if not entry.offered:
            reporter.say(f"with 1 example a call, {entry.name} is not offered: {entry.reason}")
    return menu
