"""What the pages can do, HTTP and the command line can do; and the pages ask before what cannot be undone."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Final, NamedTuple

import click
import pytest

from dashboard.api.document import document
from shared.cli import main
from shared.records.jobs import JobState
from tests.support.dashboard_app import Site
from tests.unit.dashboard.pages.helpers import RUN, bury
from tests.unit.dashboard.pages.test_every_page import paths

KINDS: Final = ("dataset", "run", "model", "job")


class Way(NamedTuple):
    """How else an action of a page is done."""

    calls: tuple[str, ...]  # `operationId`s of the HTTP API
    commands: tuple[str, ...]  # each with the option that it takes
    asks: bool = False  # whether it cannot be undone, so that a page asks first


ACTIONS: Final = {
    "overview.generate_sample": Way(("generate_sample",), ("sample", "train")),
    "overview.dismiss_issue": Way(("dismiss_run", "dismiss_job"), ("runs --dismiss", "jobs --dismiss")),
    "datasets.train": Way(("train_dataset",), ("train --dataset",)),
    "datasets.edit": Way(("edit_dataset",), ("dataset edits add", "dataset edits undo")),
    "datasets.score_dataset": Way(("score_dataset",), ("compare --predict",)),
    "compare.score": Way(("score_dataset",), ("compare --predict",)),
    "runs.cancel_run": Way(("cancel_run",), ("runs --cancel",), asks=True),
    "runs.retry_run": Way(("retry_run",), ("runs --retry",)),
    "models.promote": Way(("promote_model",), ("promote",), asks=True),
    "models.roll_back": Way(("roll_back_model",), ("rollback",), asks=True),
    "predict.predict_image": Way(("predict",), ("predict",)),
    "jobs.cancel_job": Way(("cancel_job",), ("jobs --cancel",), asks=True),
    "jobs.retry_job": Way(("retry_job",), ("jobs --retry",)),
    "dead.retry": Way(("retry_dead",), ("dead retry",)),
    "dead.drop": Way(("drop_dead",), ("dead drop",), asks=True),
    "manage.annotate": Way(tuple(f"annotate_{kind}" for kind in KINDS), tuple(f"{kind}s --name" for kind in KINDS)),
    "manage.delete": Way(tuple(f"delete_{kind}" for kind in KINDS), ("delete",)),  # on a page that asks
}
OF_A_BROWSER: Final = {"auth.log_in", "auth.log_out"}
CALLS_OF_SCRIPTS: Final = {
    "submit_dataset": "train",
    "submit_job": "predict",
    "explain": "explain",
    "list_faces": "dataset faces",
    "dataset_faces": "dataset faces --out",
    "dataset_face_images": "dataset faces --out",
    "export_dataset": "export",
    "export_run": "export",
    "export_model": "export",
    "job_results": "jobs --out",
    "compare_models": "compare",
}
"""What pages offer by links and scripts, without a route of their own."""


def known_calls() -> set[str]:
    return {call["operationId"] for operations in document()["paths"].values() for call in operations.values()}


def find_command(words: str) -> click.Command:
    """Returns a command, and checks its option; `KeyError` where there is none."""
    found: click.Command = main
    for word in words.split():
        if word.startswith("--"):
            assert word in {name for param in found.params for name in param.opts}, words
        else:
            assert isinstance(found, click.Group), words
            found = found.commands[word]
    return found


def test_every_action_of_the_pages_has_its_call_and_its_command(site: Site) -> None:
    changing = {
        rule.endpoint
        for rule in site.app.url_map.iter_rules()
        if (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"} and not rule.endpoint.startswith("api.")
    }

    assert changing == {*ACTIONS, *OF_A_BROWSER}
    for action, way in ACTIONS.items():
        assert way.calls, action
        assert set(way.calls) <= known_calls(), action
        assert way.commands, action
        for command in way.commands:
            find_command(command)


@pytest.mark.parametrize(("call", "command"), CALLS_OF_SCRIPTS.items())
def test_what_scripts_and_links_ask_for_has_a_command(call: str, command: str) -> None:
    assert call in known_calls()
    find_command(command)


class Submits(HTMLParser):
    """Collects where the forms of a page post to, by which button, and whether that asks first."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, bool]] = []
        self._form: dict[str, str | None] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self._form = given
        elif tag == "button" and self._form.get("method") == "post":
            target = given.get("formaction") or self._form.get("action") or ""
            self.found.append((target, bool(given.get("data-confirm") or self._form.get("data-confirm"))))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = {}


def test_the_pages_ask_before_what_cannot_be_undone_and_before_nothing_else(filled: Site) -> None:
    bury(filled, b"x", "text/plain")
    filled.builder.jobs.create("job-going", message_id="g", name="going", state=JobState.QUEUED)
    router = filled.app.url_map.bind("localhost")
    asked: dict[str, set[bool]] = {}
    for path in (*paths(filled), "/jobs/job-going", f"/runs/{RUN}"):
        for target, asks in Submits(filled.web.get(path).text).found:
            if target:
                endpoint, _ = router.match(target.partition("?")[0], method="POST")
                asked.setdefault(endpoint, set()).add(asks)

    wanted = {name for name, way in ACTIONS.items() if way.asks}
    assert wanted <= asked.keys()  # each was seen
    assert {name for name, answers in asked.items() if answers == {True}} == wanted
    assert {name for name, answers in asked.items() if True in answers} == wanted
