"""A model as it is served: verified, loaded into ONNX Runtime, warmed up and probed before anybody gets an answer."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from inference.model import gpu as cuda
from inference.model import openvino_run
from inference.model.run import Run, Runtime
from shared.errors import InvalidModel, NotFound
from shared.faces.decode import SIZE
from shared.records.model_card import CardFile, ModelCard, ServedPrecision, VariantPrecision
from shared.records.record import DamagedRecord
from shared.records.registry import MODEL_NAME, Registry
from shared.store.base import Store

Provider = Literal["cpu", "cuda"]
ProviderChoice = Literal["auto", "cpu", "cuda"]
"""The setting: `auto` takes CUDA where it works."""
Survives = Callable[[bytes, Runtime], bool]
"""Tells whether a process survives opening a model file in a runtime; see `inference.model.probe`."""

_INPUT: Final = ("image", "tensor(uint8)")
_OUTPUT: Final = ("probability_female", "tensor(float)")
_EXTERNAL_DATA: Final = b"\n\x08location\x12"
"""How protobuf writes the key under which a tensor names a file beside the model."""
_NO_FOLDER: Final = "/nonexistent"
"""Where ONNX Runtime is told to look for such files, should one be written in another way."""

_BATCH_TOLERANCE: Final = 0.01
_TRIAL_IMAGES: Final[dict[Provider, int]] = {"cpu": 8, "cuda": cuda.SIZES[-1]}
_TRIAL_RUNS: Final = 4
MIN_SPEEDUP: Final[dict[ServedPrecision, float]] = {"int8": 1.15, "float16": 1.0}
"""How many times as fast as float32 a variant must be on this machine to be taken."""
MIN_RUNTIME_SPEEDUP: Final = 1.15
"""How many times as fast as ONNX Runtime OpenVINO must be on this machine to be taken."""
_RUNTIME_TOLERANCE: Final = 0.02
"""How far both runtimes' answers may differ: int8 is rounded at other places."""

_LOG = logging.getLogger(__name__)


class ProviderUnavailable(RuntimeError):
    """The provider that the settings insist on does not work here."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model.

    Attributes:
        version: its number in the registry.
        provider: where it really runs, as ONNX Runtime says after loading.
        precision: `float32`, or that of the variant that serves in its place.
        card: its card.
        run: the model itself; used by several threads at once.
        runtime: what computes it.
    """

    version: int
    provider: Provider
    precision: ServedPrecision
    card: ModelCard
    run: Run
    runtime: Runtime = "onnxruntime"

    def predict(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the probability of *female* for each face.

        Args:
            faces: uint8 (N, 128, 128), luma.

        Returns:
            float32 (N,), in [0, 1].
        """
        return self.run(faces[:, np.newaxis])

    @property
    def computes_in(self) -> str:
        """The precision, and the runtime where it is another than ONNX Runtime, for people."""
        return self.precision if self.runtime == "onnxruntime" else f"{self.precision}, OpenVINO"

    @property
    def identity(self) -> dict[str, Any]:
        """Returns `{"name", "version"}`, as replies carry it."""
        return {"name": MODEL_NAME, "version": self.version}


class KillsProcess(InvalidModel):
    """A process that opened the model file died."""


def load_model(
    store: Store, version: int, provider: ProviderChoice, survives: Survives = lambda *_: True
) -> ServedModel:
    """Loads a registered model and makes sure that it answers sensibly.

    Where the card says that its variant for this provider, int8 for a CPU and float16 for a GPU, holds the accuracy, it
    is loaded too, and taken if it is faster here. One that is broken costs nothing but its speed. On a CPU, the file
    that was taken is loaded into OpenVINO as well, where that is installed, and served there if it answers alike and
    faster.

    Args:
        store: where the registry lies.
        version: which one.
        provider: where it shall run.
        survives: as `ModelProber.survives`.

    Raises:
        NotFound: there is no such version.
        KillsProcess: it is an `InvalidModel`, too.
        InvalidModel: its card cannot be read, or its file is missing, is not the registered one, cannot be loaded, or
            answers nonsense.
        ProviderUnavailable: `cuda` was asked for and does not work.
        Retryable: the store is away.
    """
    card = _card(store, version)
    model = _load_fastest(store, card, provider, survives)
    return _in_openvino(store, model, survives) if model.provider == "cpu" and openvino_run.available() else model


def _load_fastest(store: Store, card: ModelCard, provider: ProviderChoice, survives: Survives) -> ServedModel:
    """Loads a version in the precision that is the fastest here."""
    version = card.version
    model = _load(store, card, card.file, "float32", provider, survives)
    precision, file = _variant(card, model.provider)
    if file is None:
        return model
    try:
        variant = _load(store, card, file, precision, model.provider, survives)
    except (InvalidModel, ProviderUnavailable) as error:
        _LOG.error("%s not taken, float32 serves: %s", precision, error)
        return model
    speedup = _speedup(model, variant)
    _LOG.info("version %d: %s runs %.2f times as fast as float32 here", version, precision, speedup)
    return variant if speedup >= MIN_SPEEDUP[precision] else model


def require_provider(wanted: ProviderChoice) -> None:
    """Refuses to start where the settings insist on CUDA and this ONNX Runtime was built without it.

    Raises:
        ProviderUnavailable: with what is there instead. Whether CUDA's libraries load too shows with the first model.
    """
    if wanted == "cuda" and not cuda.available():
        raise ProviderUnavailable(
            f"GENDERLINE_PROVIDER is cuda; this ONNX Runtime has {ort.get_available_providers()} "
            "(install the extra `inference-gpu`)"
        )


def release_freed_memory() -> None:
    """Gives memory that a dropped model freed back to the system; glibc would keep it in its arenas."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library, with its own habits


def _in_openvino(store: Store, model: ServedModel, survives: Survives) -> ServedModel:
    """Returns the model in OpenVINO, if it answers there as in ONNX Runtime, and faster; else as it is."""
    file = model.card.file if model.precision == "float32" else model.card.variants[model.precision].file
    assert file is not None  # noqa: S101 - it is loaded
    data = _file(store, model.card, model.precision, file)
    name = f"version {model.version}"
    if not survives(data, "openvino"):
        _LOG.error("%s: OpenVINO died of its %s file; ONNX Runtime serves", name, model.precision)
        return model
    try:
        run = openvino_run.open_run(data)
        _probe(run, name)
    except Exception as error:  # as in `open_file`
        _LOG.warning("%s: OpenVINO not taken, ONNX Runtime serves: %s", name, error)
        return model
    difference = float(np.abs(run(_probe_images()) - model.run(_probe_images())).max())
    other = replace(model, run=run, runtime="openvino")
    speedup = _speedup(model, other)
    _LOG.info("%s: OpenVINO runs %.2f times as fast, and differs by up to %.4f", name, speedup, difference)
    return other if difference <= _RUNTIME_TOLERANCE and speedup >= MIN_RUNTIME_SPEEDUP else model


def _card(store: Store, version: int) -> ModelCard:
    try:
        return Registry(store).card(version)
    except DamagedRecord as error:
        raise InvalidModel(f"version {version}: {error}") from None


def _variant(card: ModelCard, provider: Provider) -> tuple[ServedPrecision, CardFile | None]:
    """Returns the precision that pays there, and the file of the variant in it, where the card vouches for that."""
    if provider == "cuda":
        precision: VariantPrecision = "float16"
    else:
        precision = "int8"
    variant = card.variants.get(precision)
    return precision, None if variant is None else variant.file


def _file(store: Store, card: ModelCard, precision: ServedPrecision, expected: CardFile) -> bytes:
    """Returns a model file of the registry, which is the one that the card describes and stands on its own."""
    version = card.version
    try:
        data = store.get(Registry.model_key(version, precision))
    except NotFound as error:
        raise InvalidModel(f"version {version}: {error}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected.sha256:
        raise InvalidModel(
            f"version {version}: the file has {len(data)} bytes and the SHA-256 {found}; "
            f"its card says {expected.size_bytes} bytes and {expected.sha256}"
        )
    if _EXTERNAL_DATA in data:
        raise InvalidModel(f"version {version}: the model names files outside itself; expected one self-contained file")
    return data


def _load(
    store: Store,
    card: ModelCard,
    file: CardFile,
    precision: ServedPrecision,
    wanted: ProviderChoice,
    survives: Survives,
) -> ServedModel:
    """Reads one file of a version and opens it, if a process survives that."""
    data = _file(store, card, precision, file)
    if not survives(data, "onnxruntime"):
        raise KillsProcess(f"version {card.version}: its {precision} file killed the process that tried it")
    provider, run = open_file(data, wanted, f"version {card.version}")
    return ServedModel(card.version, provider, precision, card, run)


def open_file(data: bytes, wanted: ProviderChoice, name: str) -> tuple[Provider, Run]:
    """Opens a model file, warms it up and probes it. Returns where it runs, and the model.

    Args:
        data: the ONNX file.
        wanted: where it shall run.
        name: what errors call it.

    Raises:
        InvalidModel: it cannot be opened, or answers nonsense.
        ProviderUnavailable: `cuda` was asked for and does not work.
    """
    options = ort.SessionOptions()
    # One core a process and a process a core beat one session over all cores, on models of this size.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    on_gpu = wanted != "cpu" and cuda.available()
    try:
        if on_gpu:
            session = cuda.open_session(data, options)
        else:
            session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise InvalidModel(f"{name} cannot be loaded: {error}") from error
    # ONNX Runtime falls back to the CPU without an error where CUDA's libraries do not load, so ask what it did.
    used: Provider = "cuda" if cuda.PROVIDER in session.get_providers() else "cpu"
    if wanted == "cuda" and used != "cuda":
        raise ProviderUnavailable(
            f"GENDERLINE_PROVIDER is cuda, but ONNX Runtime runs on {session.get_providers()}; "
            f"available: {ort.get_available_providers()} (are onnxruntime-gpu, CUDA and a driver installed?)"
        )
    if on_gpu and used == "cpu":
        _LOG.warning("CUDA is there but could not be used; running on the CPU")
    signature = [(value.name, value.type) for value in (*session.get_inputs(), *session.get_outputs())]
    if signature != [_INPUT, _OUTPUT]:
        raise InvalidModel(f"{name} takes and gives {signature}; expected {[_INPUT, _OUTPUT]}")
    try:
        run = cuda.GpuRun(session, _INPUT[0], _OUTPUT[0], SIZE) if used == "cuda" else _on_cpu(session)
    except Exception as error:  # as above
        raise InvalidModel(f"{name} failed on the GPU: {error}") from error
    _probe(run, name)
    return used, run


def _on_cpu(session: ort.InferenceSession) -> Run:
    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        (probabilities,) = session.run([_OUTPUT[0]], {_INPUT[0]: images})
        return np.asarray(probabilities, np.float32)

    return run


def _probe(run: Run, name: str) -> None:
    """Warms the model up and checks its answers.

    Raises:
        InvalidModel: they are not probabilities, or depend on the batch.
    """
    images = _probe_images()
    try:
        together = run(images)
        alone = np.concatenate([run(image[np.newaxis]) for image in images])
    except Exception as error:  # as in `open_file`
        raise InvalidModel(f"{name} failed on the probe images: {error}") from error
    for answer in (together, alone):
        if answer.shape != (len(images),):
            raise InvalidModel(
                f"{name} gave {answer.shape} numbers for the probe; expected {(len(images),)}, one an image"
            )
        if not ((answer >= 0) & (answer <= 1)).all():  # also where one is NaN
            raise InvalidModel(f"{name} answered {answer.tolist()} to the probe; expected probabilities")
    difference = float(np.abs(together - alone).max())
    if difference > _BATCH_TOLERANCE:
        raise InvalidModel(
            f"{name} answers differently by {difference:.3f} in a batch and alone; "
            f"expected {_BATCH_TOLERANCE:g} or less"
        )


def _probe_images() -> NDArray[np.uint8]:
    """Returns images smooth and rough, dark and light, none of them a face: uint8 (4, 1, 128, 128), always the same."""
    ramp = np.linspace(0, 255, SIZE).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    dark, light = np.tile(ramp // 2, (SIZE, 1)), np.tile(255 - ramp[:, np.newaxis] // 2, (1, SIZE))
    return np.stack([dark, light, noise, 255 - noise])[:, np.newaxis]


def _speedup(model: ServedModel, other: ServedModel) -> float:
    """Returns how many times as fast the other runs: the best of a few runs of each, by turns.

    On a CPU it counts this thread's own processor time, in which the models run: who else uses the machine at the
    moment does not decide which of the two is served. A GPU's time is on the clock.
    """
    faces = np.full((_TRIAL_IMAGES[model.provider], SIZE, SIZE), 128, np.uint8)
    clock = time.perf_counter if model.provider == "cuda" else time.thread_time
    times: list[list[float]] = [[], []]
    for _ in range(_TRIAL_RUNS):
        for each, of_each in zip((model, other), times, strict=True):
            start = clock()
            each.predict(faces)
            of_each.append(clock() - start)
    return min(times[0]) / max(min(times[1]), 1e-9)
