import logging
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from shared.records.model_card import VariantPrecision
from shared.records.registry import Registry
from shared.store.base import sha256_of
from trainer.release import export
from trainer.release.export import (
    ParityError,
    build_variants,
    export_onnx,
    measure,
    predict_onnx,
    quantize_int8,
    verify_parity,
)
from trainer.training.model import build_network

pytestmark = pytest.mark.slow

TEMPERATURE = 1.7
METADATA = {"labels": "male,female", "dataset_sha256": "a" * 64, "val_accuracy": "0.94"}


def drawn_faces(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise of different brightness, on which the network's answers differ."""
    noise = np.random.default_rng(seed).random((count, 128, 128), dtype=np.float32)
    return (noise * np.linspace(20, 255, count)[:, None, None]).astype(np.uint8)


def brightness_network(threshold: float) -> nn.Module:
    """Says female to faces whose mean luma is above `threshold`."""
    dense = nn.Linear(128 * 128, 1)
    with torch.no_grad():
        dense.weight.fill_(1 / 128**2)
        dense.bias.fill_(-threshold / 255)
    return nn.Sequential(nn.Flatten(), dense, nn.Flatten(0))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("small", dropout=0.4, mirror=True)
        dense = [part for part in network.modules() if isinstance(part, nn.Linear)][-1]
        nn.init.normal_(dense.weight)  # spreads the fresh network's answers over all probabilities
    return network


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    export_onnx(network.train(), TEMPERATURE, path, METADATA)
    return path


@pytest.fixture(scope="module")
def quantized(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model_int8.onnx"
    quantize_int8(exported, path, drawn_faces(32, seed=1))
    return path


@pytest.fixture(scope="module")
def halved(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float16") / "model_float16.onnx"
    export_onnx(network, TEMPERATURE, path, METADATA, precision="float16")
    return path


def properties(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("model", ["exported", "quantized", "halved"])
def test_a_model_is_one_file_with_its_weights_inside(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    assert {tensor.data_location for tensor in tensors} == {onnx.TensorProto.DEFAULT}


@pytest.mark.parametrize("model", ["exported", "quantized", "halved"])
@pytest.mark.parametrize("count", [1, 2, 65])
def test_a_model_takes_bytes_in_any_batch_and_gives_probabilities(
    model: str, count: int, request: pytest.FixtureRequest
) -> None:
    session = onnxruntime.InferenceSession(request.getfixturevalue(model), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("image", "tensor(uint8)", [1, 128, 128])
    assert (given.name, given.type, len(given.shape)) == ("probability_female", "tensor(float)", 1)
    (probability,) = session.run(None, {"image": drawn_faces(count)[:, None]})
    assert probability.shape == (count,)
    assert probability.dtype == np.float32
    assert ((probability > 0) & (probability < 1)).all()


def test_normalisation_calibration_and_sigmoid_are_inside(exported: Path, network: nn.Module) -> None:
    faces = drawn_faces(8)
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(faces[:, None] / np.float32(255))).numpy()
    expected = 1 / (1 + np.exp(-logits / TEMPERATURE))
    assert predict_onnx(exported, faces) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("model", ["exported", "quantized", "halved"])
def test_a_model_carries_its_metadata_and_nothing_of_the_machine_it_was_made_on(
    model: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(model)
    assert properties(path) == METADATA
    assert b"/trainer/" not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()


def test_the_opset_is_fixed(exported: Path) -> None:
    assert [(entry.domain, entry.version) for entry in onnx.load(exported).opset_import] == [("", 20)]


def test_exporting_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    export_onnx(brightness_network(100), TEMPERATURE, path, METADATA)
    assert predict_onnx(path, drawn_faces(2)).shape == (2,)
    assert list(tmp_path.iterdir()) == [path]


def test_torch_and_onnx_runtime_agree(exported: Path, network: nn.Module) -> None:
    assert 0 <= verify_parity(exported, network, TEMPERATURE, drawn_faces(70)) < 1e-5


def test_a_model_that_computes_something_else_fails_parity(exported: Path, network: nn.Module) -> None:
    with pytest.raises(ParityError, match=r"differ by 0\.\d+ on 8 faces; expected 0.0001 or less") as caught:
        verify_parity(exported, network, TEMPERATURE * 2, drawn_faces(8))
    assert caught.value.code == "invalid_model"


def test_not_a_number_fails_parity(exported: Path) -> None:
    broken = build_network("reference", dropout=0.0)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ParityError, match="differ by nan"):
        verify_parity(exported, broken, TEMPERATURE, drawn_faces(2))


def test_a_read_only_memory_map_is_compared_without_complaint(
    exported: Path, network: nn.Module, tmp_path: Path
) -> None:
    np.save(tmp_path / "faces.npy", drawn_faces(3))
    assert verify_parity(exported, network, TEMPERATURE, np.load(tmp_path / "faces.npy", mmap_mode="r")) < 1e-5


def test_the_int8_variant_is_smaller_and_nearly_the_same(exported: Path, quantized: Path) -> None:
    assert quantized.stat().st_size < exported.stat().st_size / 3
    faces = drawn_faces(32)
    difference = np.abs(predict_onnx(quantized, faces) - predict_onnx(exported, faces))
    assert 0 < difference.mean() < 0.05


def test_the_int8_variant_keeps_its_logit_in_float(quantized: Path) -> None:
    graph = onnx.load(quantized).graph
    last_dense = [node for node in graph.node if node.op_type == "Gemm"][-1]
    producers = {name: node.op_type for node in graph.node for name in node.output}
    consumers = {name: node.op_type for node in graph.node for name in node.input}
    assert producers.get(last_dense.input[1]) != "DequantizeLinear"
    assert consumers[last_dense.output[0]] != "QuantizeLinear"
    first_conv = next(node for node in graph.node if node.op_type == "Conv")
    assert producers[first_conv.input[1]] == "DequantizeLinear"


def test_the_float16_variant_has_half_the_size_and_nearly_the_same_answers(
    exported: Path, halved: Path, network: nn.Module
) -> None:
    assert halved.stat().st_size < exported.stat().st_size * 0.6
    faces = drawn_faces(32)
    difference = np.abs(predict_onnx(halved, faces) - predict_onnx(exported, faces))
    assert 0 < difference.max() < 0.01
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}  # which goes on to be used


@pytest.mark.parametrize("model", ["exported", "halved"])
def test_no_shape_is_computed_which_a_gpu_would_have_to_ask_the_cpu_for(
    model: str, request: pytest.FixtureRequest
) -> None:
    operators = {node.op_type for node in onnx.load(request.getfixturevalue(model)).graph.node}
    assert "Conv" in operators
    assert not operators & {"Shape", "Range", "Gather", "Squeeze", "Unsqueeze"}


def test_a_model_is_measured_by_the_faces_that_it_predicts_correctly(exported: Path) -> None:
    faces = drawn_faces(40)
    labels = (predict_onnx(exported, faces) >= 0.5).astype(np.uint8)
    labels[:10] ^= 1
    measured = measure(exported, faces, labels)
    assert (measured.faces, measured.accuracy) == (40, 0.75)
    assert measured.images_per_second > 1


@pytest.mark.parametrize(("lost", "kept"), [(3, True), (4, False)])
def test_a_variant_is_dropped_where_it_loses_more_than_three_faces_in_a_thousand(
    lost: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    luma = np.array([50] * 500 + [150] * lost + [250] * (500 - lost), np.uint8)
    faces, labels = np.repeat(luma, 128 * 128).reshape(1000, 128, 128), (luma > 100).astype(np.uint8)
    path = tmp_path / "model.onnx"
    export_onnx(brightness_network(100), 1.0, path, {})
    worse = brightness_network(200)
    # Both variants are of a network that takes the faces of luma 150 for male.
    monkeypatch.setattr(export, "quantize_int8", lambda _path, out, _faces: export_onnx(worse, 1.0, out, {}))
    variants = build_variants(worse, 1.0, path, {}, calibration=faces, faces=faces, labels=labels)
    for precision in get_args(VariantPrecision):
        variant, file = variants[precision], tmp_path / Registry.model_file(precision)
        assert (variant.faces, variant.accuracy_float32, variant.accuracy) == (1000, 1.0, 1 - lost / 1000)
        assert (variant.file is not None) is file.exists() is kept
        assert variant.file is None or variant.file.sha256 == sha256_of(file)


def test_a_variant_is_dropped_where_a_rare_gender_pays_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    luma = np.array([50] * 960 + [150] * 2 + [250] * 38, np.uint8)  # 40 women, of whom it loses two
    faces, labels = np.repeat(luma, 128 * 128).reshape(1000, 128, 128), (luma > 100).astype(np.uint8)
    path = tmp_path / "model.onnx"
    export_onnx(brightness_network(100), 1.0, path, {})
    worse = brightness_network(200)
    monkeypatch.setattr(export, "quantize_int8", lambda _path, out, _faces: export_onnx(worse, 1.0, out, {}))
    int8 = build_variants(worse, 1.0, path, {}, calibration=faces, faces=faces, labels=labels)["int8"]
    assert (int8.accuracy, int8.file) == (0.998, None)


def test_exporting_and_quantizing_print_nothing_and_warn_of_nothing(
    network: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        export_onnx(network, TEMPERATURE, tmp_path / "model.onnx", METADATA)
        quantize_int8(tmp_path / "model.onnx", tmp_path / "model_int8.onnx", drawn_faces(2))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
