from pathlib import Path

import numpy as np
import pytest
import torch

from shared.runtime.settings import SettingsError
from trainer.training.device import DeviceFaces, choose_device, seeded

CPU = torch.device("cpu")


def test_auto_takes_cuda_only_where_there_is_any() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_refused_and_not_silently_the_cpu() -> None:
    with pytest.raises(SettingsError, match=r"GENDERLINE_DEVICE is cuda, .*finds no CUDA device; expected auto or cpu"):
        choose_device("cuda")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(SettingsError, match="'tpu'; expected auto, cuda or cpu"):
        choose_device("tpu")


@pytest.mark.parametrize("resident", [None, True])
def test_faces_of_a_read_only_memory_map_are_taken_in_the_order_asked_for(
    resident: bool | None, tmp_path: Path
) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (10, 128, 128), dtype=np.uint8)
    np.save(tmp_path / "faces.npy", faces)
    source = DeviceFaces(np.load(tmp_path / "faces.npy", mmap_mode="r"), CPU, resident=resident)
    taken = source.take(np.array([7, 0, 7]))
    assert taken.shape == (3, 1, 128, 128)
    assert taken.dtype == torch.uint8
    assert np.array_equal(taken[:, 0].numpy(), faces[[7, 0, 7]])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_faces_resident_on_a_gpu_are_the_same_faces() -> None:
    faces = np.random.default_rng(0).integers(0, 256, (10, 128, 128), dtype=np.uint8)
    taken = DeviceFaces(faces, torch.device("cuda")).take(np.array([3, 1]))
    assert taken.device.type == "cuda"
    assert np.array_equal(taken[:, 0].cpu().numpy(), faces[[3, 1]])


def test_what_is_drawn_when_seeded_depends_on_every_part_and_on_nothing_else() -> None:
    def draw(*parts: int) -> tuple[float, float]:
        with seeded(CPU, *parts) as generator:
            return torch.rand(1).item(), torch.rand(1, generator=generator).item()

    first = draw(1, 2, 3)
    torch.rand(5)
    assert draw(1, 2, 3) == first
    drawn = [first, draw(1, 2, 4), draw(1, 3, 3), draw(2, 2, 3)]
    assert len({value for pair in drawn for value in pair}) == 8


def test_seeding_leaves_torchs_own_generator_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with seeded(CPU, 1):
        torch.rand(3)
    assert torch.equal(torch.rand(1), expected)
