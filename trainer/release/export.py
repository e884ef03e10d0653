"""Export: a trained network as one self-contained ONNX file, held against torch, and its siblings in fewer bits."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from shared.errors import InvalidModel
from shared.records.model_card import Float16Report, Int8Report
from trainer.training.model import SIDE

INPUT: Final = "image"
OUTPUT: Final = "probability_female"
OPSET: Final = 20
"""What torch's exporter writes without converting."""
MAX_DIFFERENCE: Final = 1e-4
MAX_LOSS: Final = 0.003
"""The share of faces that int8 may name wrongly more than float does."""
BATCH: Final = 64
QUANTIZED_OPERATORS: Final = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Add", "Concat", "GlobalAveragePool"]
"""Where int8 pays; normalisation and sigmoid cost nothing and need their precision."""


class ParityError(InvalidModel):
    """ONNX Runtime does not compute what torch computes; the model must not be registered."""


class ServedModel(nn.Module):
    """What is served: the network with normalisation before it, calibration and sigmoid after it.

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
        temperature: likewise.
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
    """Writes the int8 sibling of an exported model: static, per channel, same input, output and metadata.

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


@dataclass(frozen=True, slots=True)
class Measured:
    """What an exported model does on one thread of the CPU.

    Attributes:
        faces: how many it was measured on.
        accuracy: the share of them that it names rightly.
        images_per_second: its speed.
    """

    faces: int
    accuracy: float
    images_per_second: float


def choose_int8(as_float: Measured, as_int8: Measured) -> Int8Report:
    """Decides whether the int8 sibling is good enough to be kept: it may lose `MAX_LOSS` of the accuracy, no more."""
    return Int8Report(
        kept=_holds(as_float, as_int8),
        faces=as_float.faces,
        accuracy_float=as_float.accuracy,
        accuracy_int8=as_int8.accuracy,
        images_per_second_float=as_float.images_per_second,
        images_per_second_int8=as_int8.images_per_second,
    )


def choose_float16(as_float: Measured, as_float16: Measured) -> Float16Report:
    """Decides the same about the float16 sibling, which the CPU computes as a GPU would, though no faster."""
    return Float16Report(
        kept=_holds(as_float, as_float16),
        faces=as_float.faces,
        accuracy_float=as_float.accuracy,
        accuracy_float16=as_float16.accuracy,
    )


def _holds(as_float: Measured, smaller: Measured) -> bool:
    return smaller.accuracy >= as_float.accuracy - MAX_LOSS


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
    accuracy = float(np.mean((probability >= 0.5) == (labels == 1)))
    return Measured(len(faces), accuracy, len(faces) / max(seconds, 1e-9))


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
