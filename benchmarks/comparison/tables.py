"""Tables: the kept results as Markdown, for docs/accuracy.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import latencies, results, steps
from comparison.cases import (
    BASELINE,
    BUNDLE,
    CONTROL,
    LONG,
    OURS,
    PLAIN,
    UNIFORM_SHAPE,
    Case,
    Shape,
    alone_label,
    control_label,
)
from comparison.figures import COSTS, HELD_OUT, Comparison
from comparison.protocols import BUDGETS
from comparison.results import Result
from nestling.report.seeds import Summary

METHODS = (PLAIN, BASELINE, LONG, "slimmable", "norms", OURS)
RIVALS = (BASELINE, LONG, "slimmable", "norms")
COLUMNS = (1.0, *BUDGETS)
CALLED = {"macs": "multiply-accumulates", "params": "parameters", "latency": "measured latency"}
NETS = {
    "resnet20": "ResNet-20",
    "resnet18": "ResNet-18",
    "vgg11-bn": "VGG-11-bn",
    "mobilenet-v1": "MobileNetV1",
    "resnet56": "ResNet-56",
    "resnext29": "ResNeXt-29 (8x4d)",
    "mlp": "MLP (256, 256)",
    "resnet20-bits": "ResNet-20 in few bits",
    "preact-resnet20-bits": "Pre-activation ResNet-20, five times as wide, in few bits",
}
DATA = {
    "cifar10": "CIFAR-10",
    "fashion-mnist": "Fashion-MNIST",
    "imagenet": "ImageNet",
    "tiny-imagenet": "Tiny-ImageNet",
}


def page(folder: Path = results.KEPT, pictures: Path | None = None) -> str:
    """Return the tables of all kept results, a section for each protocol and net.

    Args:
        folder: of the results.
        pictures: folder of the pictures; those that exist are shown, as of a page beside it.
    """
    sections = [
        section(name, group, folder / name, pictures)
        for name, group in results.groups(folder).items()
    ]
    return "\n\n".join(sections) or "No result is kept yet."


def title(settings: Mapping[str, Any]) -> str:
    """Return what a protocol and net are called."""
    net, data = settings["net"], settings["data"]
    return f"{NETS.get(net, net)} on {DATA.get(data, data)}, {settings['name']} protocol"


def section(name: str, group: Sequence[Result], folder: Path, pictures: Path | None = None) -> str:
    """Return the section of one protocol and net."""
    measured, where = latencies.read(folder)
    found = Comparison(group, measured)
    parts = [f"## {title(found.settings)}", conditions(group, where)]
    if pictures is not None:
        shown = [pictures / f"{name}-{kind}.png" for kind in ("methods", "subnets", "search")]
        parts += [f"![{p.stem}]({pictures.name}/{p.name})" for p in shown if p.exists()]
    for cost in COSTS:
        parts.append(matched(found, cost))
    parts += [against_alone(found), against_bundle(found), seconds(found), ablation(found)]
    parts.append(steps.table(folder))
    return "\n\n".join(part for part in parts if part)


def epochs_of(group: Sequence[Result]) -> str:
    """Return for how many epochs methods train, in words: "twice 8 epochs" in two stages."""
    count = group[0].settings["epochs"]
    stages = max(each.case.stretch for each in group)
    told = "1 epoch" if count == 1 else f"{count} epochs"
    return told if stages == 1 else f"{'twice' if stages == 2 else f'{stages} times'} {told}"


def conditions(group: Sequence[Result], where: Mapping[str, Any]) -> str:
    """Return how results were made, in words."""
    s = group[0].settings
    used = "all" if s["pictures"] is None else f"{s['pictures']:,}"
    after = (
        f"subnets are chosen with {s['held_out']:,} of them held out, and the weights that are "
        "scored train on all"
        if s["all_pictures"]
        else f"subnets are chosen on {s['held_out']:,} others of the training set"
    )
    seeds = sorted({each.case.seed for each in group})
    machines = sorted(
        {f"{p}, torch {r.content['machine']['torch']}" for r in group for p in r.processors}
    )
    commits = sorted(set[str]().union(*(r.commits for r in group)))
    epochs = epochs_of(group)
    epochs = epochs[0].upper() + epochs[1:]
    compiled = ", compiled steps" if s["compiled"] else ""
    lines = [
        f"Trained on {used} training pictures; {after}. {epochs} of batches of {s['batch']}, "
        f"SGD with Nesterov momentum 0.9, learning rate {s['lr']:g} (warm-up, half "
        f"cosine), {group[0].content['trained_in']}{compiled}; seeds {listed(seeds)}. "
        f"{'; '.join(machines)}, {s['threads']} thread{'s' * (s['threads'] > 1)}; "
        f"commit {listed(commits)}.",
        updates(group),
    ]
    if where:
        machine = where["machine"]
        lines.append(
            f"Latency: contiguous copies in float32, {where['batch']} pictures a call, on "
            f"{machine.get('gpu') or machine['processor']}; the full net takes "
            f"{where['full_ms']:.2f} ms."
        )
    return " ".join(lines)


def updates(group: Sequence[Result]) -> str:
    """Return how many optimiser steps each main method makes for a batch, in words."""
    by_number: dict[int, dict[str, None]] = {}
    for each in group:
        if each.case.group == "main":
            name = "nets alone" if each.case.method == "individual" else each.case.label
            by_number.setdefault(each.updates, {})[name] = None
    told = [
        f"{number} ({', '.join(sorted(labels))})" for number, labels in sorted(by_number.items())
    ]
    return f"Updates of the weights for a batch: {', '.join(told)}." if told else ""


# -- the tables ----------------------------------------------------------------------------------


def matched(found: Comparison, cost: str) -> str:
    """Return the tables of test accuracies at matched costs and of our leads; "" if unknown."""
    rows = []
    for label in (label for label in METHODS if label in found.labels):
        cells = [accuracy_cell(found.accuracy(label, budget, cost)) for budget in COLUMNS]
        if any(cells[1:]) or label == PLAIN:
            rows.append([label, *cells, str(len(found.seeds(label)))])
    leads = []
    for rival in RIVALS:
        mean = found.gain(OURS, rival, cost=cost) if rival in found.labels else None
        if mean is not None:
            each = [points_cell(found.gain(OURS, rival, [budget], cost)) for budget in COLUMNS]
            leads.append([rival, points_cell(mean), *each, str(mean.seeds)])
    if len(rows) < 2:
        return ""
    columns = ["full", *percent(BUDGETS)]
    head = f"**At matched {CALLED[cost]}** (test accuracy in %, ± standard deviation over seeds)"
    tables = [table(head, ["method", *columns, "seeds"], rows)]
    head = f"Lead of {OURS} there, by seed, in percentage points (95 % interval)"
    tables.append(table(head, ["over", "mean of the budgets", *columns, "seeds"], leads))
    return "\n\n".join(filter(None, tables))


def against_alone(found: Comparison) -> str:
    """Return the table of subnets against the same shapes trained alone; "" if unknown."""
    shares = found.shares()
    rows = []
    for label in (BASELINE, OURS, "norms"):
        if label not in found.labels:
            continue
        for control in (False, True):
            each = [found.against_alone(label, share, control=control) for share in shares]
            plain = control_label(Shape(UNIFORM_SHAPE, 1.0)) if control else PLAIN
            full = found.gain(label, plain, [1.0])
            if any(each) or (control and full):
                name = f"{label}, over {CONTROL} alone" if control else label
                rows.append([name, points_cell(full), *map(points_cell, each)])
    head = "**Against the same shapes trained alone** for as many epochs (lead in percentage "
    head += "points, with 95 % interval)"
    return table(head, ["method", "full", *percent(shares)], rows)


def against_bundle(found: Comparison) -> str:
    """Return the table of our subnets against a bundle at equal total compute; "" if unknown."""
    seeds = found.seeds(BUNDLE)
    if not seeds:
        return ""
    epochs = listed(sorted({found[BUNDLE, seed].epochs for seed in seeds}))
    rows = [
        [label, *(accuracy_cell(found.accuracy(label, budget)) for budget in COLUMNS)]
        for label in (OURS, BUNDLE)
    ]
    gains = [points_cell(found.gain(OURS, BUNDLE, [budget])) for budget in COLUMNS]
    rows.append([f"{OURS} over {BUNDLE}", *gains])
    head = "**Against a bundle of separate nets at equal total training compute** (uniform "
    head += f"widths, {epochs} epochs each; the bundle has no weights in common)"
    return table(head, ["", "full", *percent(BUDGETS)], rows)


def seconds(found: Comparison) -> str:
    """Return the table of what ranking and search cost; "" if unknown."""
    rows = []
    for label in (OURS, "norms"):
        spent = found.spent(label) if label in found.labels else None
        if spent is not None:
            joint = [found[label, seed].seconds["joint"] for seed in found.seeds(label)]
            mean = sum(joint) / len(joint)
            shares = [f"{spent[part].mean:.1%}" for part in ("rank", "search")]
            rows.append([label, *shares, f"{mean:,.0f} s"])
    head = "**What comes before the joint training**, as shares of its processor time (compiling, "
    head += "which a cache saves, is in none of it)"
    return table(head, ["method", "ranking", "search", "joint training"], rows)


def ablation(found: Comparison) -> str:
    """Return the table of variants: their leads over the default, and test accuracies beside them.

    Held-out accuracy orders them where there is one, so that no default rests on test pictures.
    """
    cases = {label: found[label, found.seeds(label)[0]].case for label in found.labels}
    rows = []
    for label, case in cases.items():
        if case.group == "main":
            continue
        base = _default(case, found)
        shares = [shape.share for shape in case.shapes] or list(BUDGETS)
        lead = found.gain(label, base, shares, on=HELD_OUT) if base else None
        on_test = found.gain(label, base, shares) if base else None
        cells = [accuracy_cell(found.accuracy(label, budget)) for budget in COLUMNS]
        against = [base if on_test else "", points_cell(lead), points_cell(on_test)]
        order = case.group, -lead.mean if lead else float("inf"), label
        seeds = str(len(found.seeds(label)))
        rows.append((order, [case.group, label, *against[:2], *cells, against[2], seeds]))
    head = "**Ablation**, at matched multiply-accumulates of each net. Variants stand in the order "
    head += "of their lead over the default on held-out pictures (mean over the budgets, by seed); "
    head += "what they reach on the test pictures is the result, and chooses nothing"
    columns = ["varied", "method", "over", "lead, held out", "full", *percent(BUDGETS)]
    columns += ["lead, test", "seeds"]
    return table(head, columns, [cells for _, cells in sorted(rows)])


def _default(case: Case, found: Comparison) -> str:
    """Return the label that a variant is compared with; "" if there is none."""
    base = case.label.partition(",")[0]
    if case.steps > 1:
        base = alone_label(case.shapes[0])
    if case.arguments:  # of another net, so that only its own uniform widths compare
        base = case.label.replace(OURS, BASELINE) if base == OURS else ""
    return base if base in found.labels else ""


# -- cells ---------------------------------------------------------------------------------------


def table(head: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with its head line; "" without rows."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    if not lines:
        return ""
    rule = "|---" * len(columns) + "|"
    return "\n".join([f"{head}:", "", f"| {' | '.join(columns)} |", rule, *lines])


def accuracy_cell(figure: Summary | None) -> str:
    """Return an accuracy in %, with its standard deviation over seeds; "" if unknown."""
    if figure is None:
        return ""
    spread = "" if figure.std is None else f" ± {100 * figure.std:.2f}"
    return f"{100 * figure.mean:.2f}{spread}"


def points_cell(figure: Summary | None) -> str:
    """Return a difference in points, with its 95 % interval; "" if unknown."""
    if figure is None:
        return ""
    spread = "" if figure.low is None else f" ({figure.low:+.2f} to {figure.high:+.2f})"
    return f"{figure.mean:+.2f}{spread}"


def percent(shares: Iterable[float]) -> list[str]:
    """Return shares as columns are called."""
    return [f"{100 * share:g} %" for share in shares]


def listed(values: Iterable[object]) -> str:
    """Return values with commas between them."""
    return ", ".join(map(str, values))
