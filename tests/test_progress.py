import io

from rich.console import Console

from nestling.progress import Reporter


def reporter(**options):
    out = io.StringIO()
    return out, Reporter(console=Console(file=out, width=100, **options))


def test_plain_lines_where_there_is_no_terminal():
    out, report = reporter()
    with report:
        report.start("stage", 4)
        report.advance()
        report.line("epoch 1 [x]", at_most_every=60)
        report.line("epoch 2", at_most_every=60)
        report.line("epoch 3")
    assert out.getvalue() == "epoch 1 [x]\nepoch 3\n"


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, report = reporter(force_terminal=True)
    with report:
        report.start("one", 4, done=1)
        report.advance("note")
        report.start("two", 2)
    assert "two" in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out, report = reporter(force_terminal=True)
    with report:
        report.start("one", 4)
        report.say("text")
    assert "\x1b[3" not in out.getvalue()


def test_quiet(capfd):
    report = Reporter(quiet=True)
    with report:
        report.start("one", 1)
        report.say("text")
        report.line("line")
    assert capfd.readouterr() == ("", "")


def test_one_within_another_shows_the_same_bar(monkeypatch):
    """A search within a training."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, report = reporter(force_terminal=True)
    with report as outer:
        report.start("training", 4)
        with report as inner:
            assert inner is outer
            report.start("search", 2)
        report.start("joint", 3, done=1)
        report.advance()
        assert report._progress.finished is False
        (task,) = report._progress.tasks
        assert (task.description, task.completed, task.total) == ("joint", 2, 3)
    assert report._progress is None
    assert "joint" in out.getvalue()
    report.advance()  # after the end nothing is shown
    with report:
        report.start("again", 1)
        assert [task.description for task in report._progress.tasks] == ["again"]


def test_what_fails_within_leaves_the_bar_to_the_outer_one():
    _, report = reporter(force_terminal=True)
    with report:
        for _ in range(2):
            try:
                with report:
                    raise ValueError
            except ValueError:
                pass
            report.start("on", 1)
            assert report._progress is not None
    assert report._progress is None


def test_lines_go_to_stderr(capfd):
    Reporter().say("text")
    assert capfd.readouterr() == ("", "text\n")
