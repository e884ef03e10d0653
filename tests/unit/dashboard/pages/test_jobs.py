"""The pages of jobs."""

from __future__ import annotations

from shared.records.jobs import JobState
from tests.support.dashboard_app import Site
from tests.unit.dashboard.pages.helpers import csrf_of


def test_a_job_shows_rows_pictures_and_only_the_wrong_ones_if_asked(filled: Site) -> None:
    web = filled.web
    text = web.get("/jobs/job-000000000001").text
    wrong = web.get("/jobs/job-000000000001?show=wrong").text
    errors = web.get("/jobs/job-000000000001?show=errors").text

    assert "20_0_0_0.jpg" in text
    assert 0 < wrong.count("✗") < text.count("✗") + text.count("✓")
    assert "✓" not in wrong
    assert "found a text file" in errors
    picture = web.get("/jobs/job-000000000001/images/0.png")
    assert (picture.status_code, picture.mimetype) == (200, "image/png")
    assert web.get("/jobs/job-000000000001/images/99.png").status_code == 404


def test_past_the_end_of_the_jobs_their_last_page_is_shown(filled: Site) -> None:
    for page in ("2", "9", "9" * 30):
        assert "job-000000000001" in filled.web.get(f"/jobs?page={page}").text


def test_a_job_is_cancelled_from_its_page(filled: Site) -> None:
    filled.builder.jobs.create("job-b", message_id="b", name="b", state=JobState.QUEUED)
    web = filled.web

    answer = web.post("/jobs/job-b/cancel", data={"csrf": csrf_of(web)}, follow_redirects=True)

    assert "Cancelling…" in answer.text
    assert filled.builder.jobs.cancel_requested("job-b")
