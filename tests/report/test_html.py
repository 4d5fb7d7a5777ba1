import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from nestling.errors import FileError
from nestling.report import pareto, report_html

HOSTILE = '<script>alert("x")</script>'  # as in the awkward menu
VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Collects tags, the cells of the first table and the code; checks that tags nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.rows, self.text = [], [], [], {}

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        for tag in self.open:
            self.text[tag] = self.text.get(tag, "") + data


def read(path):
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def picture(small, tmp_path):
    return pareto(small, tmp_path / "pareto.png")


def test_the_table_holds_the_numbers(small, tmp_path):
    reader = read(report_html(small, {}, tmp_path / "r.html"))
    table = {row[0]: row[1:] for row in reader.rows[:7]}
    assert table["Subnet"][-2:] == ["Accuracy", "Offered"]
    assert table["full"] == [
        "100 %",
        "12.3 M",
        "0.31 M",
        "1.2 MB",
        "3.10",
        "3.02–3.21",
        "1.00×",
        "1.00×",
        "99.20 %",
        "yes",
    ]
    assert table["s4"] == [
        "7.3 %",
        "0.90 M",
        "22.5 k",
        "90.0 kB",
        "0.600",
        "0.585–0.634",
        "5.17×",
        "13.7×",
        "95.10 %",
        "yes",
    ]
    assert table["s2-alt"][-1] == "no"
    assert "slower than s2 and no more accurate" in reader.text["li"]
    assert "runs 5.2 times faster at 4.1 points less accuracy" in reader.text["p"]


def test_the_page_needs_no_network(small, picture, tmp_path):
    path = report_html(small, {"Pareto": picture}, tmp_path / "r.html")
    reader = read(path)
    for tag, attrs in reader.tags:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attrs.get(key) or "data:").startswith("data:"), (tag, key)
        assert tag not in ("iframe", "object", "embed", "base")
    assert not re.search(r"https?://|@import|url\(|fetch\(", path.read_text("utf-8"))
    policy = [attrs["content"] for tag, attrs in reader.tags if "http-equiv" in attrs]
    assert policy[0].startswith("default-src 'none'")


def test_pictures_are_embedded_whole_and_described(small, picture, tmp_path):
    reader = read(report_html(small, {"Pareto": picture}, tmp_path / "r.html"))
    (image,) = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert base64.b64decode(image["src"].partition(",")[2]) == picture.read_bytes()
    assert image["alt"].startswith("Pareto")
    assert int(image["width"]) == 960


def test_hostile_text_stays_text(awkward, picture, tmp_path):
    path = report_html(awkward, {HOSTILE: picture}, tmp_path / "r.html")
    reader = read(path)
    assert sum(tag == "script" for tag, _ in reader.tags) == 1
    assert "alert" not in reader.text["script"]
    assert HOSTILE in reader.text["title"]
    assert HOSTILE in [row[0] for row in reader.rows]
    assert "top-1 <&>".capitalize() in reader.rows[0]


def test_accessible(small, tmp_path):
    reader = read(report_html(small, {}, tmp_path / "r.html"))
    assert ("html", {"lang": "en"}) in reader.tags
    assert all("scope" in attrs for tag, attrs in reader.tags if tag == "th")
    assert sum(tag == "h1" for tag, _ in reader.tags) == 1
    style = reader.text["style"]
    assert "prefers-color-scheme: dark" in style


def test_code_opens_the_file_with_a_budget_that_is_met(small, awkward, tmp_path):
    code = read(report_html(small, {}, tmp_path / "r.html")).text["code"]
    assert 'nestling.load("model.nest")' in code
    assert "latency_ms=1.8" in code  # s2 takes up to 1.71 ms
    assert 'subnet="s4"' in code
    code = read(report_html(awkward, {}, tmp_path / "r.html")).text["code"]
    assert "nestling profile 'a b.nest'" in code
    rows = [replace(row, latency=None) for row in small.rows]
    code = read(report_html(replace(small, rows=rows), {}, tmp_path / "r.html")).text["code"]
    assert "fraction=0.41" in code


def test_a_picture_that_is_none_is_refused(small, tmp_path):
    with pytest.raises(FileError, match="draw it first"):
        report_html(small, {"Pareto": tmp_path / "no.png"}, tmp_path / "r.html")
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(FileError, match="save it as PNG"):
        report_html(small, {"Pareto": tmp_path / "no.png"}, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_use_starts_from_real_inputs(small, tmp_path):
    page = replace(small, facts={**small.facts, "data": "digits", "mean": "0.3053"})
    code = read(report_html(page, {}, tmp_path / "r.html")).text["code"]
    assert 'data = nestling.data.load("digits")' in code
    assert "next(iter(data.test_batches(1)))" in code


def test_what_was_narrowed_and_why_not_offered(small, tmp_path):
    lines = ["layer3: 33 of 64 is no faster than 40 here, so 40 is used", f"{HOSTILE}: <b>x"]
    hidden = replace(small.rows[3], reason=f"slower than {HOSTILE}")
    rows = [*small.rows[:3], hidden, *small.rows[4:]]
    reader = read(report_html(replace(small, rows=rows, narrowed=lines), {}, tmp_path / "r.html"))
    said = reader.text["ul"]
    assert lines[0] in said
    assert f"s2-alt: slower than {HOSTILE}" in said
    assert lines[1] in said
    assert [tag for tag, _ in reader.tags].count("script") == 1
    plain = read(report_html(small, {}, tmp_path / "s.html"))
    assert "worth having" not in plain.text["main"]
