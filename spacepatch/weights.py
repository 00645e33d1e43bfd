"""Patch embeddings of checkpoints, made to fit other layouts, tubelets and patch sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812

from spacepatch.tubelets import LAYOUTS


def flatten_conv_weight(weight: torch.Tensor, *, layout: str = "c t p q") -> torch.Tensor:
    """Turn a convolution whose stride is its kernel into a matrix: ``token @ matrix``.

    The values of a token lie in the order of its layout, so the rows of the matrix must too. What
    the loader yields is uint8: normalize it as the model's pictures are.

    Args:
        weight: ``(D_out, C, t, p, q)`` of a Conv3d, or ``(D_out, C, p, q)`` of a Conv2d.
        layout: one of `tubelets.LAYOUTS`.

    Returns:
        ``(C * t * p * q, D_out)``; its transpose is the weight of a Linear.

    Raises:
        ValueError: an unknown layout, or one without t for several frames a token.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; one of {', '.join(LAYOUTS)}")
    if weight.ndim == 4:
        weight = weight.unsqueeze(2)
    if "t" not in layout.split() and weight.shape[2] != 1:
        raise ValueError(f"layout {layout!r} has no t, the weight has {weight.shape[2]} frames")
    stored = weight.permute(0, *(1 + axis for axis in LAYOUTS[layout]))
    return stored.flatten(1).T


def _average(weight: torch.Tensor, tubelet_size: int) -> torch.Tensor:
    return torch.stack([weight / tubelet_size] * tubelet_size, dim=2)


def _central_frame(weight: torch.Tensor, tubelet_size: int) -> torch.Tensor:
    frames = [torch.zeros_like(weight)] * tubelet_size
    frames[tubelet_size // 2] = weight
    return torch.stack(frames, dim=2)


INFLATIONS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "average": _average,
    "central-frame": _central_frame,
}
"""`average`: 1 / t of the weight for each frame (ViViT, arXiv 2103.15691, eq. 8): a tubelet embeds
as the mean of its frames. `central-frame`: zero but at floor(t / 2) (eq. 9): as that frame."""


def inflate_patch_weight(
    weight: torch.Tensor, *, tubelet_size: int, method: str = "central-frame"
) -> torch.Tensor:
    """Start a tubelet embedding from the patch embedding of an image model.

    Args:
        weight: ``(D_out, C, p, q)``.
        tubelet_size: t, in frames.
        method: one of `INFLATIONS`.

    Returns:
        ``(D_out, C, t, p, q)``; the bias stays as it is.

    Raises:
        ValueError: an unknown method.
    """
    if method not in INFLATIONS:
        raise ValueError(f"unknown method {method!r}; one of {', '.join(INFLATIONS)}")
    return INFLATIONS[method](weight, tubelet_size)


def resample_patch_weight(weight: torch.Tensor, *, new_size: tuple[int, int]) -> torch.Tensor:
    """FlexiViT's PI-resize: the weight for patches of another size (arXiv 2212.08013, section 3.4).

    With B the matrix that resizes a patch bilinearly, without antialias (big_vision,
    models/proj/flexi/vit.py, `resample_patchemb`), the new weight is pinv(B^T) w. Where patches
    grow, <B x, pinv(B^T) w> = <x, w> for every patch x; where they shrink it is the nearest.

    Args:
        weight: ``(..., p, q)``, of a Conv2d or a Conv3d; each frame and channel is on its own.
        new_size: (h, w) of the new patches.

    Returns:
        ``(..., h, w)`` in the dtype of `weight`; computed in float64.
    """
    if tuple(new_size) == tuple(weight.shape[-2:]):
        return weight
    # B is a Kronecker product of its two axes, and so is its pseudoinverse.
    rows = _inverse_resize(weight.shape[-2], new_size[0]).to(weight.device)
    columns = _inverse_resize(weight.shape[-1], new_size[1]).to(weight.device)
    return (rows @ weight.double() @ columns.T).to(weight.dtype)


def _inverse_resize(size: int, new_size: int) -> torch.Tensor:
    """pinv(B^T), ``(new_size, size)``, of the bilinear resize of one axis."""
    basis = torch.eye(size, dtype=torch.float64)[:, None]
    # (size, new_size): row i is what the i-th unit vector becomes, so this is B^T.
    resized = F.interpolate(basis, size=new_size, mode="linear", align_corners=False)[:, 0]
    inverse: torch.Tensor = torch.linalg.pinv(resized)
    return inverse
