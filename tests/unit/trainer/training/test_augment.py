import pytest
import torch

from trainer.training import augment as module
from trainer.training.augment import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def faces(count: int = 16) -> torch.Tensor:
    return torch.rand(count, 1, 128, 128, generator=generator(99))


def without(monkeypatch: pytest.MonkeyPatch, *changes: str) -> None:
    for change in changes:
        monkeypatch.setattr(module, change, 0.0)


def test_shape_dtype_and_range_stay() -> None:
    changed = augment(faces() * 3 - 1, generator())
    assert changed.shape == (16, 1, 128, 128)
    assert changed.dtype == torch.float32
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_the_given_faces_are_left_as_they_are() -> None:
    given = faces()
    before = given.clone()
    augment(given, generator())
    assert torch.equal(given, before)


def test_the_generator_decides_everything() -> None:
    assert torch.equal(augment(faces(), generator(1)), augment(faces(), generator(1)))
    assert not torch.equal(augment(faces(), generator(1)), augment(faces(), generator(2)))


def test_each_face_is_changed_in_its_own_way() -> None:
    same = faces(1).expand(8, -1, -1, -1)
    changed = augment(same, generator())
    assert all(not torch.allclose(changed[0], other) for other in changed[1:])


def test_with_all_else_off_a_face_is_itself_or_its_mirror_image(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "TURN", "SCALE", "SHIFT", "BRIGHTNESS", "CONTRAST")
    given = faces(64)
    changed = augment(given, generator())
    same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(changed, given, strict=True)]
    mirrored = [torch.allclose(a, b, atol=1e-4) for a, b in zip(changed, given.flip(3), strict=True)]
    assert [a != b for a, b in zip(same, mirrored, strict=True)] == [True] * 64
    assert 16 < sum(mirrored) < 48


def test_a_shift_moves_at_most_its_share_of_the_side(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "TURN", "SCALE", "BRIGHTNESS", "CONTRAST")
    dots = torch.zeros(64, 1, 128, 128)
    dots[:, :, 62:66, 62:66] = 1
    changed = augment(dots, generator())
    weights = changed / changed.sum(dim=(2, 3), keepdim=True)
    position = torch.arange(128.0) - 63.5
    rows, columns = (weights.sum(3) * position).sum((1, 2)), (weights.sum(2) * position).sum((1, 2))
    for moved in (rows.abs(), columns.abs()):
        assert moved.max() <= module.SHIFT * 128 + 0.1
        assert moved.max() > module.SHIFT * 128 / 2


def test_a_turn_keeps_shapes_and_turns_by_its_angle_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "SCALE", "SHIFT", "BRIGHTNESS", "CONTRAST")
    position = torch.arange(128.0) - 63.5
    radius = torch.hypot(position[:, None], position[None, :])
    rings = (0.5 + 0.5 * torch.cos(radius / 8)).expand(32, 1, -1, -1)
    inside = radius < 60  # what a turn brings in from the corners is not the face
    assert torch.allclose(augment(rings, generator())[..., inside], rings[..., inside], atol=0.02)

    dots = torch.zeros(64, 1, 128, 128)
    dots[:, :, 22:26, 62:66] = 1  # straight above the centre
    weights = augment(dots, generator())
    weights /= weights.sum(dim=(2, 3), keepdim=True)
    rows, columns = (weights.sum(3) * position).sum((1, 2)), (weights.sum(2) * position).sum((1, 2))
    angles = torch.atan2(columns, -rows).abs()
    assert angles.max() <= module.TURN + 0.01
    assert angles.max() > module.TURN / 2


def test_relighting_moves_the_mean_by_the_brightness_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "TURN", "SCALE", "SHIFT")
    changed = augment(torch.full((64, 1, 128, 128), 0.5), generator())
    moved = (changed.mean(dim=(1, 2, 3)) - 0.5).abs()
    assert moved.max() <= module.BRIGHTNESS + 1e-5
    assert moved.max() > module.BRIGHTNESS / 2


def test_contrast_spreads_the_luma_by_its_share_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "TURN", "SCALE", "SHIFT", "BRIGHTNESS")
    given = faces(64) * 0.2 + 0.4
    ratio = augment(given, generator()).std(dim=(1, 2, 3)) / given.std(dim=(1, 2, 3))
    assert (ratio - 1).abs().max() <= module.CONTRAST + 1e-3
    assert ratio.max() > 1 + module.CONTRAST / 2
    assert ratio.min() < 1 - module.CONTRAST / 2
