"""Random changes to training faces that leave the label true: mirrored, moved, turned, scaled and relit."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch.nn import functional

TURN: Final = math.radians(12)
SCALE: Final = 0.1
SHIFT: Final = 0.06
"""The largest turn in radians, change of scale, and shift as a share of the side."""
BRIGHTNESS: Final = 0.15
CONTRAST: Final = 0.25
"""The largest change of brightness, as a share of the full range, and of contrast."""


def augment(faces: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Changes each face at random and independently; one batched warp, on the device where the faces are.

    Args:
        faces: float32 (N, 1, side, side) in [0, 1]; left as they are.
        generator: decides everything, and lives on the faces' device.

    Returns:
        New faces of the same shape, dtype, device and range.
    """
    count = len(faces)
    draw = torch.rand(7, count, generator=generator, device=faces.device)
    signed = draw[1:] * 2 - 1
    mirror = torch.where(draw[0] < 0.5, -1.0, 1.0)
    angle = signed[0] * TURN
    zoom = 1 + signed[1] * SCALE
    shift_x, shift_y = signed[2] * 2 * SHIFT, signed[3] * 2 * SHIFT  # a side is 2 in grid coordinates

    # The matrix says for each pixel of the result where in the face it comes from, hence columns are mirrored last.
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    matrix = torch.stack([cosine * mirror, -sine, shift_x, sine * mirror, cosine, shift_y]).T.reshape(count, 2, 3)
    grid = functional.affine_grid(matrix, list(faces.shape), align_corners=False)
    warped = functional.grid_sample(faces, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    mean = warped.mean(dim=(1, 2, 3), keepdim=True)
    contrast = (1 + signed[4] * CONTRAST).view(-1, 1, 1, 1)
    brightness = (signed[5] * BRIGHTNESS).view(-1, 1, 1, 1)
    return warped.sub_(mean).mul_(contrast).add_(mean + brightness).clamp_(0, 1)
