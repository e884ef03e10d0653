"""What an error means for its message."""

from __future__ import annotations

import errno
import logging

import pytest
from prometheus_client import CollectorRegistry, Counter

from shared.errors import (
    Cancelled,
    Conflict,
    GenderlineError,
    InvalidDataset,
    InvalidImage,
    InvalidMessage,
    InvalidModel,
    NotFound,
    Retryable,
)
from shared.worker.retry import Bury, Requeue, RetryPolicy, TooOften, Wait, refuse_too_often


def policy(delivery_limit: int | None = 3) -> RetryPolicy:
    return RetryPolicy(delivery_limit, Counter("dead", "-", ["reason"], registry=CollectorRegistry()))


def decide(error: Exception, delivery_count: int = 0, retry: RetryPolicy | None = None) -> Wait | Requeue | Bury:
    try:
        raise error
    except Exception as raised:
        return (retry or policy()).decide(raised, "m1", delivery_count)


@pytest.mark.parametrize(
    "error",
    [
        InvalidMessage("uri: missing"),
        InvalidMessage("content type is 'x'; expected y", code="unsupported_content_type"),
        InvalidDataset("empty"),
        InvalidImage("truncated"),
        InvalidModel("no input"),
        NotFound("no model version 9", code="unknown_model_version"),
        Cancelled("by a user"),
        Conflict("it has ended"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error.code}",
)
def test_what_a_second_try_cannot_help_is_buried_at_once(error: GenderlineError) -> None:
    assert decide(error) == Bury(error.code, error)


def test_what_may_pass_is_waited_for_with_growing_pauses_as_long_as_it_takes() -> None:
    retry = policy()
    pauses = []
    for delivery_count in range(8):
        verdict = decide(Retryable("the store is away"), delivery_count, retry)
        assert isinstance(verdict, Wait)
        pauses.append(verdict.pause_s)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_each_message_has_pauses_of_its_own() -> None:
    retry = policy()
    assert [retry.decide(Retryable("away"), key, 0) for key in ("a", "a", "b")] == [Wait(1), Wait(2), Wait(1)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EIO, errno.EROFS])
def test_a_machine_that_has_no_room_is_waited_for(number: int) -> None:
    assert decide(OSError(number, "no room")) == Wait(1)


def test_a_bug_is_tried_once_more_and_then_buried_with_its_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert decide(RuntimeError("secret")) == Requeue(1)
    verdict = decide(RuntimeError("secret"), delivery_count=1)
    assert isinstance(verdict, Bury)
    assert verdict.reason == "internal"
    assert "secret" not in str(verdict.error)
    assert caplog.text.count("Traceback") == 2
    assert "at delivery 2 of the message" in caplog.text


def test_an_error_that_says_what_it_is_has_no_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    decide(Retryable("the store is away"))
    decide(InvalidDataset("empty"))
    assert "the store is away; trying again in 1 s" in caplog.text
    assert "Traceback" not in caplog.text


def test_what_was_delivered_too_often_is_refused_and_buried_as_such() -> None:
    retry = policy(3)
    retry.check(2)
    with pytest.raises(TooOften) as raised:
        retry.check(3)
    assert decide(raised.value) == Bury("delivery_limit", raised.value)
    assert raised.value.code == "internal"


def test_without_a_limit_deliveries_do_not_count() -> None:
    policy(None).check(10**6)


def test_what_counts_by_itself_is_refused_by_the_same_rule() -> None:
    refuse_too_often(4, 5)
    with pytest.raises(TooOften, match="given up after 5"):
        refuse_too_often(5, 5)
