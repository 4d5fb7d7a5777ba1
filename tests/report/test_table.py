import io
from dataclasses import replace

from rich.console import Console

from nestling.report import plain, table


def shown(made, width=140):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(made)
    return console.file.getvalue()


def test_the_table_holds_the_numbers(small):
    lines = shown(table(small)).splitlines()
    (line,) = [line for line in lines if line.split()[:1] == ["s4"]]
    assert line.split() == [
        "s4",
        "0.90",
        "M",
        "22.5",
        "k",
        "90.0",
        "kB",
        "0.600",
        "0.585–0.634",
        "5.17×",
        "95.10",
        "%",
        "yes",
    ]
    assert "not offered: s2-alt, slower than s2 and no more accurate" in lines[-1]


def test_plain_says_the_same(small):
    rich_words = [word for word in shown(table(small)).split() if set(word) != {"─"}]
    assert plain(small).split() == rich_words


def test_what_was_narrowed_stands_under_the_table(small):
    line = "layer3: 33 of 64 is no faster than 40 here, so 40 is used"
    page = replace(small, narrowed=[line, "evil \x1b[2J"])
    for text in (plain(page), shown(table(page))):
        assert f"narrowed: {line}" in text
        assert "\x1b" not in text
    assert "narrowed" not in plain(small)


def test_plain_columns_stand_under_their_heads(small):
    lines = plain(small).splitlines()[2:9]
    assert {len(line) for line in lines} == {len(lines[0])}


def test_hostile_names_have_no_effect(awkward):
    for text in (shown(table(awkward), 250), plain(awkward)):
        assert "\x1b" not in text
        assert '<script>alert("x")</script>' in text
    assert len(plain(awkward).splitlines()) == 2 + 17 + 1 + 2


def test_markup_in_a_name_is_shown(small):
    page = replace(small, title="[bold]t", rows=[replace(small.full, name="[red]full")])
    assert "[red]full" in shown(table(page))
    assert "[bold]t" in shown(table(page))


def test_missing_figures_are_dashes(awkward):
    assert "–" in plain(awkward)
