"""What the reports show of a menu, its narrowings included."""

from dataclasses import replace

import pytest
import torch

import nestling
from nestling.costs.latency import Ratio
from nestling.narrowing import Comparison, Narrowing
from nestling.report import page_of, plain


@pytest.fixture
def menu():
    net = nestling.Supernet(nestling.models.mlp(6, (8, 8)), torch.randn(2, 6), step=2)
    return nestling.make_menu(
        net, [net.space.spec(width=0.5)], calibrate=[torch.randn(8, 6)], measure=False
    )


def test_a_page_tells_what_is_narrowed_and_where(menu):
    first = next(iter(menu.net.space.axes))
    spec = dict(menu.net.space.spec({first: 2}))
    comparison = Comparison(spec, {**spec, first: 4}, 0.2, Ratio(1.1, 1.0, 1.2, 40))
    narrowing = Narrowing(specs=(comparison,))
    key, wide = menu.key(), menu.key(32)
    profile = menu.profile.with_narrowing(key, narrowing).with_narrowing(wide, narrowing)
    page = page_of(replace(menu, profile=profile), "title", key=key)
    line = f"{first}: 2 of 8 is no faster than 4 here, so 4 is used"
    assert list(page.narrowed) == [line, f"{line} ({wide})"]
    assert f"narrowed: {line}\n" in plain(page)
    assert page_of(menu, "title", key=key).narrowed == []


def test_a_row_has_the_menus_words(menu):
    full, half = menu.entries
    hidden = replace(half, offered=False, reason="no faster than full here and no better")
    page = page_of(replace(menu, entries=(full, hidden)), "title")
    assert [row.reason for row in page.rows] == ["", hidden.reason]
    assert f"not offered: {half.name}, {hidden.reason}" in plain(page)
