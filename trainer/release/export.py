"""Export: a trained network as one self-contained ONNX file that agrees with torch, and its variants."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from shared.errors import InvalidModel
from shared.faces.labels import GENDERS
from shared.records.evaluation import Evaluation
from shared.records.model_card import CardFile, Variant, VariantPrecision
from shared.records.registry import MODEL_NAME, Registry
from shared.store.base import sha256_of
from trainer.training.model import SIDE

INPUT: Final = "image"
OUTPUT: Final = "probability_female"
OPSET: Final = 20
"""What torch's exporter writes without converting."""
MAX_DIFFERENCE: Final = 1e-4
MAX_LOSS: Final = 0.003
"""What a variant may lose against float32 of accuracy, and of balanced accuracy, so that no rare gender pays for it."""
_ROUNDING: Final = 1e-9
BATCH: Final = 64
QUANTIZED_OPERATORS: Final = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Add", "Concat", "GlobalAveragePool"]
"""The operators that int8 speeds up; normalisation and sigmoid cost nothing and need their precision."""


class ParityError(InvalidModel):
    """ONNX Runtime does not compute what torch computes; the model must not be registered."""


class ServedModel(nn.Module):
    """The served model: the network with normalisation before it, calibration and sigmoid after it.

    Args:
        network: faces (N, 1, 128, 128) in [0, 1] → logits (N,), both of the type of its weights.
        temperature: what the logits are divided by.
    """

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.dtype = next(network.parameters()).dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the probability of female, float32 (N,), for images uint8 (N, 1, 128, 128)."""
        logits: torch.Tensor = self.network(image.to(self.dtype) / 255)
        return torch.sigmoid(logits.float() / self.temperature)


def describe_model(
    version: int, run_id: str, sha256: str, figures: Evaluation, *, edits: str | None = None
) -> dict[str, str]:
    """Returns what the ONNX file itself says about where it comes from."""
    return ({} if edits is None else {"edits_sha256": edits}) | {
        "name": MODEL_NAME,
        "version": str(version),
        "run_id": run_id,
        "dataset_sha256": sha256,
        "labels": ",".join(GENDERS),
        "positive_label": GENDERS[1],
        "test_accuracy": f"{figures.accuracy:.4f}",
        "test_faces": str(figures.count),
    }


def export_onnx(
    network: nn.Module,
    temperature: float,
    path: Path,
    metadata: Mapping[str, str],
    *,
    precision: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes one ONNX file that holds everything: input `image`, output `probability_female`, as `ServedModel`.

    Args:
        network: on any device; left as it is.
        temperature: from `fit_temperature`.
        path: where to; appears whole.
        metadata: goes into the model's `metadata_props`.
        precision: what it computes in; calibration and sigmoid stay float32.

    Raises:
        onnx.checker.ValidationError: the exporter wrote an invalid model.
    """
    # With channels last, the exporter writes flattening as a gather of computed indices: on a GPU, a detour by the CPU.
    network = copy.deepcopy(network).cpu().to(getattr(torch, precision)).to(memory_format=torch.contiguous_format)
    served = ServedModel(network, temperature).eval()
    example = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.uint8)  # 1 would be taken for a constant
    program = torch.onnx.export(
        served,
        (example,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={"image": {0: torch.export.Dim("N")}},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing; expected a program, as with dynamo=True")
    model = program.model_proto
    _strip_traces(model.graph)
    _save(model, metadata, path)


def verify_parity(path: Path, network: nn.Module, temperature: float, faces: NDArray[np.uint8]) -> float:
    """Compares the exported model with torch on real faces.

    Args:
        path: what `export_onnx` wrote.
        network: the network that it wrote; it is moved to the CPU and into evaluation mode.
        temperature: from `fit_temperature`.
        faces: uint8 (N, 128, 128), 1 or more.

    Returns:
        The largest absolute difference of their probabilities.

    Raises:
        ParityError: it is above `MAX_DIFFERENCE`.
    """
    served = ServedModel(network.cpu(), temperature).eval()
    with torch.inference_mode():
        ours = np.concatenate([served(torch.from_numpy(batch)).numpy() for batch in _batches(faces)])
    theirs = predict_onnx(path, faces)
    difference = float(np.abs(ours - theirs).max())
    if not difference <= MAX_DIFFERENCE:  # also where it is NaN
        raise ParityError(
            f"torch and ONNX Runtime differ by {difference:.2g} on {len(faces)} faces; "
            f"expected {MAX_DIFFERENCE:g} or less"
        )
    return difference


def predict_onnx(path: Path, faces: NDArray[np.uint8], indices: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
    """Runs an exported model on one thread of the CPU.

    Args:
        path: what `export_onnx` or `quantize_int8` wrote.
        faces: uint8 (N, 128, 128); of a memory map, no more than a batch is in memory at a time.
        indices: (n,), which of them, 1 or more; None is all.

    Returns:
        The probability of female, float32 (n,).
    """
    session = _session(path)
    return np.concatenate([session.run([OUTPUT], {INPUT: batch})[0] for batch in _batches(faces, indices)])


def quantize_int8(path: Path, out: Path, faces: NDArray[np.uint8]) -> None:
    """Writes the int8 variant of an exported model: static, per channel, same input, output and metadata.

    What comes before the first convolution stays float, and so does the last dense layer, whose output is the logit:
    8 bits of it would make probabilities coarse.

    Args:
        path: the float model.
        out: where to; appears whole.
        faces: uint8 (N, 128, 128), training faces from which the range of each activation is taken; some hundreds.
    """
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            _Calibration(faces),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED_OPERATORS,
            nodes_to_exclude=_kept_in_float(onnx.load(prepared).graph),
            per_channel=True,
            # Weights of 7 bits: with 8, CPUs with AVX2 but without VNNI overflow, and would answer differently.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        _save(onnx.load(quantized), metadata, out)


def build_variants(
    network: nn.Module,
    temperature: float,
    path: Path,
    metadata: Mapping[str, str],
    *,
    calibration: NDArray[np.uint8],
    faces: NDArray[np.uint8],
    labels: NDArray[np.uint8],
) -> dict[VariantPrecision, Variant]:
    """Writes the variants of an exported model beside it, and measures them; removes those that lose too much accuracy.

    Args:
        network: the network that was exported.
        temperature: from `fit_temperature`.
        path: what `export_onnx` wrote; a variant's file has the name that `Registry.model_file` gives.
        metadata: goes into each file's `metadata_props`.
        calibration: uint8 (M, 128, 128), training faces for `quantize_int8`.
        faces: uint8 (N, 128, 128), 1 or more, that the network did not learn from.
        labels: uint8 (N,), 1 where the label is female.
    """
    paths: dict[VariantPrecision, Path] = {
        precision: path.with_name(Registry.model_file(precision)) for precision in get_args(VariantPrecision)
    }
    quantize_int8(path, paths["int8"], calibration)
    export_onnx(network, temperature, paths["float16"], metadata, precision="float16")
    float32 = measure(path, faces, labels)
    return {
        precision: _assess(file, precision, float32, measure(file, faces, labels)) for precision, file in paths.items()
    }


def _assess(path: Path, precision: VariantPrecision, float32: Measured, measured: Measured) -> Variant:
    """Describes a variant, and removes its file where it loses more than `MAX_LOSS`."""
    file = None
    lost = max(float32.accuracy - measured.accuracy, float32.balanced_accuracy - measured.balanced_accuracy)
    if lost <= MAX_LOSS + _ROUNDING:
        file = CardFile(sha256=sha256_of(path), size_bytes=path.stat().st_size)
    else:
        path.unlink()
    speeds = {
        "images_per_second_float32": float32.images_per_second,
        "images_per_second": measured.images_per_second,
    }
    return Variant(
        faces=float32.faces,
        accuracy_float32=float32.accuracy,
        accuracy=measured.accuracy,
        file=file,
        **(speeds if precision == "int8" else {}),  # a CPU computes float16 as a GPU would, but no faster
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """Accuracy and speed of an exported model on one thread of the CPU.

    Attributes:
        faces: how many it was measured on.
        accuracy: the share of them predicted correctly.
        balanced_accuracy: the mean of that share over the genders among them.
        images_per_second: its speed.
    """

    faces: int
    accuracy: float
    balanced_accuracy: float
    images_per_second: float


def measure(path: Path, faces: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Measured:
    """Measures an exported model on held-out faces.

    Args:
        path: what `export_onnx` or `quantize_int8` wrote.
        faces: uint8 (N, 128, 128), 1 or more.
        labels: uint8 (N,), 1 where the label is female.
    """
    session = _session(path)
    session.run([OUTPUT], {INPUT: next(_batches(faces))})  # the first run allocates
    started = time.perf_counter()
    probability = np.concatenate([session.run([OUTPUT], {INPUT: batch})[0] for batch in _batches(faces)])
    seconds = time.perf_counter() - started
    right = (probability >= 0.5) == (labels == 1)
    balanced = float(np.mean([right[labels == gender].mean() for gender in np.unique(labels)]))
    return Measured(len(faces), float(right.mean()), balanced, len(faces) / max(seconds, 1e-9))


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _batches(faces: NDArray[np.uint8], indices: NDArray[np.intp] | None = None) -> Iterator[NDArray[np.uint8]]:
    """Yields uint8 (n, 1, 128, 128): copies, since a memory map may be read-only, which torch dislikes."""
    for start in range(0, len(faces if indices is None else indices), BATCH):
        chosen = slice(start, start + BATCH) if indices is None else indices[start : start + BATCH]
        yield np.array(faces[chosen])[:, None]


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Hands the faces to the quantizer, in the one way that it takes them."""

    def __init__(self, faces: NDArray[np.uint8]) -> None:
        self._batches = _batches(faces)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _kept_in_float(graph: onnx.GraphProto) -> list[str]:
    """Returns the names of the nodes before the first convolution, and from the last dense layer to the output."""
    names = [node.name for node in graph.node]
    types = [node.op_type for node in graph.node]
    last = max(number for number, kind in enumerate(types) if kind in {"Gemm", "MatMul"})
    return names[: types.index("Conv")] + names[last:]


def _strip_traces(graph: onnx.GraphProto) -> None:
    """Removes what the exporter notes for debugging: stack traces, which name folders of the machine that trained."""
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _save(model: onnx.ModelProto, metadata: Mapping[str, str], path: Path) -> None:
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    aside = path.with_name(f".{path.name}.partial")
    onnx.save_model(model, aside)
    aside.replace(path)
