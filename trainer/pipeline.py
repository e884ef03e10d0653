"""One run from archive to evaluated model: the order of the steps, with files and the store, without the broker."""

from __future__ import annotations

import csv
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from shared.archives.archive import ArchiveLimits
from shared.errors import InvalidDataset, NotFound
from shared.faces.decode import ImageLimits
from shared.faces.labelling import LabelSpec
from shared.params import TrainingParams
from shared.records.dataset import (
    FACES_CSV,
    FACES_NPY,
    LABELS_JSON,
    NEAR_DUPLICATES_CSV,
    REFUSAL_JSON,
    REJECTS_CSV,
    SPLITS,
    SUMMARY_JSON,
    DatasetRefusal,
    DatasetSummary,
    damaged_archive,
    dataset_id,
    find_summary,
    require_whole,
)
from shared.records.edits import Edits
from shared.records.model_card import CardDataset, ModelCard, Variant, VariantPrecision
from shared.records.predictions import out_of_fold_key
from shared.records.record import DamagedRecord
from shared.records.registry import START_SEEN_FILE, WEIGHTS_FILE, Registry
from shared.records.runs import EpochRow, Progress, Runs, RunState
from shared.runtime.settings import Settings
from shared.runtime.version import describe_version
from shared.store.base import Store, sha256_of
from shared.telemetry.metrics import TrainerMetrics
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.ingest import ingest
from trainer.release import sources
from trainer.release.card import build_card, measure_inputs, render_card
from trainer.release.evaluate import evaluate
from trainer.release.export import build_variants, describe_model, export_onnx, predict_onnx, verify_parity
from trainer.release.features import embed_faces
from trainer.release.learning_curve import measure_learning_curve
from trainer.release.lineage import Origin
from trainer.release.out_of_fold import predict_out_of_fold
from trainer.release.promotion_gate import compare
from trainer.release.robustness import measure_robustness
from trainer.release.sources import Sources, find_sources
from trainer.release.start import Start
from trainer.run_monitor import Monitor
from trainer.training import checkpoint
from trainer.training.balance import warn_of_imbalance, weigh_genders
from trainer.training.calibrate import calibrated_loss, fit_temperature
from trainer.training.checkpoint import Checkpoint, CheckpointError
from trainer.training.device import DeviceFaces
from trainer.training.distributed import train_distributed
from trainer.training.model import build_network, measure_cost
from trainer.training.process_group import ProcessGroup
from trainer.training.recipe import Recipe, decide
from trainer.training.starter import save_weights, starter_helps
from trainer.training.throughput import measure_throughput
from trainer.training.train import Hooks, Trained, predict_logits
from trainer.training.train import Progress as TrainingProgress

_LOG = logging.getLogger(__name__)
_PARITY_FACES: Final = 256
_CALIBRATION_FACES: Final = 512
_COMPARED_FACES: Final = 20_000
_ROBUSTNESS_FACES: Final = 300
_DATASET_FILES: Final = (
    FACES_NPY,
    FACES_CSV,
    REJECTS_CSV,
    NEAR_DUPLICATES_CSV,
    SUMMARY_JSON,
)  # the summary last: it says "complete"


class Pipeline:
    """Carries out one run at a time.

    Args:
        store: where everything lies.
        settings: limits and threads.
        metrics: told what is ingested and trained.
        device: where to train.
        group: the processes that train together; this one is the main process, the others are in `run_member`. None is
            a group of one.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        metrics: TrainerMetrics,
        device: torch.device,
        group: ProcessGroup | None = None,
    ) -> None:
        self._group = group or ProcessGroup()
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._device = device
        self._runs = Runs(store)
        self._registry = Registry(store)

    def with_store(self, store: Store) -> Pipeline:
        """Returns the same pipeline on another view of the store: that of a run's owner, for one."""
        return Pipeline(store, self._settings, self._metrics, self._device, self._group)

    def run(
        self,
        run_id: str,
        name: str,
        sha256: str,
        params: TrainingParams,
        monitor: Monitor,
        edits: str | None = None,
    ) -> ModelCard:
        """Ingests, trains, evaluates, exports and registers, each unless it is done already.

        Args:
            run_id: the run; its record exists.
            name: what the dataset is called.
            sha256: names the archive, which lies in the store.
            params: the training parameters.
            monitor: who watches.
            edits: the hash of the corrections to train with; None takes the labels of the archive.

        Returns:
            The registered model's card.

        Raises:
            InvalidDataset: the data is at fault.
            GenderlineError: training diverged, or the exported model is not what was trained.
            Interrupted: `monitor.should_yield` said so; a later call carries on.
            Exception: what `monitor.raise_if_stopped` or `monitor.on_progress` raises.
        """
        if (version := self._registry.version_of_run(run_id)) is not None:  # and then its process was killed
            return self._registry.card(version)
        self.ingest(sha256, monitor, continued=self._store.exists(_checkpoint_key(run_id)))
        with open_dataset(self._store, sha256, edits) as dataset:
            self._warn(run_id, dataset)
            found = self._find_sources(run_id, dataset, params, monitor)
            trained, recipe = self._train(run_id, dataset, params, found, monitor)
            return self._finish(run_id, name, dataset, recipe, found.start, trained, monitor)

    def discard(self, run_id: str) -> None:
        """Deletes what only a continuation of a run needs."""
        for key in (_checkpoint_key(run_id), _sources_key(run_id)):
            self._store.delete(key)

    # -- ingest

    def ingest(self, sha256: str, monitor: Monitor, *, continued: bool = False) -> None:
        """Decodes a dataset's archive, unless it is done already and what it made is whole.

        Args:
            sha256: names the dataset.
            monitor: who watches.
            continued: whether this run has trained on the dataset already, and so has read all of it before.

        Raises:
            DamagedRecord: a file is damaged, and the archive that it could be made from is gone, or damaged too.
            InvalidDataset: the data is at fault.
            Exception: what `monitor` raises.
        """
        folder = f"datasets/{sha256}"
        again = False
        found: DatasetSummary | None = None
        try:
            if (found := find_summary(self._store, sha256)) is not None:
                require_whole(self._store, sha256, found, lengths_only=continued)
                with open_dataset(self._store, sha256):
                    return
        except DamagedRecord as error:
            if not self._store.exists(f"{folder}/archive.zip"):
                raise
            _LOG.warning("%s; it is made again from its archive", error)
            again = True
        monitor.on_state(RunState.INGESTING)
        started = time.monotonic()

        def on_progress(done: int, total: int) -> None:
            monitor.raise_if_stopped()
            rate = done / max(time.monotonic() - started, 1e-3)
            monitor.on_progress(_progress(RunState.INGESTING, done, total, rate))

        with (
            tempfile.TemporaryDirectory(prefix="genderline-") as work,
            self._store.local(f"{folder}/archive.zip") as archive,
        ):
            labels = None
            if self._store.exists(f"{folder}/{LABELS_JSON}"):
                labels = LabelSpec.parse(self._store.get_json(f"{folder}/{LABELS_JSON}"))
            if again and dataset_id(sha256_of(archive), labels) != sha256:
                raise damaged_archive(sha256, "its SHA-256 is not the one that the dataset is called by")
            try:
                summary: DatasetSummary = ingest(
                    archive,
                    Path(work),
                    ArchiveLimits.from_settings(self._settings),
                    ImageLimits.from_settings(self._settings),
                    threads=self._settings.threads or self._settings.cores,
                    archive_sha256=None if labels else sha256,
                    labels=labels,
                    on_progress=on_progress,
                )
            except InvalidDataset:
                self._keep_refusal(folder, Path(work))
                raise
            if again and found is not None:
                self._require_same_faces(sha256, found, summary)
            for name in _DATASET_FILES:
                self._store.put_file(f"{folder}/{name}", Path(work) / name)
        self._metrics.ingested.inc(summary.faces)
        self._count_rejects(summary.rejects)

    def _require_same_faces(self, sha256: str, before: DatasetSummary, now: DatasetSummary) -> None:
        """Makes sure that a dataset that is made again has the faces that are known by their number elsewhere.

        Edits and predictions go by it, and so does the gate: it takes the held-out faces of a model's own dataset for
        ones that the model has not learned from.

        Raises:
            DamagedRecord: something goes by its faces, and they are others, as after a limit or a decoder has changed.
        """
        expected = before.files.get(FACES_NPY)
        if expected in (None, now.files.get(FACES_NPY)) or not (bound := self._name_bound(sha256)):
            return
        raise DamagedRecord(
            f"datasets/{sha256}/{FACES_NPY}",
            f"its archive gives other faces now, {now.faces:,} and not {before.faces:,}, and {bound} by the "
            "number of a face; set the limits on images and the decoders back to what they were, or restore the file "
            "from a backup",
        )

    def _name_bound(self, sha256: str) -> str:
        """Returns what goes by the numbers of a dataset's faces, with its verb; nothing where nothing does."""
        if Edits(self._store).history(sha256).edits:
            return "its edits go"
        cards = self._registry.cards().records
        trained = [card.version for card in cards if card.dataset.sha256 == sha256]
        if trained:
            return f"version {max(trained)}, which was trained on it, goes"
        return "the predictions of it go" if self._store.children(f"datasets/{sha256}/predictions") else ""

    def _keep_refusal(self, folder: str, work: Path) -> None:
        """Keeps what was rejected of an archive that did not become a dataset, so that its page can show it."""
        if (work / REFUSAL_JSON).exists():
            refusal = DatasetRefusal.model_validate_json((work / REFUSAL_JSON).read_bytes())
            for name in (REJECTS_CSV, REFUSAL_JSON):
                self._store.put_file(f"{folder}/{name}", work / name)
            self._count_rejects(refusal.rejects)

    def _count_rejects(self, rejects: Mapping[str, int]) -> None:
        for reason, count in rejects.items():
            self._metrics.rejected.labels(reason).inc(count)

    def _warn(self, run_id: str, dataset: Dataset) -> None:
        """Tells of a dataset that is hard to learn from, in the log and in the run's record."""
        if warnings := _find_warnings(dataset):
            for warning in warnings:
                _LOG.warning("%s: %s", run_id, warning)
            self._runs.update(run_id, warnings=warnings)

    # -- train

    def _find_sources(self, run_id: str, dataset: Dataset, params: TrainingParams, monitor: Monitor) -> Sources:
        """Returns what `init` and `distil` name: searched for once, and kept with the run."""
        key = _sources_key(run_id)
        try:
            return sources.load(self._store.get(key))
        except (NotFound, CheckpointError):
            found = find_sources(params, dataset, self._store, self._settings, monitor.raise_if_stopped)
        self._store.put(key, sources.dump(found))
        return found

    def _train(
        self, run_id: str, dataset: Dataset, params: TrainingParams, found: Sources, monitor: Monitor
    ) -> tuple[Trained, Recipe]:
        monitor.on_state(RunState.TRAINING)
        start, teacher = found.start, found.teacher
        key = _checkpoint_key(run_id)
        resume = self._checkpoint(key, params, dataset.sha256)
        if resume is not None:  # decided on another machine, perhaps
            recipe = Recipe.model_validate(resume.recipe)
        else:
            recipe = decide(
                params,
                faces=len(dataset.part("train")),
                device=self._device,
                throughput=lambda recipe: measure_throughput(recipe, self._device, teacher) * self._group.size,
                starter_helps=lambda: starter_helps(dataset, self._device),
                validation=len(dataset.part("validation")),
                start_network=start.network,
                start_mirrors=start.mirrors,
            )
        rows = [] if resume is None else [EpochRow.model_validate(row) for row in resume.history]

        def on_epoch(row: EpochRow) -> None:
            rows.append(row)
            self._runs.write_history(run_id, rows)
            for split, loss, accuracy in (
                ("train", row.train_loss, row.train_accuracy),
                ("val", row.val_loss, row.val_accuracy),
            ):
                self._metrics.loss.labels(split).set(loss)
                self._metrics.accuracy.labels(split).set(accuracy)
            monitor.on_epoch(row)

        def on_step(progress: TrainingProgress) -> None:
            self._metrics.epoch.set(progress.epoch)
            self._metrics.images_per_second.set(progress.images_per_second)
            done = (progress.epoch - 1) * progress.steps + progress.step
            monitor.on_progress(
                Progress(
                    stage=RunState.TRAINING,
                    done=done,
                    total=progress.epochs * progress.steps,
                    rate=round(progress.images_per_second, 1),
                    eta_s=round(progress.eta_s, 1),
                    epoch=progress.epoch,
                    epochs=progress.epochs,
                    loss=progress.loss,
                    accuracy=progress.accuracy,
                )
            )

        def on_checkpoint(data: bytes) -> None:
            self._store.put(key, data)
            monitor.on_checkpoint()

        hooks = Hooks(
            on_checkpoint=on_checkpoint,
            on_step=on_step,
            on_epoch=on_epoch,
            should_stop=monitor.should_yield,
            checkpoint_s=self._settings.checkpoint_s,
        )
        try:
            trained = train_distributed(
                self._group,
                dataset,
                recipe,
                self._device,
                hooks,
                resume=resume,
                start=start.weights,
                teacher=teacher,
            )
        finally:
            self._metrics.epoch.set(0)
            self._metrics.images_per_second.set(0)
        return trained, recipe

    def _checkpoint(self, key: str, params: TrainingParams, sha256: str) -> Checkpoint | None:
        """Returns where the run stood, or None where it must start anew."""
        if not self._store.exists(key):
            return None
        try:
            found = checkpoint.load(self._store.get(key))
            recipe = Recipe.model_validate(found.recipe)
            found.require(recipe.as_dict(), sha256)
        except (CheckpointError, ValidationError):
            return None  # written by another release, say: training again is slower, and right
        return found if recipe.fits(params) else None

    # -- evaluate, export, register

    def _finish(
        self,
        run_id: str,
        name: str,
        dataset: Dataset,
        recipe: Recipe,
        start: Start,
        trained: Trained,
        monitor: Monitor,
    ) -> ModelCard:
        monitor.on_state(RunState.EVALUATING)
        network = build_network(recipe.network, dropout=recipe.dropout, mirror=recipe.mirror)
        network.load_state_dict(trained.weights)
        logits = self._logits(network.to(self._device), dataset, monitor)
        labels = dataset.labels
        training, validation, test = (dataset.part(part) for part in SPLITS)
        temperature = fit_temperature(logits[validation], labels[validation])
        probability = (1 / (1 + np.exp(-logits.astype(np.float64) / temperature))).astype(np.float32)
        figures = evaluate(
            probability[test],
            labels[test],
            np.array([dataset.rows[i].age for i in test]),
            np.array([dataset.rows[i].ethnicity for i in test]),
        )
        self._runs.write_evaluation(run_id, figures)
        self._write_predictions(f"runs/{run_id}/predictions.csv", probability)

        def on_face(done: int, total: int) -> None:
            monitor.raise_if_stopped()
            monitor.on_progress(_progress(RunState.EVALUATING, done, total))

        features = embed_faces(dataset.faces, self._device, on_face)
        self._write_predictions(out_of_fold_key(run_id), predict_out_of_fold(dataset, probability, features))
        figures = figures.changed(learning_curve=measure_learning_curve(features, labels, training, test))
        monitor.raise_if_stopped()

        monitor.on_state(RunState.EXPORTING)
        version = self._registry.claim(run_id)
        with tempfile.TemporaryDirectory(prefix="genderline-") as work:
            model = Path(work) / "model.onnx"
            metadata = describe_model(version, run_id, dataset.sha256, figures, edits=dataset.edits)
            export_onnx(network, temperature, model, metadata)
            save_weights(trained.weights, Path(work) / WEIGHTS_FILE)
            sample = _spread(dataset.part("test"), _PARITY_FACES)
            parity = verify_parity(model, network, temperature, np.array(dataset.faces[sample]))
            monitor.on_progress(_progress(RunState.EXPORTING, 1, 3))
            monitor.raise_if_stopped()
            # Measured on the exported file, which runs several times as fast as torch.
            some = _spread(test, _ROBUSTNESS_FACES)
            robustness = measure_robustness(
                np.array(dataset.faces[some]), labels[some], lambda faces: predict_onnx(model, faces) >= 0.5
            )
            figures = figures.changed(robustness=robustness)
            self._runs.write_evaluation(run_id, figures)
            variants = _build_variants(network, temperature, model, metadata, dataset) if recipe.quantize else {}
            monitor.on_progress(_progress(RunState.EXPORTING, 2, 3))
            champion = self._registry.aliases().champion
            card_start = None if recipe.init == "scratch" else start.card.changed(share=trained.share)
            seen = None if card_start is None else start.seen
            if seen is not None:
                np.save(Path(work) / START_SEEN_FILE, seen)
            origin = Origin(card_start, seen, recipe.distil)
            gate = compare(self._store, dataset, name, model, figures, origin, champion=champion)
            monitor.raise_if_stopped()
            card = build_card(
                model_version=version,
                run_id=run_id,
                dataset=CardDataset(
                    sha256=dataset.sha256,
                    name=name,
                    counts={split: len(dataset.part(split)) for split in SPLITS},
                    edits=dataset.edits,
                    table_sha256=dataset.table_sha256,
                ),
                params=recipe,
                start=card_start,
                trained=trained,
                val_accuracy=float(np.mean((logits[validation] >= 0) == (labels[validation] > 0))),
                val_loss=calibrated_loss(logits[validation], labels[validation], weigh_genders(labels[training])),
                evaluation=figures,
                temperature=temperature,
                parity=parity,
                model_path=model,
                variants=variants,
                network_cost=measure_cost(network),
                inputs=measure_inputs(dataset.faces, dataset.part("train")),
                device=str(self._device),
                warnings=_find_warnings(dataset),
                gate=gate,
                software=describe_version(self._settings.commit),
            )
            monitor.raise_if_stopped()  # the last moment at which an owner that lost its lease must not write
            files = {path.name: path for path in Path(work).iterdir()}
            self._registry.register(card, render_card(card), files)
        return card

    def _logits(self, network: torch.nn.Module, dataset: Dataset, monitor: Monitor) -> NDArray[np.float32]:
        """Returns the logits of all faces, float32 (N,)."""
        source = DeviceFaces(dataset.faces, self._device)
        everything = np.arange(len(dataset.rows))
        started = time.monotonic()
        logits: list[NDArray[np.float32]] = []
        done = 0
        for indices in np.array_split(everything, max(1, len(everything) // 1024)):
            monitor.raise_if_stopped()
            logits.append(predict_logits(network, source, indices))
            done += len(indices)
            rate = done / max(time.monotonic() - started, 1e-3)
            monitor.on_progress(_progress(RunState.EVALUATING, done, len(everything), rate))
        return np.concatenate(logits)

    def _write_predictions(self, key: str, probability: NDArray[np.float32]) -> None:
        """Writes a table of every face of the dataset, by its index."""
        with tempfile.TemporaryDirectory(prefix="genderline-") as work:
            path = Path(work) / "predictions.csv"
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(("index", "probability_female"))
                writer.writerows((index, f"{value:.6f}") for index, value in enumerate(probability))
            self._store.put_file(key, path)


def _checkpoint_key(run_id: str) -> str:
    return f"runs/{run_id}/checkpoint.pt"


def _sources_key(run_id: str) -> str:
    return f"runs/{run_id}/sources.pt"


def _find_warnings(dataset: Dataset) -> list[str]:
    """Returns what the user should know about the dataset, in sentences."""
    warning = warn_of_imbalance(dataset.labels[dataset.part("train")])
    return [] if warning is None else [warning]


def _build_variants(
    network: torch.nn.Module, temperature: float, model: Path, metadata: dict[str, str], dataset: Dataset
) -> dict[VariantPrecision, Variant]:
    # These faces decide only which variants are kept: the reported metrics are those of float32.
    held_out = _spread(np.sort(dataset.held_out), _COMPARED_FACES)
    return build_variants(
        network,
        temperature,
        model,
        metadata,
        calibration=np.array(dataset.faces[_spread(dataset.part("train"), _CALIBRATION_FACES)]),
        faces=np.array(dataset.faces[held_out]),
        labels=dataset.labels[held_out],
    )


def _progress(stage: RunState, done: int, total: int, rate: float | None = None) -> Progress:
    eta_s = None if not rate else round((total - done) / rate, 1)
    return Progress(stage=stage, done=done, total=total, rate=None if rate is None else round(rate, 1), eta_s=eta_s)


def _spread(indices: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Returns at most `count` of the indices, evenly spread."""
    return indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(np.intp)]
