"""Fills a store as the services would, through the real classes, for tests and pictures of the dashboard."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from typing import Any, Final, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.clock import now_iso
from shared.faces.labels import ETHNICITIES, GENDERS, label_or_none
from shared.params import TrainingParams
from shared.records.dataset import (
    AGE_BANDS,
    FACES_CSV,
    FACES_NPY,
    NEAR_DUPLICATES_CSV,
    REJECTS_CSV,
    SPLITS,
    SUMMARY_JSON,
    DatasetSummary,
    FaceRow,
    RejectRow,
    age_band,
    read_faces_csv,
    write_faces_csv,
    write_near_duplicates_csv,
    write_rejects_csv,
)
from shared.records.evaluation import (
    Confusion,
    Coverage,
    Curve,
    Evaluation,
    Group,
    GroupKind,
    LearningCurve,
    LearningPoint,
    Rate,
    ReliabilityBin,
    Robustness,
    Spread,
)
from shared.records.jobs import RESULT_COLUMNS, Jobs, JobState
from shared.records.model_card import CardDataset, CardFile, CardStart, GateResult, InputStatistics, ModelCard, Variant
from shared.records.registry import Registry
from shared.records.runs import EpochRow, Runs, RunState
from shared.store.base import Store

HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>_1_0_0.jpg",
    "24_0_1_\u202egnp.exe\u202c.jpg",
    "31_1_2_" + "long" * 48 + ".jpg",
)
RECIPE = {"network": "small", "batch_size": 32, "mirror": True, "precision": "float32"}
"""What a trainer decides where a run's parameters leave it open."""

MODEL: Final = b"onnx"
"""What stands in the place of a model's file."""


class StoreBuilder:
    """Writes datasets, runs, models and jobs into a store.

    Args:
        store: an empty one.
        seed: of everything drawn.
    """

    def __init__(self, store: Store, seed: int = 0) -> None:
        self.store = store
        self.runs = Runs(store)
        self.jobs = Jobs(store)
        self.registry = Registry(store)
        self._random = np.random.default_rng(seed)
        self._made = 0

    def dataset(self, faces: int = 120, pixels: NDArray[np.uint8] | None = None, names: tuple[str, ...] = ()) -> str:
        """Writes a decoded dataset and returns its hash.

        Args:
            faces: how many.
            pixels: uint8 (N, 128, 128), used in turn; drawn ellipses by default.
            names: of the first entries; the others are like UTKFace's.
        """
        self._made += 1
        rows = [self._face(i, names) for i in range(faces)]
        drawn = np.stack([self._drawing(row) for row in rows[:200]]) if pixels is None else pixels
        images = drawn[np.arange(faces) % len(drawn)]
        archive = _zipped({row.name: image for row, image in zip(rows, drawn, strict=False)}, f"dataset {self._made}")
        sha256 = hashlib.sha256(archive).hexdigest()
        rejects = [
            RejectRow("notes.txt", "no_label", "found 'notes.txt', expected age_gender_ethnicity[_anything].ext"),
            RejectRow("30_1_0_cut.jpg", "invalid_image", "found a JPEG image that cannot be decoded"),
            RejectRow("30_1_0_again.jpg", "duplicate", f"the same face as {rows[0].name[:60]}"),
            RejectRow("44_3_0.jpg", "invalid_label", "found gender 3, expected 0 (male) or 1 (female)"),
        ]
        summary = DatasetSummary(
            archive_sha256=sha256,
            faces=faces,
            images_seen=faces + len(rejects),
            rejects={row.reason: 1 for row in rejects},
            genders={g: sum(row.gender == i for row in rows) for i, g in enumerate(GENDERS)},
            ages={band: _by_gender(rows, lambda r, b=i: age_band(r.age) == b) for i, band in enumerate(AGE_BANDS)},
            ethnicities={e: _by_gender(rows, lambda r, k=i: r.ethnicity == k) for i, e in enumerate(ETHNICITIES)},
            splits={split: _by_gender(rows, lambda r, s=split: r.split == s) for split in SPLITS},
            near_duplicate_groups=3,
            near_duplicate_faces=7,
            luma_mean=float(images[:200].mean()),
            luma_std=float(images[:200].std()),
            seconds=1.5,
            images_per_second=(faces + len(rejects)) / 1.5,
        )
        key = f"datasets/{sha256}"
        self.store.put(f"{key}/archive.zip", archive)
        buffer = io.BytesIO()
        np.save(buffer, images)
        self.store.put(f"{key}/{FACES_NPY}", buffer.getvalue())
        text = io.StringIO(newline="")
        write_faces_csv(text, rows)
        self.store.put(f"{key}/{FACES_CSV}", text.getvalue().encode())
        text = io.StringIO(newline="")
        write_rejects_csv(text, rejects)
        self.store.put(f"{key}/{REJECTS_CSV}", text.getvalue().encode())
        text = io.StringIO(newline="")
        write_near_duplicates_csv(text, {0: 0, 1: 0, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4})
        self.store.put(f"{key}/{NEAR_DUPLICATES_CSV}", text.getvalue().encode())
        self.store.put(f"{key}/{SUMMARY_JSON}", summary.model_dump_json(indent=2).encode())
        return sha256

    def run(
        self,
        run_id: str = "run-000000000001",
        *,
        name: str = "faces",
        state: RunState = RunState.QUEUED,
        dataset: str | None = None,
        epochs: int = 0,
        **changes: Any,
    ) -> str:
        """Writes a run with `epochs` rows of history and returns its id."""
        params = TrainingParams(epochs=max(epochs, 8))
        self.runs.create(run_id, message_id=run_id, name=name, params=params, state=RunState.QUEUED)
        if epochs:
            self.runs.write_history(run_id, [self.epoch(i + 1) for i in range(epochs)])
        self.runs.update(run_id, state=state, dataset=dataset, **changes)
        return run_id

    def epoch(self, number: int) -> EpochRow:
        """Returns a row of history, of a training that goes well."""
        left = math.exp(-number / 4)
        return EpochRow(
            epoch=number,
            train_loss=0.12 + 0.57 * left,
            train_accuracy=0.96 - 0.44 * left,
            val_loss=0.19 + 0.5 * left + 0.01 * math.sin(number * 2),
            val_accuracy=0.93 - 0.4 * left + 0.008 * math.sin(number * 3),
            learning_rate=0.001 * 0.93**number,
            seconds=4.2,
            images_per_second=380.0,
        )

    def model(
        self,
        sha256: str,
        run_id: str,
        *,
        name: str = "faces",
        accuracy: float = 0.93,
        epochs: int = 12,
        start: CardStart | None = None,
        distil: str = "none",
        **changes: Any,
    ) -> int:
        """Writes a finished run of a dataset, with its predictions and evaluation, and registers its model."""
        summary = DatasetSummary.model_validate(self.store.get_json(f"datasets/{sha256}/{SUMMARY_JSON}"))
        counts = {split: sum(genders.values()) for split, genders in summary.splits.items()}
        evaluation = self._evaluation(counts["test"], accuracy)
        metrics = {
            "val_accuracy": accuracy + 0.004,
            "val_loss": 0.21,
            "test_accuracy": evaluation.accuracy,
            "test_auc": 0.981,
            "test_ece": evaluation.ece,
        }
        self.run(run_id, name=name, state=RunState.EXPORTING, dataset=sha256, epochs=epochs)
        self.store.put_json(f"runs/{run_id}/evaluation.json", evaluation.model_dump(mode="json"))
        self.store.put(f"runs/{run_id}/predictions.csv", self._predictions(sha256, accuracy))
        version = self.registry.claim(run_id)
        card = ModelCard(
            version=version,
            run_id=run_id,
            created=now_iso(),
            dataset=CardDataset(sha256=sha256, name=name, counts=counts),
            params=TrainingParams(epochs=epochs, distil=distil).as_dict() | RECIPE,
            start=start,
            metrics=metrics,
            evaluation=evaluation,
            gate=GateResult(passed=True, reason="the first model", champion=None)
            if version == 1
            else GateResult(
                passed=False,
                reason="balanced accuracy 90.1% against 92.4% of version 1 on 300 held-out faces",
                champion=1,
                faces=300,
            ),
            temperature=1.12,
            parity=3.1e-7,
            file=CardFile(sha256=hashlib.sha256(MODEL).hexdigest(), size_bytes=10_812_345),
            variants={
                "int8": Variant(
                    faces=counts["test"],
                    accuracy_float32=evaluation.accuracy,
                    accuracy=evaluation.accuracy - 0.001,
                    images_per_second_float32=310.0,
                    images_per_second=905.0,
                    file=CardFile(sha256=hashlib.sha256(MODEL).hexdigest(), size_bytes=2_750_001),
                ),
                "float16": Variant(
                    faces=counts["test"],
                    accuracy_float32=evaluation.accuracy,
                    accuracy=evaluation.accuracy,
                    file=CardFile(sha256=hashlib.sha256(MODEL).hexdigest(), size_bytes=5_406_172),
                ),
            },
            parameters=2_700_000,
            multiply_adds=176_000_000,
            inputs=InputStatistics(
                faces=100, luma_mean=121.0, luma_std=31.0, contrast_mean=52.0, luma_histogram=[6] * 16
            ),
            best_epoch=epochs - 2,
            epochs=epochs,
            seconds=51.0,
            device="cpu",
            libraries={"torch": "2.14.1", "onnxruntime": "1.32.0"},
        )
        # The dashboard never loads a model, so any bytes do.
        folder = f"models/gender/{version}"
        for file in ("model.onnx", "model_int8.onnx", "model_float16.onnx"):
            self.store.put(f"{folder}/{file}", MODEL)
        self.registry.register(card, f"# gender {version}\n", {})
        self.runs.update(
            run_id,
            state=RunState.REGISTERED,
            model={"name": "gender", "version": version},
            metrics=metrics,
            **changes,
        )
        return version

    def job(self, job_id: str = "job-000000000001", *, name: str = "photos", images: int = 40) -> str:
        """Writes a finished job with results and returns its id."""
        self.jobs.create(job_id, message_id=job_id, name=name, state=JobState.QUEUED)
        lines = [",".join(RESULT_COLUMNS)]
        for i in range(images):
            p = float(self._random.beta(0.4, 0.4))
            gender, true = GENDERS[p >= 0.5], GENDERS[i % 2]
            lines.append(f"{20 + i}_{i % 2}_0_{i}.jpg,{gender},{p:.6f},{max(p, 1 - p):.6f},{true},{gender == true},")
        lines.append("broken.jpg,,,,,,found a text file")
        self.store.put(Jobs.results_key(job_id), ("\n".join(lines) + "\n").encode())
        labels = [(name, label_or_none(name)) for name in (line.partition(",")[0] for line in lines[1:])]
        faces = {
            name: FaceRow(0, name, 30, label.gender if label else 0, 0, "test", 128, 128) for name, label in labels
        }
        pictures = {name: self._drawing(row) for name, row in faces.items()}
        self.store.put(Jobs.archive_key(job_id), _zipped(pictures, job_id))
        self.jobs.update(
            job_id,
            state=JobState.FINISHED,
            images=images + 1,
            shards=1,
            shard_images=512,
            counts={"images": images + 1, "errors": 1},
            accuracy=0.9,
            model={"name": "gender", "version": 1},
            results=f"store:{Jobs.results_key(job_id)}",
        )
        return job_id

    def _face(self, index: int, names: tuple[str, ...]) -> FaceRow:
        age = int(self._random.gamma(4.0, 9.0)) % 100
        gender, ethnicity = (
            int(self._random.random() < 0.48),
            int(self._random.choice(5, p=(0.42, 0.19, 0.15, 0.17, 0.07))),
        )
        split = SPLITS[int(self._random.choice(3, p=(0.7, 0.15, 0.15)))]
        name = names[index] if index < len(names) else f"{age}_{gender}_{ethnicity}_2017010917{index:07d}.jpg.chip.jpg"
        return FaceRow(index, name, age, gender, ethnicity, split, 200, 200)

    def _drawing(self, row: FaceRow) -> NDArray[np.uint8]:
        image = np.full((128, 128), 60 + int(self._random.integers(60)), np.uint8)
        tone = 230 - 28 * row.ethnicity
        if row.gender:
            cv2.ellipse(image, (64, 62), (46, 56), 0, 0, 360, 30, -1)
        cv2.ellipse(image, (64, 68), (34, 44 - row.gender * 3), 0, 0, 360, tone, -1)
        for x in (50, 78):
            cv2.circle(image, (x, 60), 4, 20, -1)
        cv2.ellipse(image, (64, 88), (12, 5), 0, 0, 180, 60, 2 + row.gender)
        return image

    def _predictions(self, sha256: str, accuracy: float) -> bytes:
        text = self.store.get(f"datasets/{sha256}/{FACES_CSV}").decode()
        lines = ["index,probability_female"]
        for row in read_faces_csv(io.StringIO(text, newline="")):
            sure = 0.5 + 0.5 * float(self._random.beta(3, 1.2))
            right = float(self._random.random()) < accuracy
            lines.append(f"{row.index},{sure if bool(row.gender) == right else 1 - sure:.6f}")
        return ("\n".join(lines) + "\n").encode()

    def _evaluation(self, count: int, accuracy: float) -> Evaluation:
        def group(kind: Any, name: str, size: int, rate: float) -> Group:
            return Group(
                kind=kind,
                name=name,
                count=size,
                correct=round(size * rate),
                accuracy=rate,
                low=max(0.0, rate - 1.5 / math.sqrt(size)),
                high=min(1.0, rate + 1.0 / math.sqrt(size)),
                false_positive_rate=None if name == GENDERS[1] else rate_of(size // 20, size // 2 or 1),
                false_negative_rate=None if name == GENDERS[0] else rate_of(size // 15, size // 2 or 1),
            )

        def rate_of(part: int, whole: int) -> Rate:
            low, high = max(0.0, part / whole - 0.05), min(1.0, part / whole + 0.05)
            return Rate(share=part / whole, count=part, total=whole, low=low, high=high)

        wrong = round(count * (1 - accuracy))
        half = count // 2
        xs = [i / 40 for i in range(41)]
        groups = [group("gender", g, max(half, 1), accuracy - 0.01 * i) for i, g in enumerate(GENDERS)]
        groups += [group("ethnicity", e, max(count // 5, 1), accuracy - 0.012 * i) for i, e in enumerate(ETHNICITIES)]
        groups += [group("age", a, max(count // 8, 1), accuracy - 0.02 * abs(i - 3)) for i, a in enumerate(AGE_BANDS)]
        return Evaluation(
            count=count,
            accuracy=accuracy,
            accuracy_low=accuracy - 0.02,
            accuracy_high=accuracy + 0.015,
            balanced_accuracy=accuracy - 0.002,
            recall_male=rate_of(half - wrong // 2, half),
            recall_female=rate_of(count - half - (wrong - wrong // 2), count - half),
            auc=0.981,
            f1_male=accuracy + 0.003,
            f1_female=accuracy - 0.003,
            log_loss=0.19,
            brier=0.055,
            ece=0.021,
            ece_by_chance=0.016,
            reliability=[
                ReliabilityBin(
                    low=i / 10, high=(i + 1) / 10, count=count // 10, mean_probability=x, share_female=x**1.15
                )
                for i in range(10)
                for x in [(i + 0.5) / 10]
            ],
            confusion=Confusion(
                male_as_male=half - wrong // 2,
                male_as_female=wrong // 2,
                female_as_male=wrong - wrong // 2,
                female_as_female=count - half - (wrong - wrong // 2),
            ),
            roc=Curve(x=xs, y=[x**0.12 for x in xs]),
            precision_recall=Curve(x=xs, y=[1 - 0.4 * x**6 for x in xs]),
            groups=groups,
            worst_group=groups[-1],
            gap=0.06,
            spreads={
                kind: Spread(accuracy=0.06, false_positive_rate=0.05, false_negative_rate=0.07)
                for kind in get_args(GroupKind)
            },
            coverage=tuple(
                Coverage(confidence=c, covered=1 - (c - 0.5), accuracy=min(1.0, accuracy + (c - 0.5) / 10))
                for c in (0.5, 0.7, 0.9)
            ),
            robustness=tuple(
                Robustness(
                    change=name, faces=count, accuracy=accuracy - lost, balanced_accuracy=accuracy - lost - 0.004
                )
                for name, lost in (("unchanged", 0.0), ("dark", 0.012), ("blurred", 0.05))
            ),
            learning_curve=LearningCurve(
                points=tuple(
                    LearningPoint(faces=count * 4 // parts, accuracy=accuracy - 0.009 * lost)
                    for parts, lost in ((4, 2), (2, 1), (1, 0))
                ),
                gain=0.009,
            ),
            histogram=[count // (abs(10 - i) + 1) % 97 + 5 * abs(10 - i) for i in range(20)],
        )


def _zipped(images: dict[str, NDArray[np.uint8]], comment: str) -> bytes:
    """Returns a zip of JPEGs; the comment tells it from others of the same images."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.comment = comment.encode()
        for name, image in images.items():
            archive.writestr(name, cv2.imencode(".jpg", image)[1].tobytes())
    return target.getvalue()


def _by_gender(rows: list[FaceRow], wanted: Any) -> dict[str, int]:
    return {gender: sum(row.gender == i and wanted(row) for row in rows) for i, gender in enumerate(GENDERS)}
