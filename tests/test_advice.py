"""Advice: every reason that the code can give has one."""

import ast
from pathlib import Path

import pytest

import nestling
from nestling.advice import ADVICE, UNKNOWN, advice_on

FREEZING = {"freeze", "constant", "Reason", "reason", "Verdict", "Frozen"}
PACKAGE = Path(nestling.__file__).parent


def written(node):
    """The words of a literal or f-string; what is filled in is a letter."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [p.value if isinstance(p, ast.Constant) else "x" for p in node.values]
        return "".join(parts)
    return None


def reasons():
    """Every text that is passed to what freezes, or kept in a variable on its way there."""
    found = set()
    for path in [*(PACKAGE / "axes").rglob("*.py"), PACKAGE / "construction.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            given = []
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                given = node.args if name in FREEZING else []
            elif isinstance(node, ast.Assign):
                names = {getattr(target, "id", "") for target in node.targets}
                given = [node.value] if names & {"text", "reason", "PLAIN"} else []
            found |= {text for text in map(written, given) if text and " " in text}
    return found - {"in x (x), x"}  # a module before one of the others


REASONS = reasons()


def test_the_reasons_are_found():
    assert len(REASONS) > 20
    assert {"size of an input", "its size is fixed here", "no rule for the op x"} <= REASONS


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_has_advice(reason):
    advice = advice_on(reason)
    assert advice is not UNKNOWN
    assert advice.text or advice.expected
    assert advice_on(f"in layers.1 (Linear), {reason}") == advice


def test_keys_are_distinct():
    keys = [advice.key for advice in ADVICE.values()]
    assert len(set(keys)) == len(keys)


def test_what_is_not_known_has_no_advice():
    assert advice_on("for no reason") == UNKNOWN
