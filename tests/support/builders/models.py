"""Small real models for tests: exported by the trainer's code, then given the answers or faults that a test needs."""

from __future__ import annotations

import functools
import hashlib
import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

from shared.params import TrainingParams
from shared.records.model_card import (
    CardDataset,
    CardFile,
    CardStart,
    GateResult,
    ModelCard,
    ServedPrecision,
    Variant,
    VariantPrecision,
)
from shared.records.registry import Registry
from shared.records.runs import EpochRow
from shared.store.files import FileStore
from tests.support.once_a_run import made_once_a_run
from trainer.release.card import build_card, measure_inputs
from trainer.release.evaluate import evaluate
from trainer.release.export import OUTPUT, export_onnx
from trainer.training.model import Cost
from trainer.training.train import Trained

STEEPNESS = 20.0
"""The logit of `brightness_model` is this times (mean luma / 255 - 1/2)."""

Change = Callable[[onnx.ModelProto], None]


# -- models


@functools.cache
def _exported() -> bytes:
    """Returns the file of a network whose logit is `weight * mean + bias`."""
    return made_once_a_run("model.onnx", _export)


def _export() -> bytes:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1), nn.Flatten(0))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        path = Path(folder) / "model.onnx"
        export_onnx(network, 1.0, path, {"labels": "male,female"})
        return path.read_bytes()


def _model(weight: float, bias: float, *changes: Change) -> bytes:
    model = onnx.load_from_string(_exported())
    for initializer in model.graph.initializer:
        if initializer.name.endswith(".weight"):
            initializer.CopyFrom(numpy_helper.from_array(np.array([[weight]], np.float32), initializer.name))
        elif initializer.name.endswith(".bias"):
            initializer.CopyFrom(numpy_helper.from_array(np.array([bias], np.float32), initializer.name))
    for change in changes:
        change(model)
    data: bytes = model.SerializeToString()
    return data


def constant_model(probability: float, *changes: Change) -> bytes:
    """Returns a model that answers `probability` to every image."""
    return _model(0.0, math.log(probability / (1 - probability)), *changes)


def brightness_model(*changes: Change, threshold: float = 127.5, steepness: float = STEEPNESS) -> bytes:
    """Returns a model that predicts female for images whose mean luma, 0-255, is above the threshold."""
    return _model(steepness, -steepness * threshold / 255, *changes)


def brightness_answer(level: int) -> float:
    """Returns what `brightness_model` answers to an image of one gray level, 0-255."""
    return 1 / (1 + math.exp(-STEEPNESS * (level / 255 - 0.5)))


# -- changes, most of them for the worse


def slow(model: onnx.ModelProto) -> None:
    """Makes the model work for nothing: 40 products with the identity, some 80 million multiply-adds an image."""
    model.graph.initializer.append(numpy_helper.from_array(np.eye(128, dtype=np.float32), "eye"))
    (divide,) = (node for node in model.graph.node if node.op_type == "Div")
    at = list(model.graph.node).index(divide) + 1
    mean = model.graph.node[at]
    source = divide.output[0]
    for number in range(40):
        target = f"same{number}"
        model.graph.node.insert(at + number, helper.make_node("MatMul", [source, "eye"], [target], name=target))
        source = target
    mean.input[0] = source


def other_input_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "face"
    model.graph.node[0].input[0] = "face"


def float_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def other_size(model: onnx.ModelProto) -> None:
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = 64


def not_a_number(model: onnx.ModelProto) -> None:
    bias = next(initializer for initializer in model.graph.initializer if initializer.name.endswith(".bias"))
    bias.CopyFrom(numpy_helper.from_array(np.array([np.nan], np.float32), bias.name))


def dark_is_not_a_number(model: onnx.ModelProto) -> None:
    """Adds log(mean) * 0 to the logit: NaN for a black image and nothing for any other."""
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    append_before_sigmoid(model, [helper.make_node("Log", [gemm.input[0]], ["log_mean"])], "log_mean")


def fails_in_the_dark(model: onnx.ModelProto) -> None:
    """Takes the first of one number for any image but a black one, and the second, which is not there, for that."""
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.0], np.float32), "one_number"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.001, np.float32), "nearly_black"))
    nodes = [
        helper.make_node("Less", [gemm.input[0], "nearly_black"], ["is_black"]),
        helper.make_node("Cast", ["is_black"], ["which"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["one_number", "which"], ["taken"]),
    ]
    append_before_sigmoid(model, nodes, "taken")


def logit_instead(model: onnx.ModelProto) -> None:
    """Leaves the sigmoid out, so that the answers are no probabilities."""
    model.graph.node[-1].op_type = "Identity"


def batch_dependent(model: onnx.ModelProto) -> None:
    """Takes the batch's mean off each answer: 0 alone, and something else among others."""
    last = model.graph.node[-1]
    last.output[0] = "plain"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["plain"], ["batch_mean"], keepdims=1),
            helper.make_node("Sub", ["plain", "batch_mean"], ["apart"]),
            helper.make_node("Abs", ["apart"], [OUTPUT]),
        ]
    )


def one_number_for_all(model: onnx.ModelProto) -> None:
    """Answers one number for the whole batch instead of one an image."""
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.append(helper.make_node("ReduceMean", ["plain"], [OUTPUT], keepdims=1))


def external_data(model: onnx.ModelProto, location: str = "weights.bin") -> None:
    """Moves a weight to a file beside the model, as large models have it."""
    bias = next(initializer for initializer in model.graph.initializer if initializer.name.endswith(".bias"))
    bias.ClearField("raw_data")
    bias.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        entry = bias.external_data.add()
        entry.key, entry.value = key, value


def append_before_sigmoid(model: onnx.ModelProto, nodes: list[onnx.NodeProto], extra: str) -> None:
    """Adds a number, which `nodes` compute, times 0 to the logit."""
    sigmoid = model.graph.node.pop()
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "flat"))
    model.graph.node.extend(
        [
            *nodes,
            helper.make_node("Mul", [extra, "nothing"], ["nothing_much"]),
            helper.make_node("Reshape", ["nothing_much", "flat"], ["nothing_flat"]),
            helper.make_node("Add", [sigmoid.input[0], "nothing_flat"], ["logit"]),
        ]
    )
    sigmoid.input[0] = "logit"
    model.graph.node.append(sigmoid)


def kills_its_process(model: onnx.ModelProto) -> None:
    """Divides the least whole number by -1, whose result is none: the processor stops the process (SIGFPE)."""
    for name, value in (("least", -(2**31)), ("minus_one", -1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int32), name))
    nodes = [
        helper.make_node("Div", ["least", "minus_one"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["as_float"], to=onnx.TensorProto.FLOAT),
    ]
    append_before_sigmoid(model, nodes, "as_float")


def kills_in_the_dark(model: onnx.ModelProto) -> None:
    """The same, for a black image only: whoever tries the model on others survives."""
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    for name, value in (("least", np.int32(-(2**31))), ("two", np.int32(2)), ("one", np.int32(1))):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.001, np.float32), "nearly_black"))
    nodes = [
        helper.make_node("Less", [gemm.input[0], "nearly_black"], ["is_black"]),
        helper.make_node("Cast", ["is_black"], ["black"], to=onnx.TensorProto.INT32),
        helper.make_node("Mul", ["black", "two"], ["twice"]),
        helper.make_node("Sub", ["one", "twice"], ["divisor"]),  # -1 for a black image, 1 for any other
        helper.make_node("Div", ["least", "divisor"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["as_float"], to=onnx.TensorProto.FLOAT),
    ]
    append_before_sigmoid(model, nodes, "as_float")


# -- registering


@dataclass(frozen=True)
class ModelBuilder:
    """Registers models in a store, as the trainer does."""

    store: FileStore

    @property
    def registry(self) -> Registry:
        return Registry(self.store)

    def register(
        self,
        data: bytes,
        *,
        promote: bool = True,
        int8: bytes | None = None,
        int8_kept: bool = True,
        float16: bytes | None = None,
        faces: NDArray[np.uint8] | None = None,
        probability: NDArray[np.float32] | None = None,
        dataset: str = "0" * 64,
        gate: GateResult | None = None,
        start: CardStart | None = None,
        distil: str = "none",
        edits: str | None = None,
    ) -> int:
        """Registers a model file with a card that fits it, and returns its version.

        Args:
            data: the ONNX file.
            promote: make it the champion.
            int8: the file of its int8 variant.
            int8_kept: whether the card names that file.
            float16: the file of its float16 variant.
            faces: uint8 (N, 128, 128), what the card says of the training faces; two gray ones without.
            probability: float32 (M,), what the card says of the held-out faces; 20 from 0 to 1 without.
            dataset: the SHA-256 of the archive that the card names.
            gate: the comparison that the card holds.
            start: what the card says that it began from.
            distil: what the card names as its teacher.
            edits: the hash of the corrections that the card names.
        """
        version = self.registry.claim(f"run-{hashlib.sha256(data).hexdigest()[:8]}-{len(self.registry.versions())}")
        with tempfile.TemporaryDirectory(dir=self.store.root) as name:
            folder = Path(name)
            files = {"model.onnx": folder / "model.onnx"}
            files["model.onnx"].write_bytes(data)
            variants: dict[VariantPrecision, Variant] = {}
            given: dict[VariantPrecision, tuple[bytes | None, bool]] = {
                "int8": (int8, int8_kept),
                "float16": (float16, True),
            }
            for precision, (content, kept) in given.items():
                if content is not None:
                    file = Registry.model_file(precision)
                    files[file] = folder / file
                    files[file].write_bytes(content)
                    variants[precision] = _variant(content if kept else None)
            card = _card(version, files["model.onnx"], variants, faces, probability, dataset)
            card = card.changed(
                gate=gate,
                start=start,
                params=card.params | {"distil": distil},
                dataset=card.dataset.changed(edits=edits),
            )
            self.registry.register(card, "# a model for tests\n", files)
        if promote:
            self.registry.promote(version, "a test needs it")
        return version

    def damage(self, version: int, data: bytes, precision: ServedPrecision = "float32") -> None:
        """Puts other bytes in the place of a registered file, without a word in the card."""
        self.store.put(Registry.model_key(version, precision), data)


def _variant(content: bytes | None) -> Variant:
    file = None if content is None else CardFile(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    return Variant(faces=20, accuracy_float32=0.9, accuracy=0.9, file=file)


_EPOCH = EpochRow(
    epoch=1,
    train_loss=0.5,
    train_accuracy=0.7,
    val_loss=0.4,
    val_accuracy=0.9,
    learning_rate=0.001,
    seconds=60.0,
    images_per_second=90.0,
)


def _card(
    version: int,
    model: Path,
    variants: dict[VariantPrecision, Variant],
    faces: NDArray[np.uint8] | None,
    probability: NDArray[np.float32] | None,
    dataset: str,
) -> ModelCard:
    faces = np.full((2, 128, 128), 128, np.uint8) if faces is None else faces
    probability = np.linspace(0, 1, 20, dtype=np.float32) if probability is None else probability
    labels = (probability >= 0.5).astype(np.uint8)
    return build_card(
        model_version=version,
        run_id=f"run-{version}",
        dataset=CardDataset(sha256=dataset, name="a dataset", counts={"train": 2, "validation": 1, "test": 20}),
        params=TrainingParams(),
        start=None,
        trained=Trained({"weight": torch.zeros(1)}, [_EPOCH], 1, 1.0, 1.0),
        val_accuracy=0.9,
        val_loss=0.4,
        evaluation=evaluate(probability, labels, np.full(len(labels), 30), np.zeros(len(labels), np.int64)),
        temperature=1.0,
        parity=0.0,
        model_path=model,
        variants=variants,
        network_cost=Cost(2, 1),
        inputs=measure_inputs(faces, np.arange(len(faces))),
        device="a test",
        warnings=[],
        gate=GateResult(passed=True, reason="a test needs no gate", champion=None),
        software="tests",
    )


# -- images


def image_of(level: int, kind: str = "png", side: int = 128) -> bytes:
    """Returns an encoded image of one gray level.

    Args:
        level: 0-255.
        kind: `png`, `jpg`, `webp` or `bmp`.
        side: in pixels.
    """
    done, data = cv2.imencode(f".{kind}", np.full((side, side), level, np.uint8))
    assert done
    return data.tobytes()
