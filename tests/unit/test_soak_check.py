"""The soak's checker finds what is wrong with a ledger, and nothing where nothing is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tests.soak.check import check
from tests.soak.ledger import LEVELS, Answer, Fault, JobEnd, Ledger, Sample, Sent, SentJob, expected_answer


def answer_to(sent: Sent, version: int, at: float, *, named: int | None = None) -> Answer:
    ids = range(len(sent.levels)) if len(sent.levels) > 1 else [None]
    entries = [
        {"id": key, "probability_female": round(expected_answer(version, level), 6)}
        for key, level in zip(ids, sent.levels, strict=True)
    ]
    body = {"schema": 1, "model": {"name": "gender", "version": named or version}, "predictions": entries}
    return Answer(sent.request_id, sent.reply_queue, body, at)


@pytest.fixture
def ledger() -> Ledger:
    """A soak in which everything went well: singles and packs, two versions, two reply queues."""
    sent = [
        Sent(f"m{n}", f"q{n % 2}", LEVELS[n : n + 1] if n % 2 else LEVELS[n : n + 5], True, float(n)) for n in range(20)
    ]
    levels = LEVELS[:9]
    return Ledger(
        sent=[*sent, Sent("refused", "q0", LEVELS[:1], False, 3.5)],
        answers=[answer_to(each, 1 + n % 2, n + 0.5) for n, each in enumerate(sent)],
        jobs=[SentJob("job-1", levels)],
        job_ends={"job-1": JobEnd("finished", 2, tuple(round(expected_answer(2, level), 6) for level in levels))},
        datasets=["run-1"],
        runs={"run-1": ("registered", 1)},
        faults=[Fault("kill", 4.2)],
        samples=[Sample(float(n), 1000 + n % 3, 50) for n in range(20)],
    )


def test_a_good_soak_is_clean(ledger: Ledger) -> None:
    verdict = check(ledger)
    assert verdict.is_clean, verdict
    assert (verdict.requests, verdict.images) == (20, 60)
    assert verdict.recovery_s == {"kill": [pytest.approx(1.3)]}  # sent at 5, answered at 5.5
    assert verdict.half_s == {"kill": [pytest.approx(0.3)]}  # what was sent at 4


def test_one_that_is_lost_on_purpose_is_found(ledger: Ledger) -> None:
    del ledger.answers[7]
    verdict = check(ledger)
    assert (verdict.lost, verdict.misrouted, verdict.is_clean) == (1, 0, False)
    assert "m7" in verdict.examples[0]


@pytest.mark.parametrize(("one", "other"), [(5, 7), (4, 8), (5, 8)])
def test_two_that_are_swapped_on_purpose_are_found(ledger: Ledger, one: int, other: int) -> None:
    first, second = ledger.answers[one], ledger.answers[other]
    ledger.answers[one], ledger.answers[other] = replace(first, body=second.body), replace(second, body=first.body)
    verdict = check(ledger)
    assert (verdict.lost, verdict.misrouted, verdict.is_clean) == (0, 2, False)


def test_an_answer_in_another_s_queue_is_misrouted_and_its_request_lost(ledger: Ledger) -> None:
    ledger.answers[5] = replace(ledger.answers[5], reply_queue="q0")
    verdict = check(ledger)
    assert (verdict.lost, verdict.misrouted) == (1, 1)


@pytest.mark.parametrize(("version", "named"), [(1, 2), (2, 1), (3, 1), (1, 3)])
@pytest.mark.parametrize("index", [4, 5])
def test_an_answer_of_another_model_than_it_names_is_found(
    ledger: Ledger, index: int, version: int, named: int
) -> None:
    ledger.answers[index] = answer_to(ledger.sent[index], version, 1.0, named=named)
    verdict = check(ledger)
    assert (verdict.wrong_model, verdict.misrouted) == (1, 0)


def test_no_two_levels_and_versions_answer_alike() -> None:
    answers = sorted(expected_answer(version, level) for version in (1, 2, 3) for level in LEVELS)
    assert min(after - before for before, after in itertools.pairwise(answers)) > 1e-3


def test_an_answer_to_what_was_never_confirmed_makes_up_for_no_other(ledger: Ledger) -> None:
    del ledger.answers[7]
    ledger.answers.append(answer_to(ledger.sent[-1], 1, 4.0))
    assert ledger.waiting() == 1
    verdict = check(ledger)
    assert (verdict.lost, verdict.misrouted, verdict.duplicates) == (1, 0, 0)


def test_duplicates_are_counted_and_a_few_forgiven(ledger: Ledger) -> None:
    assert check(ledger).faults.total() == 1
    ledger.answers.append(replace(ledger.answers[3], at=30.0))
    assert check(ledger).duplicates == 1
    assert check(ledger).is_clean  # one for each fault
    ledger.answers.append(replace(ledger.answers[4], at=30.0))
    assert not check(ledger).is_clean  # two of 20 are more than that and one in a hundred


def test_an_error_a_wrong_row_and_a_run_that_did_not_end_are_found(ledger: Ledger) -> None:
    ledger.answers[0] = replace(ledger.answers[0], body={"schema": 1, "error": {"code": "internal"}})
    rows = list(ledger.job_ends["job-1"].rows)
    rows[2], rows[3] = rows[3], rows[2]
    ledger.job_ends["job-1"] = JobEnd("finished", 2, tuple(rows))
    ledger.runs["run-1"] = ("registered", 2)
    verdict = check(ledger)
    assert (verdict.errors, verdict.unended) == (1, 2)


def test_memory_that_grows_and_files_that_stay_are_found(ledger: Ledger) -> None:
    ledger.samples = [Sample(float(n), 1000 + 100 * n, 50) for n in range(20)]
    ledger.left_over = ["genderline-x"]
    verdict = check(ledger)
    assert [text.split(":")[0] for text in verdict.grown] == ["memory_bytes"]
    assert verdict.left_over == 1
