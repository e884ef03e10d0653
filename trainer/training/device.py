"""Where training runs, and how the faces get there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from shared.runtime.settings import SettingsError

CHUNK: Final = 4096
"""Faces copied to the device at once."""


def choose_device(name: str) -> torch.device:
    """Returns the device for a setting.

    Args:
        name: `cpu`, `cuda`, or `auto`: CUDA where there is any.

    Raises:
        SettingsError: the device is not there, or the name is unknown.
    """
    if name not in {"auto", "cuda", "cpu"}:
        raise SettingsError(f"GENDERLINE_DEVICE is {name!r}; expected auto, cuda or cpu")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise SettingsError(
            f"GENDERLINE_DEVICE is cuda, but torch {torch.__version__} finds no CUDA device; expected auto or cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def computes_bfloat16(device: torch.device) -> bool:
    """Returns whether the device multiplies in bfloat16 by instructions of its own, and so faster than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def to_device(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Returns an array as a tensor on the device, without waiting for what the device is doing.

    CUDA has read ordinary memory when the call returns, so the array may be changed or dropped then.
    """
    return torch.from_numpy(values).to(device, non_blocking=True)


class DeviceFaces:
    """All faces of a dataset, to be taken by the batch: resident on a GPU where they fit, else copied batch by batch.

    Args:
        faces: uint8 (N, side, side), luma; may be a read-only memory map, which is then read as it is needed.
        device: where batches are wanted.
        resident: whether all faces are copied there at once; None decides: on a GPU, where they take no more than half
            of its free memory. In main memory the page cache already keeps what fits.
    """

    def __init__(self, faces: NDArray[np.uint8], device: torch.device, *, resident: bool | None = None) -> None:
        self._faces = faces
        self._device = device
        self._resident = self._copy_whole() if (self._fits() if resident is None else resident) else None

    def take(self, indices: NDArray[np.intp]) -> torch.Tensor:
        """Returns the faces at `indices`: uint8 (n, 1, side, side), on the device."""
        if self._resident is not None:
            return self._resident[to_device(indices, self._device)].unsqueeze(1)
        return to_device(self._faces[indices], self._device).unsqueeze(1)

    def _fits(self) -> bool:
        return self._device.type == "cuda" and self._faces.nbytes <= torch.cuda.mem_get_info(self._device)[0] // 2

    def _copy_whole(self) -> torch.Tensor:
        resident = torch.empty(self._faces.shape, dtype=torch.uint8, device=self._device)
        for start in range(0, len(self._faces), CHUNK):
            resident[start : start + CHUNK] = torch.from_numpy(np.array(self._faces[start : start + CHUNK]))
        return resident


@contextmanager
def seeded(device: torch.device, *parts: int) -> Iterator[torch.Generator]:
    """Makes everything random inside depend on `parts` alone, and leaves torch's generators as they were.

    Yields:
        A generator on the device, seeded too; torch's own serve dropout and fresh weights.
    """
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)  # torch takes 63 bits
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # As `torch.manual_seed`, which looks for every other kind of device too, and takes longer than what it does.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield torch.Generator(device).manual_seed(seed + 1)
