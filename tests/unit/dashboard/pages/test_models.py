"""The pages of models."""

from __future__ import annotations

import re
from html import unescape

from shared.broker.base import Event
from shared.measures.shadow import ShadowFigures, add_shadow_figures
from shared.records.model_card import STARTER_RUN
from shared.records.registry import Aliases
from tests.support.dashboard_app import Site
from tests.unit.dashboard.pages.helpers import csrf_of, sha_of


def test_the_models_page_shows_drift_and_how_the_challenger_does(filled: Site) -> None:
    registry, page = filled.builder.registry, filled.web.get("/models").text
    assert "challenger" not in page
    assert "Drift" not in page
    champion = registry.aliases().champion
    assert champion is not None
    challenger = next(version for version in registry.versions() if version != champion)
    registry.challenge(challenger, "faster")
    figures = ShadowFigures(images=12_400, agreed=12_065, timed=8, challenger_s=0.8, champion_s=1.0)
    add_shadow_figures(filled.store, challenger, champion, figures)
    for number, (score, problem) in enumerate([(0.31, "it failed <on> an image"), (0.04, None)]):
        beat = {
            "service": "inference",
            "worker": f"here:{number}",
            "version": champion,
            "drift": {"images": 1024, "scores": {"luma": score, "predicted_female": 0.02}},
            "challenger": {"version": challenger, "problem": problem},
        }
        filled.parts.workers.on_event(Event("worker.heartbeat", beat))

    text = " ".join(re.sub("<[^>]*>", " ", filled.web.get("/models").text).split())

    assert f"Model {challenger} challenger agrees on 97.3 % of 12,400 images" in text
    assert "takes 0.80 times as long" in text
    assert "it failed &lt;on&gt; an image" in text
    assert "luma 0.31 drifted predicted female 0.02 none" in text
    assert "the last 2,048 images" in text
    assert f"Challenger: {challenger} " in text


def test_a_model_page_says_what_twice_the_faces_would_be_worth(filled: Site) -> None:
    text = " ".join(re.sub("<[^>]*>", " ", filled.web.get("/models/1").text).split())

    assert "With twice the faces About +0.9 points of balanced accuracy." in text
    assert "91.2 % from 18 training faces, 92.1 % from 36, 93.0 % from 72." in text


def test_a_version_is_promoted_and_rolled_back_with_its_reason(filled: Site) -> None:
    web = filled.web
    csrf = csrf_of(web)

    promoted = web.post("/models/1/promote", data={"csrf": csrf, "reason": "<b>fairer</b>"}, follow_redirects=True)
    back = web.post("/models/rollback", data={"csrf": csrf, "reason": "slower"}, follow_redirects=True)

    assert "Model 1 is the champion" in promoted.text
    assert "&lt;b&gt;fairer&lt;/b&gt;" in promoted.text
    assert "model 2 is the champion again" in back.text
    assert filled.builder.registry.aliases().champion == 2


def test_a_page_rolls_back_to_the_version_that_it_names_or_not_at_all(filled: Site) -> None:
    filled.builder.model(sha_of(filled), "run-000000000005")
    web, registry = filled.web, filled.builder.registry
    page = web.get("/models").text
    form = page.partition('id="rollback" data-live="model.*"')[2].partition("</form>")[0]
    assert "Roll back to model 1?" in form
    version = re.search(r'name="version" value="(\d+)"', form)
    assert version is not None
    registry.promote(3, "while the page was open")

    answer = web.post("/models/rollback", data={"csrf": csrf_of(web), "reason": "bad", "version": version[1]})

    assert answer.status_code == 409
    assert "The previous champion is version 2 now; expected version 1. Nothing was changed." in unescape(answer.text)
    assert registry.aliases() == Aliases(champion=3, previous=2)
    assert "Roll back to model 2?" in web.get("/models").text


def test_the_imported_starter_leads_to_no_run_and_no_dataset(site: Site) -> None:
    """Neither is in the store."""
    sha256 = site.builder.dataset(60)
    card = site.builder.registry.card(site.builder.model(sha256, "run-000000000001"))
    starter = card.changed(version=2, run_id=f"{STARTER_RUN}abc", dataset=card.dataset.changed(sha256="e" * 64))
    site.builder.registry.claim(starter.run_id)
    site.builder.registry.register(starter, "", {})
    for page in ("/models", "/models/2"):
        text = site.web.get(page).text
        assert f"/datasets/{starter.dataset.sha256}" not in text
        assert f"/runs/{starter.run_id}" not in text.replace(f"/runs/{starter.run_id}/scores", "")
    assert "Training run" not in site.web.get("/models/2").text


def test_a_version_that_workers_refuse_is_said_on_every_page_and_over_http(filled: Site) -> None:
    filled.builder.registry.refuse(2, "3 workers in a row <died>")
    refused = {"version": 1, "message": "its file is cut short"}
    beat = {"service": "inference", "worker": "here:1", "version": 2, "refused": refused}
    filled.parts.workers.on_event(Event("worker.heartbeat", beat))
    web = filled.web

    for page in ("/", "/models", "/models/2"):
        assert "3 workers in a row &lt;died&gt;" in web.get(page).text
    for page in ("/", "/models", "/models/1"):
        assert "its file is cut short" in web.get(page).text
    assert "Workers refuse model 2, the champion" in web.get("/").text.partition("Needs attention")[2]
    assert web.get("/models").text.count(">refused</span>") == 2
    listed = (web.get("/api/v1/models").json or {})["models"]
    assert {model["version"]: model["refused"] for model in listed} == {
        1: "its file is cut short",
        2: "3 workers in a row <died>",
    }
    assert (web.get("/api/v1/models/2").json or {})["refused"] == "3 workers in a row <died>"

    filled.builder.registry.promote(2, "try again")
    assert (web.get("/api/v1/models/2").json or {})["refused"] is None
