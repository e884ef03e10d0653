"""`models`, `promote`, `rollback` and `challenge`."""

from __future__ import annotations

import re

import pytest

from shared.client import Client
from shared.measures.shadow import ShadowFigures, add_shadow_figures
from tests.support.builders.stores import StoreBuilder
from tests.unit.shared.cli.helpers import document, run


def test_models_are_listed_shown_promoted_and_rolled_back(builder: StoreBuilder, client: Client) -> None:
    assert "no models yet" in run("models").stderr
    sha256 = builder.dataset()
    for number in (1, 2):
        builder.model(sha256, f"run-00000000000{number}")
    with client.broker.subscribe(["model.promoted"]) as events:
        assert "version 1 is the champion; the previous one is none" in run("promote", "1", "--reason", "first").stdout
        assert document("promote", "2", "--reason", "better") == {"champion": 2, "previous": 1}
        assert run("rollback", "--reason", "worse").exit_code == 0
        promoted = [event.payload["version"] for _ in range(3) for event in events.receive(0.1)]
    assert promoted == [1, 2, 1]
    assert re.search(r"^ +1  champion ", run("models").stdout, flags=re.MULTILINE)
    assert [entry["reason"] for entry in document("models")["history"]] == ["first", "better", "worse"]
    assert "# gender 2" in run("models", "2").stdout
    assert document("models", "2")["version"] == 2
    assert run("promote", "9", "--reason", "x").exit_code == 1
    assert "registered: 1, 2" in run("models", "9").stderr


def test_a_challenger_is_named_listed_with_its_figures_and_dismissed(builder: StoreBuilder, client: Client) -> None:
    sha256 = builder.dataset()
    for number in (1, 2):
        builder.model(sha256, f"run-00000000000{number}")
    assert document("challenge", "2", exit_code=1)["error"]["code"] == "conflict"
    run("promote", "1", "--reason", "first")
    with client.broker.subscribe(["model.challenged"]) as events:
        assert "version 2 challenges version 1" in run("challenge", "2", "--reason", "faster").stdout
        assert re.search(r"^ +2  challenger ", run("models").stdout, flags=re.MULTILINE)
        assert "version 2 challenges version 1: it has not seen any images yet" in run("models").stdout
        figures = ShadowFigures(images=12_400, agreed=12_065, difference=260.4, challenger_s=0.8, champion_s=1.0)
        add_shadow_figures(client.store, 2, 1, figures)
        shown = " ".join(run("models").stdout.split())
        assert "agrees on 97.3 % of 12,400 images, mean difference 0.021, takes 0.80 times as long" in shown
        listed = document("models")
        assert listed["aliases"]["challenger"] == 2
        assert listed["shadow"]["agreement"] == 0.973
        assert document("challenge", "--clear") == {"champion": 1, "challenger": None}
        told = [event.payload["version"] for _ in range(2) for event in events.receive(0.1)]
    assert told == [2, None]
    assert "challenges" not in run("models").stdout
    assert run("challenge").exit_code == run("challenge", "2", "--clear").exit_code == 2
    assert document("challenge", "--clear", exit_code=1)["error"]["code"] == "conflict"


def test_promoting_and_rolling_back_need_no_reason(builder: StoreBuilder) -> None:
    sha256 = builder.dataset()
    for number in (1, 2):
        builder.model(sha256, f"run-00000000000{number}")
        assert run("promote", str(number)).exit_code == 0
    assert document("rollback") == {"champion": 1, "previous": 2}
    assert [entry["reason"] for entry in document("models")["history"]] == ["by hand"] * 3


def test_a_rollback_without_a_previous_champion_is_a_conflict() -> None:
    assert document("rollback", "--reason", "x", exit_code=1)["error"]["code"] == "conflict"


@pytest.mark.slow
def test_the_starter_becomes_the_champion_where_there_is_none(client: Client) -> None:
    with client.broker.subscribe(["model.*"]) as events:
        assert document("models", "import", "starter") == {"version": 1, "champion": 1}
        told = [event.topic for _ in range(3) for event in events.receive(0.1)]
    assert told == ["model.registered", "model.promoted"]
    assert client.registry.history()[-1].reason == "imported: the first model"
    assert "the starter is version 1, the champion" in run("models", "import", "starter").stdout
    assert "The starter, the weights that training begins from" in run("models", "1").stdout


def test_only_the_starter_can_be_imported() -> None:
    refused = run("models", "import", "other")
    assert refused.exit_code == 2
    assert "starter" in refused.stderr
    assert run("models", "other").exit_code == 2


def test_promoting_a_version_that_is_not_whole_is_refused_at_once(builder: StoreBuilder, client: Client) -> None:
    version = builder.model(builder.dataset(30), "run-a")
    client.store.delete(client.registry.model_key(version))
    result = run("promote", str(version))
    assert result.exit_code == 1
    assert f"models/gender/{version}/model.onnx in the store is damaged: it is missing" in result.stderr
    assert client.registry.aliases().champion is None


def test_a_version_that_workers_refuse_is_said(builder: StoreBuilder, client: Client) -> None:
    builder.model(builder.dataset(), "run-000000000001")
    client.registry.refuse(1, "3 workers in a row died")
    assert re.search(r"^ +1  refused ", run("models").stdout, flags=re.MULTILINE)
    assert "workers refuse version 1: 3 workers in a row died" in run("models").stdout
    assert document("models")["versions"][0]["refused"] == "3 workers in a row died"
    assert "3 workers in a row died" in run("models", "1").stdout
    assert document("models", "1")["refused"] == "3 workers in a row died"
