from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from inference.model import loader, openvino_run
from inference.model.loader import ProviderUnavailable, ServedModel, load_model, release_freed_memory, require_provider
from shared.errors import InvalidModel, NotFound
from shared.store.files import FileStore
from tests.support.builders import models as build
from tests.support.builders.models import ModelBuilder, constant_model

WITHOUT_CUDA = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


@pytest.fixture
def builder(tmp_path: Path) -> ModelBuilder:
    return ModelBuilder(FileStore(tmp_path))


def loaded(builder: ModelBuilder, version: int) -> ServedModel:
    return load_model(builder.store, version, "cpu")


def test_a_registered_model_is_loaded_and_answers_each_face_in_order(builder: ModelBuilder) -> None:
    model = loaded(builder, builder.register(build.brightness_model()))
    levels = [0, 100, 140, 255]
    answers = model.predict(np.stack([np.full((128, 128), level, np.uint8) for level in levels]))
    assert answers.dtype == np.float32
    assert answers.tolist() == pytest.approx([build.brightness_answer(level) for level in levels], abs=1e-4)
    assert (model.version, model.provider, model.precision) == (1, "cpu", "float32")
    assert model.identity == {"name": "gender", "version": 1}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (build.other_input_name, r"version 1 takes and gives \[\('face', .*expected \[\('image', 'tensor\(uint8\)'\)"),
        (build.float_input, r"version 1 takes and gives \[\('image', 'tensor\(float\)'\).*|version 1 cannot be loaded"),
        (build.other_size, "version 1 failed on the probe images: .*"),
        (build.not_a_number, r"version 1 answered \[nan, .*expected probabilities"),
        (build.logit_instead, r"version 1 answered \[2.9.*expected probabilities"),
        (build.batch_dependent, r"version 1 answers differently by 0\.\d+ in a batch and alone; expected 0.01 or less"),
        (build.one_number_for_all, r"version 1 gave \(1,\) numbers for the probe; expected \(4,\), one an image"),
        (build.external_data, "version 1: the model names files outside itself; expected one self-contained file"),
    ],
)
def test_a_broken_model_is_refused_with_what_is_wrong(
    builder: ModelBuilder, change: Callable[..., None], expected: str
) -> None:
    data = build.brightness_model(change) if change is build.batch_dependent else constant_model(0.95, change)
    with pytest.raises(InvalidModel, match=expected) as caught:
        loaded(builder, builder.register(data))
    assert caught.value.code == "invalid_model"


def test_a_file_that_is_not_the_registered_one_is_refused_with_both_hashes(builder: ModelBuilder) -> None:
    version = builder.register(constant_model(0.9))
    builder.damage(version, constant_model(0.1))
    with pytest.raises(InvalidModel, match=r"SHA-256 [0-9a-f]{64}; its card says \d+ bytes and [0-9a-f]{64}"):
        loaded(builder, version)


def test_a_truncated_file_is_refused_even_where_its_card_has_been_made_to_fit(builder: ModelBuilder) -> None:
    data = constant_model(0.9)
    cut_later = builder.register(data)
    builder.damage(cut_later, data[: len(data) // 2])
    with pytest.raises(InvalidModel, match=f"the file has {len(data) // 2} bytes .* its card says {len(data)} bytes"):
        loaded(builder, cut_later)
    with pytest.raises(InvalidModel, match="version 2 cannot be loaded"):
        loaded(builder, builder.register(data[: len(data) // 2]))


def test_a_missing_file_and_an_unreadable_card_are_refused_as_broken_models(builder: ModelBuilder) -> None:
    first, second, third, fourth = (builder.register(constant_model(0.9)) for _ in range(4))
    builder.store.delete(f"models/gender/{first}/model.onnx")
    with pytest.raises(InvalidModel, match="version 1: there is no object"):
        loaded(builder, first)
    builder.store.put(f"models/gender/{second}/card.json", b"{half a card")
    with pytest.raises(InvalidModel, match=r"version 2: .*card\.json in the store is damaged"):
        loaded(builder, second)
    builder.store.put_json(f"models/gender/{third}/card.json", {"name": "gender"})
    with pytest.raises(InvalidModel, match=r"version 3: .*card\.json in the store is damaged"):
        loaded(builder, third)
    builder.store.put(f"models/gender/{third}/card.json", builder.store.get(f"models/gender/{fourth}/card.json"))
    with pytest.raises(InvalidModel, match=r"version 3: .*found the card of version 4"):
        loaded(builder, third)


def test_a_version_that_is_not_registered_is_not_found(builder: ModelBuilder) -> None:
    with pytest.raises(NotFound, match="no model version 7; registered: none"):
        loaded(builder, 7)


def test_external_data_is_never_read_in_whatever_way_it_is_written(
    builder: ModelBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scan knows protobuf's usual way; here the entry's fields stand in the other order, and the file is there."""
    (tmp_path / "weights.bin").write_bytes(np.array([1.0], np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    usual = b"\n\x08location\x12\x0bweights.bin"
    turned = b"\x12\x0bweights.bin\n\x08location"
    data = constant_model(0.9, build.external_data)
    assert data.count(usual) == 1
    with pytest.raises(InvalidModel, match="version 1 cannot be loaded"):
        loaded(builder, builder.register(data.replace(usual, turned)))


def test_int8_serves_where_the_card_says_kept_and_it_is_clearly_faster(builder: ModelBuilder) -> None:
    model = loaded(builder, builder.register(constant_model(0.9, build.slow), int8=constant_model(0.8)))
    assert model.precision == "int8"
    assert model.predict(np.zeros((1, 128, 128), np.uint8)).tolist() == pytest.approx([0.8])


def test_int8_does_not_serve_where_it_is_slower(builder: ModelBuilder) -> None:
    assert loaded(builder, builder.register(constant_model(0.9), int8=constant_model(0.8, build.slow))).precision == (
        "float32"
    )


def test_int8_does_not_serve_where_the_card_does_not_say_kept(builder: ModelBuilder) -> None:
    version = builder.register(constant_model(0.9, build.slow), int8=constant_model(0.8), int8_kept=False)
    assert loaded(builder, version).precision == "float32"


def test_a_broken_int8_sibling_costs_its_speed_only(builder: ModelBuilder, caplog: pytest.LogCaptureFixture) -> None:
    version = builder.register(constant_model(0.9, build.slow), int8=constant_model(0.8, build.not_a_number))
    assert loaded(builder, version).precision == "float32"
    assert "int8 not taken, float32 serves" in caplog.text
    version = builder.register(constant_model(0.9, build.slow), int8=constant_model(0.8))
    builder.damage(version, constant_model(0.1), "int8")
    assert loaded(builder, version).precision == "float32"


@WITHOUT_CUDA
def test_cuda_without_cuda_is_refused_and_auto_says_that_it_runs_on_the_cpu(builder: ModelBuilder) -> None:
    version = builder.register(constant_model(0.9))
    with pytest.raises(ProviderUnavailable, match="GENDERLINE_PROVIDER is cuda; this ONNX Runtime has"):
        require_provider("cuda")
    with pytest.raises(ProviderUnavailable, match="GENDERLINE_PROVIDER is cuda, but ONNX Runtime runs on"):
        load_model(builder.store, version, "cuda")
    require_provider("auto")
    model = load_model(builder.store, version, "auto")
    assert model.provider == "cpu"
    assert model.predict(np.zeros((1, 128, 128), np.uint8)).tolist() == pytest.approx([0.9])


def test_releasing_memory_is_harmless() -> None:
    release_freed_memory()


# -- OpenVINO, where the extra is installed


@pytest.fixture
def openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO is taken whatever its speed, which these small models do not tell."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    monkeypatch.setattr(loader, "MIN_RUNTIME_SPEEDUP", 0.0)


@pytest.mark.usefixtures("openvino")
def test_openvino_answers_as_onnx_runtime_does_in_several_threads(builder: ModelBuilder) -> None:
    model = loaded(builder, builder.register(build.brightness_model()))
    assert model.runtime == "openvino"
    assert model.computes_in == "float32, OpenVINO"
    levels = list(range(0, 256, 16))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda level: model.predict(np.full((3, 128, 128), level, np.uint8)), levels))
    for level, answer in zip(levels, answers, strict=True):
        assert answer.tolist() == pytest.approx([build.brightness_answer(level)] * 3, abs=1e-4)


@pytest.mark.usefixtures("openvino")
def test_openvino_is_not_taken_where_it_is_no_faster_differs_or_dies(
    builder: ModelBuilder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version = builder.register(build.brightness_model())
    dies = load_model(builder.store, version, "cpu", lambda _, runtime: runtime != "openvino")
    assert dies.runtime == "onnxruntime"
    assert "OpenVINO died of its float32 file" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(openvino_run, "open_run", lambda _: lambda images: np.full(len(images), 0.01, np.float32))
        assert loaded(builder, version).runtime == "onnxruntime"
    monkeypatch.setattr(loader, "MIN_RUNTIME_SPEEDUP", 1e9)
    assert loaded(builder, version).runtime == "onnxruntime"


def test_without_openvino_onnx_runtime_serves(builder: ModelBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_run, "available", lambda: False)
    model = loaded(builder, builder.register(build.brightness_model()))
    assert (model.runtime, model.computes_in) == ("onnxruntime", "float32")
