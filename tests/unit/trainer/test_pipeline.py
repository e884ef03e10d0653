import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from shared.errors import Cancelled, InvalidDataset
from shared.faces.synthetic import draw_sample
from shared.params import TrainingParams
from shared.records.dataset import DatasetRefusal, read_rejects_csv
from shared.records.edits import Edits
from shared.records.model_card import ModelCard
from shared.records.predictions import predictions_key, read_out_of_fold
from shared.records.record import DamagedRecord
from shared.records.registry import Registry
from shared.records.runs import Runs, RunState
from shared.runtime.settings import Settings
from shared.store.base import sha256_of
from shared.store.files import FileStore
from shared.telemetry.metrics import TrainerMetrics
from tests.support.builders.archives import face_jpeg, labelled_faces, png_of, zipped
from tests.support.builders.stores import StoreBuilder
from trainer.pipeline import Pipeline
from trainer.run_monitor import Monitor
from trainer.training.model import build_network
from trainer.training.starter import save_weights
from trainer.training.train import Interrupted

pytestmark = pytest.mark.slow

PARAMS = TrainingParams(network="small", epochs=1, quantize=False)


@pytest.fixture(autouse=True)
def single_thread() -> None:
    torch.set_num_threads(1)  # more would wait for one another on a busy machine


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def accept(store: FileStore, run_id: str, archive: Path) -> str:
    """Puts an archive into the store with a run for it. Returns its SHA-256."""
    sha256 = sha256_of(archive)
    store.put_file(f"datasets/{sha256}/archive.zip", archive)
    Runs(store).create(run_id, message_id=run_id, name="faces", params=PARAMS, state=RunState.ACCEPTED)
    return sha256


def run(
    store: FileStore,
    run_id: str,
    sha256: str,
    params: TrainingParams,
    states: list[str],
    edits: str | None = None,
) -> ModelCard:
    pipeline = Pipeline(store, Settings(), TrainerMetrics(CollectorRegistry()), torch.device("cpu"))
    monitor = Monitor()
    monitor.on_state = states.append  # type: ignore[method-assign, assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        return pipeline.run(run_id, "faces", sha256, params, monitor, edits)


def test_a_run_that_is_registered_is_not_trained_again(store: FileStore, tmp_path: Path) -> None:
    """As after a crash between the registry and the run's record."""
    draw_sample(tmp_path / "faces.zip", 40, seed=7)
    sha256 = accept(store, "run-1", tmp_path / "faces.zip")
    states: list[str] = []
    card = run(store, "run-1", sha256, PARAMS, states)
    assert states == [RunState.INGESTING, RunState.TRAINING, RunState.EVALUATING, RunState.EXPORTING]
    written = store.get(Registry.model_key(card.version))
    assert run(store, "run-1", sha256, PARAMS, states) == card
    assert len(states) == 4
    assert Registry(store).versions() == [card.version]
    assert store.get(Registry.model_key(card.version)) == written


def test_a_run_with_edits_names_them_in_its_card_and_answers_for_every_face(store: FileStore, tmp_path: Path) -> None:
    draw_sample(tmp_path / "faces.zip", 60, seed=7)
    sha256 = accept(store, "run-1", tmp_path / "faces.zip")
    plain = run(store, "run-1", sha256, PARAMS, [])
    edits = Edits(store)
    edits.add(sha256, "exclude", [0, 1, 2])
    frozen = edits.freeze(sha256)

    accept(store, "run-2", _again(store, sha256, tmp_path))
    card = run(store, "run-2", sha256, PARAMS, [], frozen)

    assert plain.dataset.edits is None
    with store.local(f"datasets/{sha256}/faces.csv") as table:
        assert plain.dataset.table_sha256 == card.dataset.table_sha256 == sha256_of(table)
    assert card.dataset.edits == frozen
    assert sum(card.dataset.counts.values()) == sum(plain.dataset.counts.values()) - 3
    assert len(store.get("runs/run-2/predictions.csv").splitlines()) == 61
    assert len(read_out_of_fold(store, sha256, card, 60)) == 60
    text = store.get(f"models/gender/{card.version}/card.md").decode()
    assert f"labels corrected by the edits `{frozen}`" in text


def test_a_registered_model_teaches_another_which_says_so_and_answers_without_the_mirror_image(
    store: FileStore, tmp_path: Path
) -> None:
    draw_sample(tmp_path / "faces.zip", 60, seed=7)
    sha256 = accept(store, "run-1", tmp_path / "faces.zip")
    teacher = run(store, "run-1", sha256, PARAMS.model_copy(update={"init": "scratch"}), [])

    accept(store, "run-2", _again(store, sha256, tmp_path))
    params = PARAMS.model_copy(update={"init": "scratch", "distil": f"gender:{teacher.version}"})
    card = run(store, "run-2", sha256, params, [])

    assert (teacher.params["mirror"], card.params["mirror"]) == (True, False)
    assert card.multiply_adds < teacher.multiply_adds
    assert (
        f"from random weights, taught by gender:{teacher.version}."
        in store.get(f"models/gender/{card.version}/card.md").decode()
    )


class Yields(Monitor):
    """Leaves the rest to a later call after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def should_yield(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_run_goes_on_where_its_start_and_its_teacher_are_gone(store: FileStore, tmp_path: Path) -> None:
    """And comes to the same weights, bit by bit, and keeps what the start has seen."""
    draw_sample(tmp_path / "faces.zip", 60, seed=7)
    sha256 = accept(store, "run-1", tmp_path / "faces.zip")
    teacher = run(store, "run-1", sha256, PARAMS.model_copy(update={"init": "scratch"}), [])
    roots = tmp_path / "allowed"
    roots.mkdir()
    save_weights(build_network("small", dropout=0.0).state_dict(), roots / "starter.npz")
    origin = {"name": "ours", "network": "small", "source": "drawn", "archive_sha256": "a" * 64, "faces": 3}
    (roots / "starter.json").write_text(json.dumps(origin))
    known = np.arange(6, dtype=np.uint64).reshape(3, 2) << np.uint64(60)
    np.save(roots / "starter_seen.npy", known)
    metrics = TrainerMetrics(CollectorRegistry())
    pipeline = Pipeline(store, Settings(allowed_roots=(roots,)), metrics, torch.device("cpu"))
    params = PARAMS.model_copy(
        update={"epochs": 2, "init": (roots / "starter.npz").as_uri(), "distil": f"gender:{teacher.version}"}
    )
    cards = []
    for run_id in ("run-2", "run-3"):
        accept(store, run_id, _again(store, sha256, tmp_path))
        if run_id == "run-3":
            with pytest.raises(Interrupted):
                pipeline.run(run_id, "faces", sha256, params, Yields(1))
            store.delete(f"models/gender/{teacher.version}")
            for path in roots.iterdir():
                path.unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            cards.append(pipeline.run(run_id, "faces", sha256, params, Monitor()))
    first, second = (np.load(io.BytesIO(store.get(Registry.weights_key(card.version)))) for card in cards)
    assert all(np.array_equal(first[name], second[name]) for name in first.files)
    assert cards[0].start == cards[1].start
    for card in cards:
        seen = np.load(io.BytesIO(store.get(Registry.start_seen_key(card.version))))
        assert np.array_equal(seen, known)
    pipeline.discard("run-3")
    assert not {"checkpoint.pt", "sources.pt"} & set(store.children("runs/run-3"))


def test_a_search_for_what_a_start_has_learned_from_ends_with_its_run(store: FileStore, tmp_path: Path) -> None:
    sha256 = ingested(store, tmp_path)
    states: list[str] = []
    monitor = Monitor()

    def stop() -> None:
        raise Cancelled("cancelled by a user")

    monitor.raise_if_stopped = stop  # type: ignore[method-assign]
    monitor.on_state = states.append  # type: ignore[method-assign, assignment]
    pipeline = Pipeline(store, Settings(), TrainerMetrics(CollectorRegistry()), torch.device("cpu"))
    with pytest.raises(Cancelled):
        pipeline.run("run-1", "faces", sha256, PARAMS.model_copy(update={"init": "starter"}), monitor)
    assert states == []  # before it trains


def _again(store: FileStore, sha256: str, folder: Path) -> Path:
    (folder / "again.zip").write_bytes(store.get(f"datasets/{sha256}/archive.zip"))
    return folder / "again.zip"


def test_a_model_of_95_men_and_4_women_is_warned_of_and_not_promoted(store: FileStore, tmp_path: Path) -> None:
    """After a useful champion; the gate that compared plain accuracies promoted it with 95 %."""
    draw_sample(tmp_path / "both.zip", 150, seed=7)
    draw_sample(tmp_path / "many.zip", 220, seed=8)
    taken = {"0": 0, "1": 0}
    with zipfile.ZipFile(tmp_path / "many.zip") as many, zipfile.ZipFile(tmp_path / "men.zip", "w") as men:
        for entry in many.infolist():
            gender = Path(entry.filename).name.split("_")[1]
            taken[gender] += 1
            if taken[gender] <= (95 if gender == "0" else 4):
                men.writestr(entry.filename, many.read(entry))
    useful = TrainingParams(network="small", epochs=12, batch_size=8, augment=False, quantize=False)
    champion = run(store, "run-1", accept(store, "run-1", tmp_path / "both.zip"), useful, [])
    assert champion.gate is not None
    assert champion.gate.passed
    assert champion.warnings == []
    assert [row.faces for row in champion.evaluation.robustness] == [champion.evaluation.count] * 8
    assert champion.evaluation.learning_curve is not None
    assert champion.evaluation.learning_curve.points[-1].faces == champion.dataset.counts["train"]
    Registry(store).promote(champion.version, "the first")

    card = run(store, "run-2", accept(store, "run-2", tmp_path / "men.zip"), PARAMS, [])
    assert card.gate is not None
    assert card.gate.champion == champion.version
    assert not card.gate.passed, card.gate.reason
    assert tuple(card.warnings) == Runs(store).get("run-2").warnings
    assert "highly unbalanced: " in card.warnings[0]
    assert "67 male training faces" in card.warnings[0]


def ingest(store: FileStore, sha256: str, *, continued: bool = False, **settings: Any) -> list[str]:
    """Decodes a dataset, where that is necessary, and returns the states that its run went through."""
    states: list[str] = []
    monitor = Monitor()
    monitor.on_state = states.append  # type: ignore[method-assign, assignment]
    pipeline = Pipeline(store, Settings(**settings), TrainerMetrics(CollectorRegistry()), torch.device("cpu"))
    pipeline.ingest(sha256, monitor, continued=continued)
    return states


def ingested(store: FileStore, folder: Path) -> str:
    """Returns a dataset that was decoded before."""
    draw_sample(folder / "faces.zip", 40, seed=7)
    sha256 = accept(store, "run-1", folder / "faces.zip")
    assert ingest(store, sha256) == [RunState.INGESTING]
    assert ingest(store, sha256) == []
    return sha256


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("faces.npy", lambda data: data[:-1]),
        ("faces.npy", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("faces.npy", lambda _: None),
        ("faces.csv", lambda data: data.rpartition(b"\n")[0].rpartition(b"\n")[0]),
        ("rejects.csv", lambda _: b""),
        ("near_duplicates.csv", lambda _: None),
        ("summary.json", lambda data: data[:40]),
        ("summary.json", lambda _: b""),
    ],
)
def test_a_damaged_file_of_a_dataset_is_made_again_from_the_archive(
    store: FileStore, tmp_path: Path, name: str, damage: Callable[[bytes], bytes | None]
) -> None:
    sha256 = ingested(store, tmp_path)
    key = f"datasets/{sha256}/{name}"
    whole = store.get(key)
    if (damaged := damage(whole)) is None:
        store.delete(key)
    else:
        store.put(key, damaged)
    assert ingest(store, sha256) == [RunState.INGESTING]
    if name != "summary.json":  # which says how long it took
        assert store.get(key) == whole
    assert ingest(store, sha256) == []


def test_a_run_that_goes_on_looks_at_the_lengths_only(store: FileStore, tmp_path: Path) -> None:
    sha256 = ingested(store, tmp_path)
    key = f"datasets/{sha256}/faces.npy"
    whole = store.get(key)
    store.put(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    assert ingest(store, sha256, continued=True) == []
    store.put(key, whole[:-1])
    assert ingest(store, sha256, continued=True) == [RunState.INGESTING]


def test_a_damaged_dataset_whose_archive_is_gone_or_damaged_too_is_named(store: FileStore, tmp_path: Path) -> None:
    sha256 = ingested(store, tmp_path)
    folder = f"datasets/{sha256}"
    store.put(f"{folder}/faces.npy", store.get(f"{folder}/faces.npy")[:-1])
    archive = store.get(f"{folder}/archive.zip")
    store.put(f"{folder}/archive.zip", archive[:-1])
    with pytest.raises(DamagedRecord, match=r"archive\.zip in the store is damaged: its SHA-256 is not the one"):
        ingest(store, sha256)
    store.delete(f"{folder}/archive.zip")
    with pytest.raises(DamagedRecord, match=r"faces\.npy in the store is damaged: found \d+ bytes, expected \d+"):
        ingest(store, sha256)


def _edit(store: FileStore, sha256: str) -> None:
    Edits(store).add(sha256, "exclude", [10])


def _register(store: FileStore, sha256: str) -> None:
    StoreBuilder(store).model(sha256, "run-00000000000a")


def _predict(store: FileStore, sha256: str) -> None:
    store.put(predictions_key(sha256, 3), b"index,probability_female\n")


@pytest.mark.parametrize(
    ("bind", "said"),
    [
        (_edit, "its edits go by the number"),
        (_register, "version 1, which was trained on it, goes by the number"),
        (_predict, "the predictions of it go by the number"),
    ],
)
def test_what_goes_by_the_number_of_a_face_never_goes_to_another_face(
    store: FileStore, tmp_path: Path, bind: Callable[[FileStore, str], None], said: str
) -> None:
    large = png_of(np.arange(600 * 600, dtype=np.uint32).reshape(600, 600).astype(np.uint8))
    (tmp_path / "faces.zip").write_bytes(zipped([("19_1_0_0.png", large), *labelled_faces(40)]))
    sha256 = accept(store, "run-1", tmp_path / "faces.zip")
    ingest(store, sha256, max_image_pixels=300_000)
    bind(store, sha256)
    key = f"datasets/{sha256}/faces.npy"
    store.put(key, store.get(key)[:-1])

    with pytest.raises(DamagedRecord, match=f"gives other faces now, 41 and not 40, and {said}"):
        ingest(store, sha256)  # with the limit raised meanwhile
    assert ingest(store, sha256, max_image_pixels=300_000) == [RunState.INGESTING]


def test_a_dataset_of_an_earlier_release_whose_faces_are_cut_short_is_made_again_too(
    store: FileStore, tmp_path: Path
) -> None:
    sha256 = ingested(store, tmp_path)
    folder = f"datasets/{sha256}"
    whole = store.get(f"{folder}/faces.npy")
    store.update_json(f"{folder}/summary.json", lambda summary: {**summary, "files": {}})
    store.put(f"{folder}/faces.npy", whole[:1000])
    assert ingest(store, sha256) == [RunState.INGESTING]
    assert store.get(f"{folder}/faces.npy") == whole


def test_what_was_rejected_of_a_refused_archive_is_kept_and_counted(store: FileStore, tmp_path: Path) -> None:
    files = [*labelled_faces(4), ("notes_without_label.jpg", face_jpeg(9)), ("30_1_0_cut.jpg", face_jpeg(8)[:100])]
    (tmp_path / "faces.zip").write_bytes(zipped(files))
    sha256 = accept(store, "run-1", tmp_path / "faces.zip")
    registry = CollectorRegistry()
    pipeline = Pipeline(store, Settings(), TrainerMetrics(registry), torch.device("cpu"))
    with pytest.raises(InvalidDataset) as caught:
        pipeline.ingest(sha256, Monitor())
    assert caught.value.code == "too_few_faces"
    with io.TextIOWrapper(io.BytesIO(store.get(f"datasets/{sha256}/rejects.csv")), "utf-8", newline="") as file:
        kept = {row.name: row.reason for row in read_rejects_csv(file)}
    assert kept == {"notes_without_label.jpg": "no_label", "30_1_0_cut.jpg": "invalid_image"}
    refusal = DatasetRefusal.model_validate_json(store.get(f"datasets/{sha256}/refusal.json"))
    assert refusal.rejects == {"no_label": 1, "invalid_image": 1}
    for reason in refusal.rejects:
        assert registry.get_sample_value("genderline_images_rejected_total", {"reason": reason}) == 1
    assert registry.get_sample_value("genderline_images_ingested_total") == 0
