"""Tables: the kept results as Markdown, for docs/nested.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comparison import results
from comparison.cases import BASELINE, PLAIN
from comparison.figures import HELD_OUT, Comparison
from comparison.protocols import BUDGETS
from comparison.results import Result
from comparison.rivals.adabits import FEWEST
from comparison.tables import (
    COLUMNS,
    accuracy_cell,
    conditions,
    percent,
    points_cell,
    table,
    title,
)

from nesting.figures import (
    GRID,
    REMOVED,
    by_bits,
    by_share_removed,
    dominates,
    lead,
    search_share,
    trained,
)
from nesting.parts import ADABITS, ALL, ANY_PRECISION, EQUAL, Part, parts_in
from nestling.quantize import FULL


def page(folder: Path) -> str:
    """Return the tables of all kept results, a section for each protocol, net and data set."""
    groups = results.groups(folder)
    return "\n\n".join(map(section, groups.values())) or "No result is kept yet."


def section(group: Sequence[Result]) -> str:
    """Return the section of one protocol and net: a table for each part that it answers."""
    found = Comparison(group)
    parts = [f"### {title(found.settings)}", conditions(group, {})]
    for part in parts_in(found.labels, found.settings["net"]):
        parts += _tables(part, found)
    parts.append(searches(found))
    return "\n\n".join(filter(None, parts))


def _tables(part: Part, found: Comparison) -> list[str]:
    if part.name == "all":
        return [joint(found, part)]
    if part.bits:
        return [bits(found, part), bits_variants(found, part)]
    if part.rival:
        return [rivals(found, part), variants(found, part)]
    return [shares_removed(found, part)]


def rivals(found: Comparison, part: Part) -> str:
    """Return the table of a kind against Universally Slimmable."""
    label = part.labels[0]
    rows = []
    for each in (PLAIN, BASELINE, label, label + EQUAL):
        if each not in found.labels:
            continue
        seeds = found.seeds(each)
        cells = [accuracy_cell(found.accuracy(each, budget)) for budget in COLUMNS]
        gain = None if each in (PLAIN, BASELINE) else found.gain(each, BASELINE)
        epochs = ", ".join(str(n) for n in sorted({found[each, seed].epochs for seed in seeds}))
        nets = "" if each == PLAIN else f"{trained(found, each):,}"
        rows.append([each, epochs, nets, *cells, points_cell(gain), str(len(seeds))])
    head = f"**{part.name.capitalize()}, at matched multiply-accumulates** (test accuracy in %, ± "
    head += "standard deviation; lead in percentage points, with 95 % interval)"
    columns = ["method", "epochs", "nets trained", "full", *percent(BUDGETS)]
    return table(head, [*columns, f"mean lead over {BASELINE}", "seeds"], rows)


def bits(found: Comparison, part: Part) -> str:
    """Return the table of accuracies by number of bits, ours and the rivals'."""
    label, counts = part.labels[0], [FULL, *part.bits]
    rows = []
    for each in (PLAIN, label, label + EQUAL, ANY_PRECISION, ADABITS):
        if each in found.labels:
            rows.append(_bits_row(found, each, each, counts))
    alone = {n: by_bits(found, f"alone {n} bits").get(n) for n in part.bits}
    if any(alone.values()):
        seeds = max(len(found.seeds(f"alone {n} bits")) for n in part.bits)
        cells = [accuracy_cell(alone.get(n)) for n in counts]
        rows.append(["each alone", "", *cells, str(seeds)])
    head = "**Bits of weights and inputs: test accuracy in %** (± standard deviation); the first "
    head += "and the last layer and projections in floating point"
    if ADABITS in found.labels and min(part.bits) < FEWEST:
        head += f"; AdaBits is for {FEWEST} bits and more"
    columns = ["method", "epochs", *(f"{n}" for n in counts), "seeds"]
    return table(head, columns, rows)


def _bits_row(found: Comparison, label: str, words: str, counts: Sequence[int]) -> list[str]:
    by = by_bits(found, label)
    seeds = found.seeds(label)
    epochs = ", ".join(str(n) for n in sorted({found[label, seed].epochs for seed in seeds}))
    return [words, epochs, *(accuracy_cell(by.get(n)) for n in counts), str(len(seeds))]


def bits_variants(found: Comparison, part: Part) -> str:
    """Return the table of variants by accuracy on held-out pictures, whence one is chosen."""
    base = part.labels[0]
    words = {base: "default", **{f"{base}, {each}": each for each in part.variants}}
    words |= {ANY_PRECISION: ANY_PRECISION, f"{ANY_PRECISION}, SGD": f"{ANY_PRECISION}, SGD"}
    rows = []
    for label, said in words.items():
        kept_out = by_bits(found, label, HELD_OUT)
        cells = [accuracy_cell(kept_out.get(n)) for n in part.bits]
        if any(cells):
            rows.append([said, *cells, str(len(found.seeds(label)))])
    head = "**Variants: accuracy in % on held-out pictures** by number of bits"
    return table(head, ["variant", *map(str, part.bits), "seeds"], rows if len(rows) > 2 else [])


def variants(found: Comparison, part: Part) -> str:
    """Return the table of variants, by their lead on held-out pictures; "" without any."""
    base, rows = part.labels[0], []
    for words in part.variants:
        label = f"{base}, {words}"
        if label not in found.labels:
            continue
        cells = [accuracy_cell(found.accuracy(label, budget)) for budget in COLUMNS]
        kept_out, test = (found.gain(label, base, on=on) for on in (HELD_OUT, "test"))
        spent = _relative_seconds(found, label, base)
        order = -kept_out.mean if kept_out is not None else 0.0
        row = [words, points_cell(kept_out), *cells, points_cell(test), spent]
        rows.append((order, [*row, str(len(found.seeds(label, base)))]))
    head = "**Variants**, in the order of their lead over the default on held-out pictures"
    columns = ["variant", "lead, held out", "full", *percent(BUDGETS), "lead, test"]
    ordered = [cells for _, cells in sorted(rows, key=lambda each: each[0])]
    return table(head, [*columns, "training time over the default's", "seeds"], ordered)


def _relative_seconds(found: Comparison, label: str, base: str) -> str:
    """Return the seconds of a training over those of another one, where all are known."""
    seeds = found.seeds(label, base)
    pairs = [(found[label, seed], found[base, seed]) for seed in seeds]
    if not all(result.complete for pair in pairs for result in pair):
        return ""
    stage = "ordered dropout"
    shares = [own.seconds[stage] / other.seconds[stage] for own, other in pairs]
    return f"{sum(shares) / len(shares):.2f}"


def shares_removed(found: Comparison, part: Part) -> str:
    """Return the table of accuracy against the share of units that is removed."""
    label = part.labels[0]
    reached = by_share_removed(found, label)
    cells = [accuracy_cell(reached[share]) for share in REMOVED]
    head = f"**{part.name.capitalize()}: test accuracy in % with a share of them removed** (± "
    head += "standard deviation)"
    rows = [[label, *cells, str(len(found.seeds(label)))]]
    if PLAIN in found.labels:
        plain = accuracy_cell(found.accuracy(PLAIN, 1.0))
        rows.append([PLAIN, plain, *("" for _ in REMOVED[1:]), str(len(found.seeds(PLAIN)))])
    return table(head, ["nested", *(f"{share:.0%}" for share in REMOVED), "seeds"], rows)


def joint(found: Comparison, part: Part) -> str:
    """Return the table of all kinds together against each kind alone."""
    rows = []
    for label in (label for label in (PLAIN, *part.labels) if label in found.labels):
        cells = [accuracy_cell(found.accuracy(label, share)) for share in (1.0, *GRID)]
        rows.append([label, *cells, str(len(found.seeds(label)))])
    leads = {kind: lead(found, kind) for kind in part.labels[1:]}
    for kind, by in leads.items():
        cells = [points_cell(by.get(share)) for share in GRID]
        rows.append([f"{ALL} over {kind}", "", *cells, str(len(found.seeds(ALL, kind)))])
    said = {
        True: "The joint front is nowhere below a single one.",
        False: "The joint front does not dominate all single ones.",
        None: "",
    }[dominates(leads)]
    head = "**All kinds together, against each kind alone in a training of its own** (test "
    head += "accuracy in %, by share of the multiply-accumulates)"
    shown = table(head, ["nested", "full", *percent(GRID), "seeds"], rows)
    return f"{shown}\n\n{said}".rstrip()


def searches(found: Comparison) -> str:
    """Return in a sentence what searches took; "" if unknown."""
    told = {label: search_share(found, label) for label in found.labels}
    known = [f"{label} {share.mean:.1%}" for label, share in told.items() if share is not None]
    return f"Search, of the time of the training before it: {'; '.join(known)}." if known else ""
