"""Patch embeddings against torch's convolutions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from spacepatch.tubelets import LAYOUTS, cut_tubelets
from spacepatch.weights import (
    INFLATIONS,
    flatten_conv_weight,
    inflate_patch_weight,
    resample_patch_weight,
)


def randn(*shape, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def convolved(frames: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, D_out): what a Conv3d of stride = kernel makes of (T, H, W, C) frames, as tokens."""
    out = F.conv3d(frames.permute(3, 0, 1, 2)[None], weight, stride=weight.shape[2:])
    return out[0].flatten(1).T


def tokens_of(frames: torch.Tensor, weight: torch.Tensor, layout: str) -> torch.Tensor:
    cut = cut_tubelets(
        frames.numpy(),
        tubelet_size=weight.shape[2],
        patch_size=(weight.shape[3], weight.shape[4]),
        layout=layout,
    )
    return torch.from_numpy(cut)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    grid=st.tuples(*[st.integers(1, 3)] * 3),
    channels=st.sampled_from([1, 3, 4]),
)
@settings(max_examples=20, deadline=None)
def test_a_token_times_the_matrix_is_the_convolution(layout, kernel, grid, channels) -> None:
    if "t" not in layout.split():
        kernel = (1, *kernel[1:])
    sides = [side * count for side, count in zip(kernel, grid, strict=True)]
    frames, weight = randn(*sides, channels), randn(7, channels, *kernel, seed=1)
    out = tokens_of(frames, weight, layout) @ flatten_conv_weight(weight, layout=layout)
    torch.testing.assert_close(out, convolved(frames, weight), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_the_weight_of_a_conv2d_is_that_of_one_frame(layout) -> None:
    frames, weight = randn(2, 32, 48, 3), randn(5, 3, 16, 16, seed=1)
    tokens = tokens_of(frames, weight[:, :, None], layout)
    out = tokens @ flatten_conv_weight(weight, layout=layout)
    expected = F.conv2d(frames.permute(0, 3, 1, 2), weight, stride=16)
    torch.testing.assert_close(out, expected.permute(0, 2, 3, 1).reshape(-1, 5), rtol=0, atol=1e-12)


def test_a_layout_without_t_takes_one_frame_only() -> None:
    with pytest.raises(ValueError, match="'p q c' has no t, the weight has 2 frames"):
        flatten_conv_weight(randn(1, 3, 2, 4, 4), layout="p q c")
    with pytest.raises(ValueError, match="unknown layout 'q p'"):
        flatten_conv_weight(randn(1, 3, 2, 4, 4), layout="q p")


@pytest.mark.parametrize("tubelet_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("method", sorted(INFLATIONS))
def test_a_tubelet_starts_as_its_central_frame_or_its_mean(tubelet_size, method) -> None:
    frames, weight = randn(tubelet_size, 16, 24, 3), randn(5, 3, 8, 8, seed=1)
    inflated = inflate_patch_weight(weight, tubelet_size=tubelet_size, method=method)
    out = convolved(frames, inflated)
    each = F.conv2d(frames.permute(0, 3, 1, 2), weight, stride=8).permute(0, 2, 3, 1)
    frame = {"central-frame": each[tubelet_size // 2], "average": each.mean(dim=0)}[method]
    torch.testing.assert_close(out, frame.reshape(-1, 5), rtol=0, atol=1e-12)


def test_the_central_frame_is_the_start_that_is_taken_unasked() -> None:
    weight = randn(5, 3, 8, 8)
    inflated = inflate_patch_weight(weight, tubelet_size=2)
    assert torch.equal(inflated[:, :, 1], weight)
    assert not inflated[:, :, 0].any()
    with pytest.raises(ValueError, match="'middle'; one of average, central-frame"):
        inflate_patch_weight(weight, tubelet_size=2, method="middle")


def resized(patches: torch.Tensor, new_size) -> torch.Tensor:
    return F.interpolate(patches, size=new_size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(
    ("size", "new_size"),
    [
        ((8, 8), (16, 16)),
        ((16, 16), (48, 48)),
        ((5, 7), (6, 30)),
        ((4, 4), (4, 9)),
        ((1, 2), (3, 3)),
    ],
)
def test_scores_survive_where_patches_grow(size, new_size) -> None:
    patches, weight = randn(6, 3, *size), randn(4, 3, *size, seed=1)
    before = torch.einsum("nchw,dchw->nd", patches, weight)
    grown = resample_patch_weight(weight, new_size=new_size)
    after = torch.einsum("nchw,dchw->nd", resized(patches, new_size), grown)
    scale = torch.einsum("nchw,dchw->nd", patches.abs(), weight.abs())
    assert ((after - before).abs() / scale).max() < 1e-14


@pytest.mark.parametrize(
    ("size", "new_size"), [((16, 16), (8, 8)), ((9, 6), (4, 5)), ((6, 4), (8, 3))]
)
def test_the_weight_is_the_pseudoinverse_of_the_whole_resize(size, new_size) -> None:
    # B, column by column: what becomes of each pixel of a patch; numpy inverts the whole of it.
    pixels = size[0] * size[1]
    basis = torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *size)
    matrix = resized(basis, new_size).reshape(pixels, -1).numpy()
    weight = randn(4, 3, 2, *size)
    expected = np.linalg.pinv(matrix) @ weight.numpy().reshape(24, -1).T
    out = resample_patch_weight(weight, new_size=new_size)
    assert out.shape == (4, 3, 2, *new_size)
    np.testing.assert_allclose(out.reshape(24, -1).T.numpy(), expected, rtol=0, atol=1e-12)


def test_a_weight_of_the_size_asked_for_is_left_alone_and_its_dtype_stays() -> None:
    weight = randn(2, 3, 8, 8).float()
    assert resample_patch_weight(weight, new_size=(8, 8)) is weight
    assert resample_patch_weight(weight, new_size=(10, 12)).dtype == torch.float32
