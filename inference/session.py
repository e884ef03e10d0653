"""A model as it is served: verified, loaded into ONNX Runtime, warmed up and probed before anybody gets an answer."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import logging
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from shared.card import CardFile, ModelCard
from shared.errors import InvalidModel, NotFound
from shared.image import SIZE
from shared.registry import MODEL_NAME, Registry
from shared.store.base import Store

Provider = Literal["cpu", "cuda"]

_INPUT: Final = ("image", "tensor(uint8)")
_OUTPUT: Final = ("probability_female", "tensor(float)")
_EXTERNAL_DATA: Final = b"\n\x08location\x12"
"""How protobuf writes the key under which a tensor names a file beside the model."""
_NO_FOLDER: Final = "/nonexistent"
"""Where ONNX Runtime is told to look for such files, should one be written in another way."""

_BATCH_TOLERANCE: Final = 0.01
_TRIAL_IMAGES: Final = 8
_TRIAL_RUNS: Final = 4
_WORTH_IT: Final = 1.15
"""How much faster the int8 model must be on this machine to be taken."""

_LOG = logging.getLogger(__name__)


class ProviderUnavailable(RuntimeError):
    """The provider that the settings insist on does not work here."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model.

    Attributes:
        version: its number in the registry.
        provider: where it really runs, as ONNX Runtime says after loading.
        precision: `float32` or `int8`.
        card: its card.
        session: the session; used by several threads at once.
    """

    version: int
    provider: Provider
    precision: Literal["float32", "int8"]
    card: ModelCard
    session: ort.InferenceSession

    def predict(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the probability of *female* for each face.

        Args:
            faces: uint8 (N, 128, 128), luma.

        Returns:
            float32 (N,), in [0, 1].
        """
        (probabilities,) = self.session.run([_OUTPUT[0]], {_INPUT[0]: faces[:, np.newaxis]})
        return np.asarray(probabilities, np.float32)

    @property
    def identity(self) -> dict[str, Any]:
        """Returns `{"name", "version"}`, as replies carry it."""
        return {"name": MODEL_NAME, "version": self.version}


def load_model(store: Store, version: int, provider: Literal["auto", "cpu", "cuda"]) -> ServedModel:
    """Loads a registered model and makes sure that it answers sensibly.

    Where the card says that the int8 model holds the accuracy, it is loaded too, and taken if it is clearly faster on
    this machine's CPU. One that is broken costs nothing but its speed.

    Args:
        store: where the registry lies.
        version: which one.
        provider: `auto` takes CUDA where it works.

    Raises:
        NotFound: there is no such version.
        InvalidModel: its card cannot be read, or its file is missing, is not the registered one, cannot be loaded, or
            answers nonsense.
        ProviderUnavailable: `cuda` was asked for and does not work.
        Retryable: the store is away.
    """
    card = _card(store, version)
    session, used = _session(_file(store, version, card.file), provider, version)
    model = ServedModel(version, used, "float32", card, session)
    _probe(model)
    if used == "cpu" and card.int8 is not None and card.int8.kept and card.int8_file is not None:
        try:
            session, _ = _session(_file(store, version, card.int8_file, int8=True), "cpu", version)
            quantized = ServedModel(version, used, "int8", card, session)
            _probe(quantized)
        except InvalidModel as error:
            _LOG.error("int8 not taken, float32 serves: %s", error)
            return model
        gain = _gain(model, quantized)
        _LOG.info("version %d: int8 runs %.2f times as fast as float32 here", version, gain)
        if gain >= _WORTH_IT:
            return quantized
    return model


def require_provider(wanted: Literal["auto", "cpu", "cuda"]) -> None:
    """Refuses to start where the settings insist on CUDA and this ONNX Runtime was built without it.

    Raises:
        ProviderUnavailable: with what is there instead. Whether CUDA's libraries load too shows with the first model.
    """
    if wanted == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
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


def _card(store: Store, version: int) -> ModelCard:
    try:
        card = ModelCard.model_validate(Registry(store).card(version))
    except ValueError as error:  # not JSON, or not a card
        raise InvalidModel(f"version {version}: its card cannot be read: {error}") from None
    if card.version != version:
        raise InvalidModel(f"version {version}: its card is that of version {card.version}")
    return card


def _file(store: Store, version: int, expected: CardFile, *, int8: bool = False) -> bytes:
    """Returns a model file of the registry, which is the one that the card describes and stands on its own."""
    try:
        data = store.get(Registry.model_key(version, int8=int8))
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


def _session(
    data: bytes, wanted: Literal["auto", "cpu", "cuda"], version: int
) -> tuple[ort.InferenceSession, Provider]:
    options = ort.SessionOptions()
    # One core a process and a process a core beat one session over all cores, on models of this size.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    asked = ["CPUExecutionProvider"]
    if wanted != "cpu" and "CUDAExecutionProvider" in ort.get_available_providers():
        _find_cuda_libraries()
        asked.insert(0, "CUDAExecutionProvider")
    try:
        session = ort.InferenceSession(data, options, providers=asked)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise InvalidModel(f"version {version} cannot be loaded: {error}") from error
    # ONNX Runtime falls back to the CPU without an error where CUDA's libraries do not load, so ask what it did.
    used: Provider = "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu"
    if wanted == "cuda" and used != "cuda":
        raise ProviderUnavailable(
            f"GENDERLINE_PROVIDER is cuda, but ONNX Runtime runs on {session.get_providers()}; "
            f"available: {ort.get_available_providers()} (is onnxruntime-gpu with its CUDA libraries installed?)"
        )
    if len(asked) > 1 and used == "cpu":
        _LOG.warning("CUDA is there but could not be used; running on the CPU")
    return session, used


@functools.cache
def _find_cuda_libraries() -> None:
    """Loads CUDA and cuDNN from the packages that `onnxruntime-gpu[cuda,cudnn]` brings: the linker does not look there."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    if said.getvalue():
        _LOG.warning("%s", " ".join(said.getvalue().split()))


def _probe(model: ServedModel) -> None:
    """Warms the model up and checks its signature and answers.

    Raises:
        InvalidModel: its signature is another, or its answers are not probabilities, or depend on the batch.
    """
    session, version = model.session, model.version
    signature = [(value.name, value.type) for value in (*session.get_inputs(), *session.get_outputs())]
    if signature != [_INPUT, _OUTPUT]:
        raise InvalidModel(f"version {version} takes and gives {signature}; expected {[_INPUT, _OUTPUT]}")
    # Smooth and rough, dark and light: none of them a face, all of them fixed.
    ramp = np.linspace(0, 255, SIZE).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    dark, light = np.tile(ramp // 2, (SIZE, 1)), np.tile(255 - ramp[:, np.newaxis] // 2, (1, SIZE))
    images = np.stack([dark, light, noise, 255 - noise])
    try:
        together = model.predict(images)
        alone = np.concatenate([model.predict(image[np.newaxis]) for image in images])
    except Exception as error:  # as in `_session`
        raise InvalidModel(f"version {version} failed on the probe images: {error}") from error
    for answer in (together, alone):
        if answer.shape != (len(images),):
            raise InvalidModel(
                f"version {version} gave {answer.shape} numbers for the probe; expected {(len(images),)}, one an image"
            )
        if not ((answer >= 0) & (answer <= 1)).all():  # also where one is NaN
            raise InvalidModel(f"version {version} answered {answer.tolist()} to the probe; expected probabilities")
    difference = float(np.abs(together - alone).max())
    if difference > _BATCH_TOLERANCE:
        raise InvalidModel(
            f"version {version} answers differently by {difference:.3f} in a batch and alone; "
            f"expected {_BATCH_TOLERANCE:g} or less"
        )


def _gain(model: ServedModel, quantized: ServedModel) -> float:
    """Returns how many times as fast the quantized model runs: the best of a few runs of each, by turns.

    It counts this thread's own processor time, in which the models run: who else uses the machine at the moment does
    not decide which of the two is served.
    """
    faces = np.full((_TRIAL_IMAGES, SIZE, SIZE), 128, np.uint8)
    times: dict[str, list[float]] = {}
    for _ in range(_TRIAL_RUNS):
        for each in (model, quantized):
            start = time.thread_time()
            each.predict(faces)
            times.setdefault(each.precision, []).append(time.thread_time() - start)
    return min(times[model.precision]) / max(min(times[quantized.precision]), 1e-9)
