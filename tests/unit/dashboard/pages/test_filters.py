"""How values read on a page."""

from __future__ import annotations

import pytest

from dashboard.errors import STATUSES
from dashboard.pages.filters import count, counted, duration, number, percent, progress_view, short, size, state_class
from shared.errors import CODES
from shared.records.jobs import JobState
from shared.records.runs import Progress, RunState

NBSP = "\N{NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, NOTHING), (0.42, "0.4 s"), (12, "12 s"), (75, "1 min 15 s"), (3599.7, "1 h 0 min"), (7322, "2 h 2 min")],
)
def test_time_spans_read_in_the_unit_that_fits(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_a_number_agrees_with_what_is_counted() -> None:
    assert [counted(n, "face") for n in (0, 1, 1200)] == ["0 faces", "1 face", "1,200 faces"]


@pytest.mark.parametrize(
    ("bytes_", "words"),
    [(None, NOTHING), (0, "0 B"), (999, "999 B"), (10_812_345, "10.8 MB"), (5e9, "5.0 GB"), (4e12, "4000.0 GB")],
)
def test_sizes_read_in_the_unit_that_fits(bytes_: float | None, words: str) -> None:
    assert size(bytes_).replace(NBSP, " ") == words


def test_missing_values_read_as_a_dash() -> None:
    assert {percent(None), count(None), number(None), short(None)} == {NOTHING}


def test_values_read_with_their_digits() -> None:
    assert percent(0.93149) == f"93.1{NBSP}%"
    assert percent(0.5, 0) == f"50{NBSP}%"
    assert count(1234567.4) == "1,234,567"
    assert number(0.98149) == "0.981"
    assert short("a" * 64) == "a" * 12


def test_a_progress_reads_as_the_script_writes_it() -> None:
    progress = Progress(
        stage=RunState.TRAINING,
        done=333,
        total=1000,
        rate=1412.4,
        eta_s=75,
        epoch=3,
        epochs=9,
        loss=0.3124,
        accuracy=0.861,
    )

    view = progress_view(progress, RunState.TRAINING)

    assert view["share"] == 0.333
    assert view["percent"] == "33 %"
    assert view["text"] == f"Training · epoch 3 of 9 · 1,412 images/s · loss 0.312 · accuracy 86.1{NBSP}%"
    assert view["eta"] == "1 min 15 s left"


def test_no_progress_yet_is_an_empty_bar() -> None:
    nothing = {"share": 0.0, "percent": "", "eta": ""}
    assert progress_view(None, RunState.ACCEPTED) == {**nothing, "text": ""}
    assert progress_view(None, RunState.QUEUED) == {**nothing, "text": "Queued"}


def test_progress_of_a_stage_that_is_over_is_not_shown() -> None:
    last = Progress(stage=RunState.TRAINING, done=98, total=100, eta_s=1, epoch=4, epochs=4)

    assert progress_view(last, RunState.EVALUATING) == {"share": 0.0, "percent": "", "text": "Evaluating", "eta": ""}


def test_a_run_whose_trainer_does_not_respond_promises_no_time() -> None:
    last = Progress(stage=RunState.TRAINING, done=1, total=100, eta_s=780, epoch=1, epochs=4)

    view = progress_view(last, RunState.TRAINING, abandoned=True)

    assert (view["text"], view["eta"]) == ("Waiting for a trainer", "")


def test_states_are_coloured_by_how_they_ended() -> None:
    assert [state_class(state) for state in (RunState.REGISTERED, JobState.FINISHED)] == ["good", "good"]
    assert [state_class(state) for state in (RunState.FAILED, RunState.REJECTED)] == ["bad", "bad"]
    assert [state_class(state) for state in (RunState.TRAINING, RunState.QUEUED, RunState.CANCELLED)] == [
        "live",
        "",
        "",
    ]


def test_every_error_code_has_a_status() -> None:
    assert STATUSES.keys() == CODES.keys()
    assert all(400 <= status < 600 for status in STATUSES.values())
