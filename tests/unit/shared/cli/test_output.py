"""What commands print, on terminals and off them."""

from __future__ import annotations

import io
import json
import sys

import pytest

from shared.cli.output import Output, moment, percent


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes standard output and error a terminal; to be called in the test itself, since capturing starts there."""
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "CI", "TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_terminal_shows_bars_with_share_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with Output().steps() as steps:
        steps.step("training", 25, 100, rate=71.2, eta_s=65, detail="epoch 2/8")
        steps.line("    1       0.5")
        steps.step("evaluating")
        steps.step("exporting", 1, 3, unit="checks")
        steps.finish()
    text = terminal.getvalue()
    for part in (
        "training",
        "25 %",
        "71 images/s",
        "1:05 left",
        "epoch 2/8",
        "    1       0.5",
        "evaluating",
        "exporting",
    ):
        assert part in text, part
    assert "\x1b[" in text


def test_without_a_terminal_steps_are_plain_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Output().steps() as steps:
        for done in range(1000):
            steps.step("copying", done, 1000, unit="MB")
        steps.step("training", 0, 10, rate=5.0, eta_s=2)
    assert capsys.readouterr().err == "copying\ntraining\n"


def test_after_a_while_a_plain_step_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.cli.output._PLAIN_PAUSE_S", 0.0)
    with Output().steps() as steps:
        steps.step("queued")
        steps.step("queued")
        steps.step("training", 1, 4)
        steps.step("training", 2, 4, rate=5.0, eta_s=3723, detail="epoch 1/2")
    assert capsys.readouterr().err == "queued\ntraining\ntraining: 50%, 5.0 images/s, 1:02:03 left, epoch 1/2\n"


def test_tables_are_aligned_and_uncoloured_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(["NAME", "N"], [("a", 10), ("[red]long", None)], right=[1])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "NAME        N",
        "a          10",
        "[red]long   -",
    ]


def test_errors_go_to_standard_error_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output().error("first\nsecond")
    captured = capsys.readouterr()
    assert captured.err == "error: first\nerror: second\n"
    assert captured.out == ""


def test_markdown_is_rendered_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Output().markdown("# Title\n\x07text")
    assert capsys.readouterr().out == "# Title\n\\x07text\n"
    stream = on_terminal(monkeypatch)
    Output().markdown("# Title")
    assert "# Title" not in stream.getvalue()
    assert "Title" in stream.getvalue()


HOSTILE = "a\x1b[2J\nb\u202ec\x7f\x9b1m é 漢"


def test_text_from_outside_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.line(HOSTILE)
    output.error(HOSTILE)
    output.table(["NAME"], [[HOSTILE]])
    with output.steps() as steps:
        steps.step(HOSTILE, 1, 2)
    captured = capsys.readouterr()
    assert {char for char in captured.out + captured.err if not char.isprintable()} == {"\n"}
    assert r"a\x1b[2J\nb\u202ec\x7f\x9b1m é 漢" in captured.out


def test_a_document_holds_the_same_text_and_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).document({"name": HOSTILE + "\U000e0001"})
    printed = capsys.readouterr().out
    assert {char for char in printed if not char.isprintable()} == {"\n"}
    assert "é 漢" in printed
    assert json.loads(printed) == {"name": HOSTILE + "\U000e0001"}


def test_numbers_and_times_for_people() -> None:
    assert percent(0.9456) == "94.6 %"
    assert percent(None) is None
    assert moment("2026-01-02T03:04:05.678Z") == "2026-01-02 03:04:05"
    assert moment(None) is None
