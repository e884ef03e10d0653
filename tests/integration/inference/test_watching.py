"""Worker processes that watch what they answer: drift, and a challenger in the shadow of the champion."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from shared.broker.base import Outgoing
from shared.client import Client
from shared.errors import GenderlineError
from shared.measures.shadow import ShadowFigures
from shared.messages import pack_message
from tests.support.builders import models as build
from tests.support.builders.models import ModelBuilder, brightness_model, constant_model, image_of
from tests.support.inference_loops import replies
from tests.support.services import Installation, Service, eventually

WORKERS = 2
SIGNALS = ("luma", "contrast", "predicted_female", "confidence")
PACK = 8


@pytest.fixture(autouse=True)
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_WORKERS", str(WORKERS))
    monkeypatch.setenv("GENDERLINE_SHADOW_SHARE", "1")


def builder_of(client: Client) -> ModelBuilder:
    return ModelBuilder(client.store)  # type: ignore[arg-type]


def metrics(service: Service, name: str) -> dict[str, float]:
    """Returns a metric's values by their labels, as text."""
    _, text = service.get("/metrics")
    return {
        labels or "": float(value)
        for labels, value in re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    }


def counted(service: Service, name: str) -> dict[str, float]:
    """Returns the same without the labels that nothing was counted for, which stand at 0 from the start."""
    return {labels: value for labels, value in metrics(service, name).items() if value}


def predict_packs(client: Client, packs: int, level: int = 250) -> list[dict[str, Any]]:
    """Sends packs of bright faces and returns the replies to all of them."""
    images: list[tuple[str | int | None, bytes]] = [(number, image_of(level)) for number in range(PACK)]
    with client.broker.reply_queue() as inbox:
        queue = client.broker.topology.predictions
        client.broker.publish_many([Outgoing(queue, pack_message(images, reply_to=inbox.name)) for _ in range(packs)])
        return list(replies(inbox, packs).values())


def beats(client: Client, good: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Waits until the newest heartbeat of every worker is as it should be, and returns these."""
    newest: dict[str, dict[str, Any]] = {}
    with client.broker.subscribe(["worker.heartbeat"]) as events:

        def all_good() -> bool:
            newest.update((event.payload["worker"], event.payload) for event in events.receive(1))
            return len(newest) == WORKERS and all(map(good, newest.values()))

        eventually(all_good, 30, "heartbeats as they should be")
    return list(newest.values())


def challenges(version: int) -> Callable[[dict[str, Any]], bool]:
    return lambda beat: (beat["challenger"] or {}).get("version") == version and not beat["challenger"]["problem"]


def test_a_challenger_sees_the_traffic_of_all_workers_and_every_reply_names_the_champion(
    installation: Installation,
) -> None:
    with installation.client() as client:
        builder = builder_of(client)
        builder.register(brightness_model())
        service = installation.start("inference")
        client.challenge(builder.register(constant_model(0.1), promote=False), "a test")
        beats(client, challenges(2))
        eventually(lambda: "challenges, with 1 of the" in service.log.read_text(), 10, "a loaded challenger")
        seen = 0
        while not (metrics(service, "genderline_shadow_predictions_total").get('outcome="disagree"', 0)) > 100:
            for reply in predict_packs(client, 5):
                assert reply["model"] == {"name": "gender", "version": 1}
                assert all(entry["gender"] == "female" for entry in reply["predictions"])
            seen += 5 * PACK
            assert seen < 20_000
        assert sum(metrics(service, "genderline_shadow_run_seconds_count").values()) >= 4
        assert service.stop() == 0
        figures = client.shadow()
        assert figures is not None
        assert 100 < figures.images <= seen
        assert (figures.agreed, figures.failed) == (0, 0)
        assert client.registry.aliases().champion == 1


def test_a_broken_challenger_costs_the_champion_nothing(installation: Installation) -> None:
    with installation.client() as client:
        builder = builder_of(client)
        builder.register(brightness_model())
        broken = builder.register(constant_model(0.9, build.not_a_number), promote=False)
        failing = builder.register(brightness_model(build.fails_in_the_dark), promote=False)
        service = installation.start("inference")
        client.challenge(broken, "a test")
        beats(client, lambda beat: "answered [nan" in str((beat["challenger"] or {}).get("problem")))
        assert {reply["model"]["version"] for reply in predict_packs(client, 20)} == {1}
        assert counted(service, "genderline_model_swaps_total") == {'outcome="ok"': WORKERS}

        client.challenge(failing, "another test")
        beats(client, challenges(failing))
        eventually(lambda: service.log.read_text().count("challenges, with 1") == WORKERS, 10, "loaded challengers")

        def failed() -> bool:
            for reply in predict_packs(client, 5, level=0):
                assert reply["model"]["version"] == 1
                assert all(entry["gender"] == "male" for entry in reply["predictions"])
            return metrics(service, "genderline_shadow_predictions_total").get('outcome="failed"', 0) > 0

        eventually(failed, 30, "a failure that is counted")
        assert service.ready()
        assert counted(service, "genderline_predictions_total").keys() == {'outcome="ok"'}
        assert client.broker.dead_letters() == []


def test_a_challenger_that_kills_a_worker_as_it_runs_is_given_up_and_the_champion_answers(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENDERLINE_WORKERS", "1")
    monkeypatch.setenv("GENDERLINE_SHADOW_SHARE", "1")
    with installation.client() as client:
        builder = builder_of(client)
        builder.register(constant_model(0.9))
        service = installation.start("inference")
        killer = builder.register(constant_model(0.2, build.kills_in_the_dark), promote=False)
        client.challenge(killer, "nobody knew")
        eventually(lambda: "challenges, with 1 of the" in service.log.read_text(), 20, "a loaded challenger")
        predict_packs(client, 4, level=0)
        given_up = f"version {killer} cannot challenge, the champion serves: the worker died while it ran"
        eventually(lambda: given_up in installation.logs(), 30, "that it is given up")
        assert {reply["model"]["version"] for reply in predict_packs(client, 8, level=0)} == {1}
        assert installation.logs().count("died of SIGFPE") == 1
        assert client.broker.dead_letters() == []


def test_a_pinned_version_that_kills_its_workers_as_it_runs_is_refused_though_the_champion_answers_in_between(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENDERLINE_WORKERS", "1")
    monkeypatch.setenv("GENDERLINE_SHADOW_SHARE", "0")
    with installation.client() as client:
        builder = builder_of(client)
        builder.register(constant_model(0.9))
        killer = builder.register(constant_model(0.2, build.kills_in_the_dark), promote=False)
        installation.start("inference")
        with ThreadPoolExecutor(1) as pool:
            pinned = pool.submit(client.predict, [image_of(0)], model_version=killer, timeout_s=120)
            while not pinned.done():
                assert {reply["model"]["version"] for reply in predict_packs(client, 1)} == {1}
            with pytest.raises(GenderlineError, match=f"version {killer} was refused"):
                pinned.result()
        assert client.registry.refusal(killer) is not None
        assert installation.logs().count("died of SIGFPE") == 3


def test_a_challenger_is_promoted_in_the_midst_of_its_traffic(installation: Installation) -> None:
    with installation.client() as client:
        builder = builder_of(client)
        builder.register(constant_model(0.9))
        challenger = builder.register(constant_model(0.2), promote=False)
        installation.start("inference")
        client.challenge(challenger, "a test")
        beats(client, challenges(challenger))
        versions: list[int] = []

        def answered_by(wanted: set[int]) -> bool:
            found = predict_packs(client, 20)
            for reply in found:
                version = reply["model"]["version"]
                said = {entry["gender"] for entry in reply["predictions"]}
                assert said == ({"female"} if version == 1 else {"male"})
            versions.extend(reply["model"]["version"] for reply in found)
            return {reply["model"]["version"] for reply in found} == wanted

        assert answered_by({1})
        client.promote(challenger, "it won")
        eventually(lambda: answered_by({challenger}), 20, "the new champion answers")
        beats(client, lambda beat: beat["version"] == challenger and beat["challenger"] is None)
        assert {1, challenger} == set(versions)
        assert client.broker.dead_letters() == []


def test_without_a_share_a_challenger_sees_nothing(installation: Installation) -> None:
    with installation.client() as client:
        builder = builder_of(client)
        builder.register(brightness_model())
        client.challenge(builder.register(constant_model(0.1), promote=False), "a test")
        service = installation.start("inference", GENDERLINE_SHADOW_SHARE="0")
        predict_packs(client, 20)
        assert [beat["challenger"] for beat in beats(client, lambda beat: beat["version"] == 1)] == [None, None]
        assert service.stop() == 0
        assert client.shadow() == ShadowFigures()


def test_images_unlike_the_training_faces_raise_the_drift_of_all_workers(installation: Installation) -> None:
    random = np.random.default_rng(0)
    dark = np.clip(
        random.normal(60, 20, (400, 1, 1)) + random.uniform(5, 40, (400, 1, 1)) * random.normal(0, 1, (400, 128, 128)),
        0,
        255,
    ).astype(np.uint8)
    with installation.client() as client:
        builder_of(client).register(
            brightness_model(), faces=dark, probability=random.uniform(0, 0.4, 400).astype(np.float32)
        )
        service = installation.start("inference")
        eventually(lambda: metrics(service, "genderline_model_info").values(), 20, "a model")

        def enough() -> bool:
            predict_packs(client, 100)
            return len(metrics(service, "genderline_drift_score")) == len(SIGNALS)

        eventually(enough, 60, "drift scores")
        scores = metrics(service, "genderline_drift_score")
        assert scores.keys() == {f'signal="{name}"' for name in SIGNALS}
        assert all(score > 0.25 for score in scores.values())
        assert metrics(service, "genderline_drift_window_images")[""] >= 512
        told = [beat["drift"] for beat in beats(client, lambda beat: beat["version"] == 1)]
        assert max(drift["scores"].get("luma", 0) for drift in told) > 0.25


def test_a_champion_that_kills_its_process_is_refused_and_the_one_before_serves_also_after_a_restart(
    installation: Installation,
) -> None:
    with installation.client() as client:
        builder = builder_of(client)
        builder.register(constant_model(0.9))
        service = installation.start("inference")
        killer = builder.register(constant_model(0.2, build.kills_its_process), promote=False)
        client.promote(killer, "nobody knew")
        for restart in (False, True):
            if restart:
                assert service.stop() == 0
                service = installation.start("inference")
            for beat in beats(client, lambda beat: beat["version"] == 1 and bool(beat["refused"])):
                why = f"version {killer}: its float32 file killed the process that tried it"
                assert beat["refused"] == {"version": killer, "message": why}
            assert {reply["model"]["version"] for reply in predict_packs(client, 4)} == {1}
            assert metrics(service, "genderline_model_swaps_total")['outcome="crashed"'] >= WORKERS
        assert client.broker.dead_letters() == []


def test_a_champion_that_kills_its_workers_as_it_runs_is_refused_and_the_one_before_answers_also_after_a_restart(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENDERLINE_WORKERS", "1")
    monkeypatch.setenv("GENDERLINE_SHADOW_SHARE", "0")
    with installation.client() as client:
        builder = builder_of(client)
        builder.register(constant_model(0.9))
        killer = builder.register(constant_model(0.2, build.kills_in_the_dark))
        service = installation.start("inference")
        assert {reply["model"]["version"] for reply in predict_packs(client, 1)} == {killer}
        for restart in (False, True):
            if restart:
                assert service.stop() == 0
                service = installation.start("inference")
            answers = predict_packs(client, 1, level=0)
            assert [answer["model"]["version"] for answer in answers] == [1]
        refusal = client.registry.refusal(killer)
        assert refusal is not None
        assert "3 workers in a row died while it ran" in refusal.reason
        assert installation.logs().count("died of SIGFPE") == 3
        assert client.broker.dead_letters() == []
        client.promote(killer, "once more")
        assert client.registry.refusal(killer) is None
        eventually(lambda: predict_packs(client, 1)[0]["model"]["version"] == killer, 20, "it is tried again")
