"""What a GPU does for serving; the first tests do the same on the CPU, the rest need a CUDA device."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from inference.model import gpu as cuda
from inference.model.loader import ServedModel, load_model
from shared.errors import InvalidModel
from shared.store.files import FileStore
from tests.support.builders import models as build
from tests.support.builders.models import ModelBuilder, brightness_model
from trainer.release.export import export_onnx
from trainer.training.model import build_network

COUNTS = [1, 2, 8, 9, 63, 64, 65, 256, 300]
"""Of images in a batch: as many as a graph takes, fewer, and more than the largest takes."""
GPU = pytest.mark.skipif(
    not (torch.cuda.is_available() and cuda.available()), reason="needs a CUDA device, and ONNX Runtime built for it"
)


@pytest.fixture
def builder(tmp_path: Path) -> ModelBuilder:
    return ModelBuilder(FileStore(tmp_path))


def faces_of(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Faces of noise, each about another brightness."""
    noise = np.random.default_rng(seed).random((count, 128, 128), dtype=np.float32)
    return (noise * np.random.default_rng(seed).uniform(20, 255, count)[:, None, None]).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("small", dropout=0.4, mirror=True)
        torch.nn.init.normal_(network.gender.weight)
    return network


@pytest.fixture(scope="module")
def exported(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("models")
    export_onnx(network, 1.0, folder / "float32", {})
    export_onnx(network, 1.0, folder / "float16", {}, precision="float16")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def on_cpu(data: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"])


def asks_the_cpu(model: onnx.ModelProto) -> None:
    """Adds nothing, times the number of images: a number that ONNX Runtime wants on the CPU."""
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], start=0, end=1),
        helper.make_node("Cast", ["shape"], ["count"], to=onnx.TensorProto.FLOAT),
    ]
    build.append_before_sigmoid(model, nodes, "count")


@pytest.mark.parametrize("count", COUNTS)
def test_batches_are_filled_up_and_cut_and_come_out_as_they_are(count: int) -> None:
    session = on_cpu(brightness_model())
    run = cuda.GpuRun(session, "image", "probability_female", 128, device="cpu")
    run(faces_of(256, seed=1)[:, None])  # what was there before leaves no trace
    images = faces_of(count)[:, None]
    found = run(images)
    assert found.shape == (count,)
    assert found.dtype == np.float32
    assert found == pytest.approx(session.run(None, {"image": images})[0], abs=1e-5)


def test_answers_are_not_overwritten_by_the_next_ones() -> None:
    run = cuda.GpuRun(on_cpu(brightness_model()), "image", "probability_female", 128, device="cpu")
    first = run(faces_of(8)[:, None])
    before = first.copy()
    run(faces_of(8, seed=1)[:, None])
    assert np.array_equal(first, before)


@GPU
@pytest.mark.cuda
@pytest.mark.parametrize("count", COUNTS)
def test_a_gpu_answers_as_the_cpu_does(count: int, builder: ModelBuilder, exported: dict[str, bytes]) -> None:
    model = load_model(builder.store, builder.register(exported["float32"]), "cuda")
    assert (model.provider, model.precision) == ("cuda", "float32")
    faces = faces_of(count)
    model.predict(faces_of(256, seed=1))
    expected = on_cpu(exported["float32"]).run(None, {"image": faces[:, None]})[0]
    assert model.predict(faces) == pytest.approx(expected, abs=5e-3)  # 10 bits of mantissa, in TF32


@GPU
@pytest.mark.cuda
def test_float16_serves_where_it_is_faster_and_int8_stays_with_cpus(
    builder: ModelBuilder, exported: dict[str, bytes]
) -> None:
    version = builder.register(
        build.constant_model(0.9, build.slow), int8=build.constant_model(0.7), float16=exported["float16"]
    )
    model = load_model(builder.store, version, "auto")
    assert (model.provider, model.precision) == ("cuda", "float16")
    faces = faces_of(70)
    expected = on_cpu(exported["float16"]).run(None, {"image": faces[:, None]})[0]
    assert model.predict(faces) == pytest.approx(expected, abs=5e-3)
    assert load_model(builder.store, version, "cpu").precision == "int8"


@GPU
@pytest.mark.cuda
def test_a_model_that_cannot_be_recorded_runs_kernel_by_kernel(builder: ModelBuilder) -> None:
    model = load_model(builder.store, builder.register(build.brightness_model(asks_the_cpu)), "cuda")
    levels = [0, 100, 140, 255]
    answers = model.predict(np.stack([np.full((128, 128), level, np.uint8) for level in levels]))
    assert answers.tolist() == pytest.approx([build.brightness_answer(level) for level in levels], abs=5e-3)


@GPU
@pytest.mark.cuda
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (build.other_size, "version 1 failed on the GPU: .*"),
        (build.not_a_number, r"version 1 answered \[nan, .*expected probabilities"),
        (build.one_number_for_all, "version 1 failed on the GPU: .*"),
    ],
)
def test_a_broken_model_is_refused_on_a_gpu_too(
    builder: ModelBuilder, change: Callable[..., None], expected: str
) -> None:
    version = builder.register(build.constant_model(0.95, change))
    with pytest.raises(InvalidModel, match=expected):
        load_model(builder.store, version, "cuda")


@GPU
@pytest.mark.cuda
def test_models_come_and_go_while_others_answer(builder: ModelBuilder, exported: dict[str, bytes]) -> None:
    version = builder.register(exported["float32"], float16=exported["float16"])
    faces = faces_of(64)
    serving = load_model(builder.store, version, "cuda")
    expected = serving.predict(faces)
    stop = threading.Event()
    wrong: list[object] = []
    answered = [0, 0]

    def serve(number: int) -> None:
        count = (64, 5)[number]
        try:
            while not stop.is_set():
                difference = np.abs(serving.predict(faces[:count]) - expected[:count]).max()
                answered[number] += 1
                if difference > 5e-3:
                    wrong.append(difference)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            other: ServedModel = load_model(builder.store, version, "cuda")
            assert other.predict(faces) == pytest.approx(expected, abs=5e-3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert min(answered) > 10
