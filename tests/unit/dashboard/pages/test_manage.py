"""Names, notes and tags in the browser, and deleting."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from shared.records.annotations import Annotations, annotations_key
from tests.support.dashboard_app import Site, open_site
from tests.unit.dashboard.pages.helpers import RUN, csrf_of, sha_of

JOB = "job-000000000001"


def ids(site: Site) -> dict[str, str]:
    return {"dataset": sha_of(site), "run": RUN, "model": "1", "job": JOB}


@pytest.mark.parametrize("kind", ["dataset", "run", "model", "job"])
def test_a_name_a_note_and_tags_are_given_on_its_page_and_found_in_the_lists(filled: Site, kind: str) -> None:
    web, which = filled.web, ids(filled)[kind]
    form = {"csrf": csrf_of(web), "name": "<b>winter</b>", "note": "with glasses\nand hats", "tags": " best, new ,"}

    page = web.post(f"/manage/{kind}/{which}", data=form, follow_redirects=True).text

    assert "Saved." in page
    assert "<h1>" in page
    assert "&lt;b&gt;winter&lt;/b&gt;" in page.partition("<h1>")[2].partition("</h1>")[0]
    assert '<p class="said">with glasses\nand hats</p>' in page
    assert f'<a class="badge tag" title="best" href="/{kind}s?tag=best">best</a>' in page
    tagged, others = web.get(f"/{kind}s?tag=best").text, web.get(f"/{kind}s?tag=worst").text
    assert "&lt;b&gt;winter&lt;/b&gt;" in tagged
    assert "&lt;b&gt;winter&lt;/b&gt;" not in others
    listed = web.get(f"/api/v1/{kind}s?tag=new").json or {}
    assert [item["annotation"]["name"] for item in listed[f"{kind}s"]] == ["<b>winter</b>"]


def form_of(web: FlaskClient, page: str) -> dict[str, str]:
    """Returns the fields of the form as a browser would send them, with its ends of lines."""
    form = web.get(page).text.partition('id="manage"')[2].partition("</form>")[0]
    fields = {}
    for tag in re.findall(r"<input[^>]*>", form):
        value = re.search(r' value="([^"]*)"', tag)
        fields[re.search(r' name="([^"]*)"', tag)[1]] = value[1] if value else ""  # type: ignore[index]
    fields["note"] = re.search(r"<textarea[^>]*>([^<]*)", form)[1]  # type: ignore[index]
    return {name: html.unescape(value).replace("\n", "\r\n") for name, value in fields.items()}


def test_what_two_people_change_at_a_time_is_kept(filled: Site) -> None:
    web, page, action = filled.web, f"/runs/{RUN}", f"/manage/run/{RUN}"
    filled.parts.client.annotate("run", RUN, note="two\nlines", tags=["old", "kept"])
    first, second = form_of(web, page), form_of(web, page)

    web.post(action, data={**second, "note": "consent withdrawn", "tags": "kept, hold"})
    answer = web.post(action, data={**first, "name": "winter", "tags": "old, kept, mine"}, follow_redirects=True)

    assert "Saved." in answer.text
    annotation = Annotations(filled.store).all("run")[RUN]
    assert (annotation.name, annotation.note) == ("winter", "consent withdrawn")
    assert annotation.tags == ("hold", "kept", "mine")
    web.post(action, data={**form_of(web, page), "name": "", "note": "", "tags": ""})
    annotation = Annotations(filled.store).all("run")[RUN]
    assert (annotation.name, annotation.note, annotation.tags) == (None, "", ())


def test_of_two_people_who_change_the_same_text_the_second_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    with open_site(tmp_path, token="secret-of-admin", tokens="alice:full:secret-of-alice") as site:
        site.builder.job(JOB)
        web, action = site.web, f"/manage/job/{JOB}"
        alice, admin = ({"Authorization": f"Bearer secret-of-{name}"} for name in ("alice", "admin"))
        form = {"name": "", "note": "", "tags": "", "seen_name": "", "seen_note": "", "seen_tags": ""}
        web.post(action, data={**form, "note": "hers"}, headers=alice)

        refused = web.post(action, data={**form, "name": "his name", "note": "his", "tags": "his"}, headers=admin)

        assert refused.status_code == 409
        assert "changed by alice meanwhile, to “hers”. Yours was not saved: “his”" in refused.text
        annotation = Annotations(site.store).all("job")[JOB]
        assert (annotation.name, annotation.note, annotation.tags, annotation.by) == (None, "hers", (), "alice")
        assert web.post(action, data={**form, "note": "hers"}, headers=admin).status_code == 303


@pytest.mark.parametrize("kind", ["dataset", "run", "model"])
def test_what_is_in_use_is_not_deleted_and_the_page_says_why(filled: Site, kind: str) -> None:
    web, which = filled.web, ids(filled)[kind]
    filled.builder.runs.update("run-000000000003", state="cancelled")

    page = web.get(f"/manage/{kind}/{which}/delete").text

    assert "Version 1" in page or "Version 2" in page
    assert "not in use" in page
    assert "cannot be undone" not in page
    assert web.post(f"/manage/{kind}/{which}/delete", data={"csrf": csrf_of(web)}).status_code == 409
    assert web.delete(f"/api/v1/{kind}s/{which}", headers={"X-CSRF-Token": csrf_of(web)}).status_code == 409


def test_a_model_is_deleted_after_the_page_has_said_what_depends_on_it(filled: Site) -> None:
    version = filled.builder.model(sha_of(filled), "run-000000000009")
    web = filled.web
    assert web.get(f"/models/{version}").status_code == 200

    asked = web.get(f"/manage/model/{version}/delete").text
    assert "run run-000000000009</a> loses its model" in asked
    refused = filled.web.delete(f"/api/v1/models/{version}")
    assert refused.status_code == 409
    assert "Run run-000000000009 stays, but loses its model." in refused.text
    after = web.post(f"/manage/model/{version}/delete", data={"csrf": csrf_of(web)}, follow_redirects=True).text

    assert f"Model {version} was deleted." in after
    assert web.get(f"/models/{version}").status_code == 404
    run = web.get("/runs/run-000000000009")
    assert run.status_code == 200
    assert f'href="/models/{version}"' not in run.text
    assert web.get("/runs").status_code == web.get(f"/datasets/{sha_of(filled)}").status_code == 200
    assert filled.builder.registry.claim("run-new") == version + 1


def test_over_http_what_is_left_out_stays(filled: Site) -> None:
    web = filled.web
    web.patch(f"/api/v1/runs/{RUN}", json={"name": "winter", "tags": ["b", "a"]})
    second = (web.patch(f"/api/v1/runs/{RUN}?note=cold").json or {})["annotation"]

    assert (second["name"], second["note"], second["tags"]) == ("winter", "cold", ["a", "b"])
    assert (web.get(f"/api/v1/runs/{RUN}").json or {})["name"] == "winter"
    assert web.patch("/api/v1/runs/nope", json={"name": "x"}).status_code == 404
    assert web.patch(f"/api/v1/runs/{RUN}", json={"tags": ["a,b"]}).status_code == 400


def test_who_did_it_is_recorded(tmp_path: Path) -> None:
    with open_site(tmp_path, token="secret-of-admin", tokens="alice:full:secret-of-alice") as site:
        site.builder.job(JOB)
        site.builder.job("job-000000000002")
        headers = {"Authorization": "Bearer secret-of-alice"}
        assert site.web.patch(f"/api/v1/jobs/{JOB}", json={"note": "mine"}, headers=headers).status_code == 200
        assert site.web.delete("/api/v1/jobs/job-000000000002", headers=headers).status_code == 200
        annotations = Annotations(site.store)
        assert annotations.all("job")[JOB].by == "alice"
        assert [(entry.which, entry.by) for entry in annotations.deletions("job")] == [("job-000000000002", "alice")]


def test_a_damaged_file_is_named_on_its_list_and_costs_nothing_else(filled: Site) -> None:
    filled.store.put(annotations_key("run"), b"")

    assert "annotations/runs.json in the store is damaged" in filled.web.get("/runs").text
    assert filled.web.get(f"/runs/{RUN}").status_code == 200
