"""Progress and messages: plain lines where nobody watches, a bar where somebody does, no control code of a model's."""

from __future__ import annotations

import io
import sys

import pytest

from titer import terminal
from titer.terminal import Terminal

HOSTILE = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00\x08\x9b2J one\r\ntwo \u202e end"
CODES = {"\x1b", "\x07", "\x00", "\x08", "\x9b", "\r", "\u202e"}


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_tell_shows_no_control_code(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as shown:
        shown.tell(HOSTILE)
    told = capsys.readouterr()
    assert told.out == ""
    assert not CODES & set(told.err)
    assert "\\x1b[31mred" in told.err
    assert told.err.count("\n") == 1


def test_tell_shows_words_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as shown:
        shown.tell("[bold]brackets[/bold] :smile: 100 % ‖ΔW a‖")
    assert capsys.readouterr().err == "[bold]brackets[/bold] :smile: 100 % ‖ΔW a‖\n"


def test_a_long_text_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as shown:
        shown.tell("a" * 100_000)
    assert len(capsys.readouterr().err) < 2100


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with Terminal() as shown:
        advance = shown.task("training")
        for done in range(1, 101):
            now[0] += 1.0
            advance(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training"
    assert lines[1] == "  15 of 100, about 85 s left"
    assert lines[-1] == "  90 of 100, about 10 s left"
    assert len(lines) == 1 + 100 // 15


def test_pieces_that_run_at_once_have_a_line_each_with_their_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with Terminal() as shown:
        advance = shown.task("models of 2 bases")
        shown.running(["base of seed 0", "base of seed 1"])
        now[0] = 60.0
        shown.running(["base of seed 1", "aligned of seed 0"])
        now[0] = 200.0
        advance(1, 4)
        shown.running(())
        now[0] = 300.0
        advance(2, 4)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "models of 2 bases",
        "  1 of 4",
        "    base of seed 1: 3 min so far",
        "    aligned of seed 0: 2 min so far",
        "  2 of 4",
    ]


def test_pieces_on_a_terminal_are_rows_that_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Screen())
    with Terminal() as shown:
        shown.task("models")(1, 4)
        for pieces, rows in ((["a", "b"], 3), (["b"], 2), ((), 1)):
            shown.running(pieces)
            assert shown._progress is not None
            assert len(shown._progress.tasks) == rows


def test_time_left_is_told_from_this_runs_own_work(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with Terminal() as shown:
        advance = shown.task("training")
        for done in (501, 502, 560, 600):  # 500 were done before
            now[0] += 20.0
            advance(done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "training",
        "  501 of 1000",
        "  502 of 1000",
        "  560 of 1000, about 5 min left",
        "  600 of 1000, about 4 min left",
    ]


def test_progress_on_a_terminal_is_a_bar_without_a_model_s_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with Terminal() as shown:
        for text in ("first", f"second {HOSTILE}"):
            advance = shown.task(text)
            for done in (1, 2, 3):
                advance(done, 3)
        shown.tell("a line beside the bar")
    seen = screen.getvalue()
    assert "a line beside the bar" in seen
    assert "3/3" in seen
    for code in ("\x1b]0;title", "\x07", "\x00", "\x9b", "\u202e", "\x1b[31mred"):
        assert code not in seen
