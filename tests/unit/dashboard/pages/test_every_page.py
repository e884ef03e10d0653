"""What holds for every page, as a browser without scripts sees it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from shared.records.jobs import JobState
from shared.records.runs import RunState
from tests.support.dashboard_app import Site, error_of
from tests.unit.dashboard.pages.helpers import RUN, bury, sha_of


def paths(site: Site) -> list[str]:
    sha256 = sha_of(site)
    return [
        "/",
        "/datasets",
        f"/datasets/{sha256}",
        f"/datasets/{sha256}/faces/0",
        "/runs",
        f"/runs/{RUN}",
        "/runs/run-000000000003",
        "/runs/run-000000000004",
        f"/runs/compare?run={RUN}&run=run-000000000002",
        "/models",
        "/models/1",
        "/compare",
        "/compare?first=1&second=2",
        "/manage/model/1/delete",
        f"/manage/run/{RUN}/delete",
        "/predict",
        "/jobs",
        "/jobs/job-000000000001",
        "/dead",
        "/nope",
    ]


class Tags(HTMLParser):
    """Collects the tags of a page, and complains of one that is never closed."""

    VOID = frozenset({"meta", "link", "img", "input", "hr", "br", "line", "circle", "path", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_page_is_well_formed_html_without_inline_script_or_style(filled: Site) -> None:
    bury(filled, b'{"schema": 2}', "application/json")
    for path in paths(filled):
        text = filled.web.get(path).text
        tags = Tags(text).found

        assert not [1 for tag, attrs in tags if tag == "style" or (tag == "script" and "src" not in attrs)], path
        assert not [name for _, attrs in tags for name in attrs if name == "style" or name.startswith("on")], path
        ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
        assert len(ids) == len(set(ids)), path


def test_every_form_that_changes_something_carries_the_csrf_token(filled: Site) -> None:
    bury(filled, b"x", "text/plain")
    seen = 0
    for path in paths(filled):
        for form in re.findall(r"<form[^>]*method=\"post\".*?</form>", filled.web.get(path).text, re.DOTALL):
            seen += 1
            assert 'name="csrf"' in form, path
    assert seen >= 6


def test_every_field_and_image_has_a_name_for_screen_readers(filled: Site) -> None:
    for path in paths(filled):
        tags = Tags(filled.web.get(path).text).found
        labelled = {attrs.get("for") for tag, attrs in tags if tag == "label"}
        for tag, attrs in tags:
            if tag in {"input", "select", "textarea"} and attrs.get("type") != "hidden":
                assert attrs.get("id") in labelled or attrs.get("aria-label"), (path, attrs)
            if tag == "img":
                assert "alt" in attrs, (path, attrs)
            if tag == "progress":
                assert attrs.get("aria-label"), (path, attrs)


def test_no_figure_is_a_share_on_one_page_and_a_fraction_on_another(filled: Site) -> None:
    shares: set[str] = set()
    fractions: set[float] = set()
    measured = ("/", "/runs", f"/runs/{RUN}", f"/runs/compare?run={RUN}&run=run-000000000002")
    for path in (*measured, "/models", "/models/1", "/compare?first=1&second=2"):
        text = re.sub(r"<[^>]+>", " ", filled.web.get(path).text)
        shares |= set(re.findall(r"(\d+\.\d)(?=(?:\N{EN DASH}[\d.]+)?\s*%)", text))
        fractions |= {float(found) for found in re.findall(r"(?<![\d.])0\.\d{3}(?![\d.])", text)}

    assert len(shares) > 30
    assert len(fractions) > 3
    twice = {share for share in fractions if f"{100 * share:.1f}" in shares}
    assert twice <= {0.5}  # the decision threshold is no share


def test_hostile_names_are_shown_as_text(filled: Site) -> None:
    sha256 = sha_of(filled)
    for path in ("/", "/runs", f"/datasets/{sha256}", f"/datasets/{sha256}/faces/0", "/predict?face=0"):
        text = filled.web.get(path).text
        assert "<img src=x" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert '<bdi class="name' in filled.web.get(f"/datasets/{sha256}/faces/1").text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/", "Start with some faces"),
        ("/datasets", "No datasets yet"),
        ("/runs", "No runs yet"),
        ("/models", "No models yet"),
        ("/predict", "Predictions need a trained model."),
        ("/jobs", "No jobs yet"),
        ("/dead", "No failed messages"),
        ("/runs/compare", "Select two runs or more"),
        ("/compare", "Two models are needed"),
    ],
)
def test_every_empty_list_says_what_to_do(site: Site, path: str, words: str) -> None:
    answer = site.web.get(path)

    assert answer.status_code == 200
    assert words in answer.text


@pytest.mark.parametrize(
    "path", ["/datasets/abc", "/datasets/abc/faces/0", "/runs/nope", "/models/9", "/jobs/nope", "/datasets/..%2f..%2fx"]
)
def test_what_is_not_there_gets_a_page_with_a_next_step(site: Site, path: str) -> None:
    answer = site.web.get(path)

    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert "Back to the overview" in answer.text


def test_what_had_failed_and_goes_on_is_shown_as_it_is(site: Site) -> None:
    error = {"code": "unavailable", "message": "the disk was full"}
    site.builder.run("run-1", state=RunState.FAILED, error=error)
    site.builder.jobs.create("job-1", message_id="1", name="one", state=JobState.QUEUED)
    site.builder.jobs.update("job-1", state=JobState.REJECTED, error=error)
    for path in ("/runs/run-1", "/jobs/job-1"):
        assert "the disk was full" in site.web.get(path).text

    site.builder.runs.reopen("run-1", 1.5)
    site.builder.jobs.reopen("job-1", 1.5)

    for path in ("/runs/run-1", "/jobs/job-1"):
        assert "the disk was full" not in site.web.get(path).text


def test_a_bug_in_a_page_is_a_page(
    filled: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filled.parts, "store_cache", None)

    answer = filled.web.get("/runs")

    assert (answer.status_code, answer.mimetype) == (500, "text/html")
    assert "Internal error; the service" in answer.text
    assert "AttributeError" in caplog.text
    assert error_of(filled.web.get("/api/v1/runs").data)[0] == "internal"


def test_damaged_records_are_named_on_their_lists_and_cost_the_pages_nothing_else(filled: Site) -> None:
    filled.store.put("runs/run-x/run.json", b"")
    filled.store.put("jobs/job-x/job.json", b"{}")
    filled.store.put("models/gender/2/card.json", b"")

    for page, name in (
        ("/runs", "runs/run-x/run.json"),
        ("/jobs", "jobs/job-x/job.json"),
        ("/models", "models/gender/2/card.json"),
    ):
        text = filled.web.get(page).text
        assert f"{name} in the store is damaged" in text
        assert "faces" in text or "photos" in text
        assert f"{name} in the store is damaged" in filled.web.get("/").text
        own_page = f"/{name.rpartition('/')[0]}".replace("/gender", "")
        assert f"{name} in the store is damaged" in filled.web.get(own_page).text
        api = filled.web.get(f"/api/v1{page}").json or {}
        assert [damaged["file"] for damaged in api["damaged"]] == [name]
        assert api["total"] >= len(api[page[1:]]) > 0  # it may count the damaged one


def test_a_damaged_file_of_aliases_is_named_and_costs_the_pages_nothing_else(filled: Site) -> None:
    filled.store.put("models/gender/aliases.json", b"")

    for page in ("/", "/models"):
        assert "models/gender/aliases.json in the store is damaged" in filled.web.get(page).text
    dataset = filled.builder.registry.card(1).dataset.sha256
    for page in ("/datasets", "/runs", "/jobs", "/predict", "/models/1", f"/datasets/{dataset}"):
        assert filled.web.get(page).status_code == 200, page
    found = filled.web.get("/api/v1/models").json or {}
    assert [damaged["file"] for damaged in found["damaged"]] == ["models/gender/aliases.json"]
    assert found["total"] == 2
    assert filled.web.get("/api/v1/status").status_code == 200
