from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from shared.runtime.log import configure_logging, log_ids


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The process's logging as it was, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("pika", "waitress", "botocore")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def test_text_lines_name_time_level_and_service(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", "info", "text")
    logging.getLogger("x").info("epoch %d", 3)
    line = capsys.readouterr().err
    assert line[8:] == " INFO    trainer: epoch 3\n"


def test_json_lines_carry_the_fields_of_the_call_and_the_time_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("inference", "info", "json")
    record = logging.makeLogRecord({"name": "shared.x", "levelno": 20, "levelname": "INFO", "msg": "swapped"})
    record.created, record.msecs, record.version = 1_700_000_000.25, 250.0, 3
    logging.getLogger("shared.x").handle(record)
    assert json.loads(capsys.readouterr().err) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "service": "inference",
        "logger": "shared.x",
        "message": "swapped",
        "version": 3,
    }


def test_json_lines_stay_one_line_with_traceback_and_odd_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", "info", "json")
    try:
        raise KeyError("x\ny")
    except KeyError:
        logging.getLogger("x").exception("a\nbug", extra={"where": object})
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["message"] == "a\nbug"
    assert "KeyError: 'x\\ny'" in found["traceback"]
    assert "object" in found["where"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_less_than_the_level_is_not_shown(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logging("trainer", "warning", form)
    logging.getLogger("x").info("quiet")
    assert capsys.readouterr().err == ""


def test_other_people_s_chatter_is_shown_from_a_warning_up(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", "debug", "text")
    for name in ("pika", "waitress", "botocore"):
        logging.getLogger(f"{name}.part").info("chatter")
        logging.getLogger(f"{name}.part").warning("trouble of %s", name)
    # Threads of tests before this one may still have something to say.
    told = [line for line in capsys.readouterr().err.splitlines() if "trouble of" in line or "chatter" in line]
    assert [line.split(": ")[1] for line in told] == [
        # Not pika's: it tells each lost connection ten times, and our own link tells it once.
        "trouble of waitress",
        "trouble of botocore",
    ]


def test_configuring_twice_prints_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", "info", "text")
    configure_logging("trainer", "info", "text")
    logging.getLogger("x").info("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_name_can_neither_forge_a_line_nor_command_a_terminal(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logging("trainer", "info", form)
    name = "faces\n12:00:00 ERROR   trainer: forged\x1b[31m\x7f\x9b"
    logging.getLogger("x").info("took %r and %s", name, name)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert "forged" in line


def test_a_traceback_in_text_is_indented_so_that_its_lines_look_like_no_event(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("trainer", "info", "text")
    try:
        raise ValueError("x\n12:00:00 ERROR   trainer: forged\x1b[31m")
    except ValueError:
        logging.getLogger("x").exception("a bug")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("ERROR   trainer: a bug")
    assert any("forged" in line for line in rest)
    assert all(line.startswith("  ") and line.isprintable() for line in rest)


def test_lines_about_a_message_carry_its_id_while_it_is_handled(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("inference", "info", "json")
    with log_ids(message_id="m-1"):
        logging.getLogger("x").info("taken")
    logging.getLogger("x").info("waiting")
    taken, waiting = map(json.loads, capsys.readouterr().err.splitlines())
    assert taken["message_id"] == "m-1"
    assert "message_id" not in waiting
    configure_logging("inference", "info", "text")
    with log_ids(message_id="m-1\n"):
        logging.getLogger("x").info("taken")
    assert capsys.readouterr().err.endswith(r"inference: taken [message_id m-1\n]" + "\n")
