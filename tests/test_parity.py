"""Presets, held bit by bit against what the peers' own processors made of the same frames.

The goldens are transformers 5.23's and timm 1.0.31's (`parity/` beside the repository). The same
frames go through `tokenize_frames` with the matching preset, and are normalized as the loader does.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spacepatch.config import RunConfig, load_config
from spacepatch.normalization import NORMALIZATIONS, normalize_tokens
from spacepatch.pipeline import FrameTokens, tokenize_frames
from spacepatch.tubelets import join_tubelets

SMALL_CROP = {"short_side": 73, "crop": "64x64"}
"""What the goldens of V-JEPA 2 and ViViT were made with, for their own 292 / 256 and 256 / 224."""


@pytest.fixture(scope="session")
def goldens(shared: Path) -> dict[str, Any]:
    folder = shared / "parity"
    arrays = np.load(folder / "arrays.npz")
    index = json.loads((folder / "index.json").read_text())
    return {"cases": {case["case"]: case for case in index}, **{key: arrays[key] for key in arrays}}


def tokenized(frames: np.ndarray, preset: str, **flags: Any) -> tuple[FrameTokens, RunConfig]:
    config = load_config(flags, preset=preset)
    (made,) = tokenize_frames(frames, config)
    return made, config


def normalized(made: FrameTokens, config: RunConfig) -> np.ndarray:
    tokens = normalize_tokens(
        torch.from_numpy(made.tokens),
        constants=NORMALIZATIONS[config.normalize],
        channels=3,
        layout=config.layout,
    )
    return tokens.numpy()


def frames_of(made: FrameTokens, config: RunConfig, values: np.ndarray) -> np.ndarray:
    """(T, 3, H, W), as video models take them."""
    frames = join_tubelets(
        values,
        grid_thw=made.clip.grid_thw,
        tubelet_size=made.clip.tubelet_size,
        patch_size=made.clip.patch_size,
        layout=config.layout,
    )
    return frames[: len(made.clip.frame_pts)].transpose(0, 3, 1, 2)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("preset", ["qwen2-vl", "qwen2.5-vl"])
def test_qwen2_vl_tokens_are_its_processors(
    goldens: dict[str, Any], preset: str, number: int
) -> None:
    budget = {"every_frame": True, "pixels": "3136..100352"}
    made, config = tokenized(goldens[f"in{number}"], preset, **budget)
    case = goldens["cases"][f"qwen2_vl_{number}"]
    assert list(made.clip.grid_thw) == case["grid_thw"]
    np.testing.assert_array_equal(normalized(made, config), goldens[f"qwen2_vl_{number}"])


@pytest.mark.parametrize("number", range(4))
def test_qwen3_vl_tokens_are_its_processors(goldens: dict[str, Any], number: int) -> None:
    budget = {"every_frame": True, "video_pixels": "4096..98304"}
    made, config = tokenized(goldens[f"in{number}"], "qwen3-vl", **budget)
    case = goldens["cases"][f"qwen3_vl_{number}"]
    assert list(made.clip.grid_thw) == case["grid_thw"]
    np.testing.assert_array_equal(normalized(made, config), goldens[f"qwen3_vl_{number}"])


@pytest.mark.parametrize("number", range(4))
def test_siglip2_tokens_are_its_processors_without_their_padding(
    goldens: dict[str, Any], number: int
) -> None:
    picture = goldens[f"in{number}"][:1]
    made, config = tokenized(picture, "siglip2-naflex", max_tokens_per_frame=64)
    case = goldens["cases"][f"siglip2_{number}"]
    assert list(made.clip.grid_thw[1:]) == case["spatial_shapes"]
    expected = goldens[f"siglip2_{number}"]
    np.testing.assert_array_equal(normalized(made, config), expected[: case["mask_sum"]])
    assert not expected[case["mask_sum"] :].any()


@pytest.mark.parametrize("number", range(4))
def test_timm_naflex_patches_and_coordinates_are_its_own(
    goldens: dict[str, Any], number: int
) -> None:
    picture = goldens[f"in{number}"][:1]
    flags = {"max_tokens_per_frame": 64, "normalize": "unit"}  # the golden stops at /255
    made, config = tokenized(picture, "timm-naflex", **flags)
    assert list(made.clip.size) == goldens["cases"][f"timm_naflex_{number}"]["size"]
    np.testing.assert_array_equal(normalized(made, config), goldens[f"timm_naflex_{number}"])
    np.testing.assert_array_equal(made.positions[:, 1:], goldens[f"timm_naflex_coord_{number}"])


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize(
    ("preset", "case", "flags"),
    [
        ("videomae", "videomae", {"short_side": 64, "crop": "64x64"}),
        ("vjepa2", "vjepa2", SMALL_CROP),
        ("vivit", "vivit", SMALL_CROP),
    ],
)
def test_frames_of_fixed_square_models_are_their_processors(
    goldens: dict[str, Any], preset: str, case: str, flags: dict[str, Any], number: int
) -> None:
    made, config = tokenized(goldens[f"in{number}"], preset, every_frame=True, **flags)
    found = frames_of(made, config, normalized(made, config))
    np.testing.assert_array_equal(found, goldens[f"{case}_{number}"])


# --- what no golden can show -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "stride"), [("videomae", 2), ("vjepa2", 2), ("vivit", 2), ("qwen2-vl", 2)]
)
def test_a_token_times_the_reshaped_weight_is_the_convolution(
    random_frames: Callable[..., np.ndarray], preset: str, stride: int
) -> None:
    from spacepatch.weights import flatten_conv_weight

    made, config = tokenized(random_frames(6, 90, 120), preset, every_frame=True, order="raster")
    patch = made.clip.patch_size
    shape = (5, 3, made.clip.tubelet_size, *patch)
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    frames = frames_of(made, config, made.tokens.astype(np.float64))
    convolved = torch.nn.functional.conv3d(
        torch.from_numpy(frames.copy()).transpose(0, 1)[None], weight, stride=(stride, *patch)
    )
    found = torch.from_numpy(made.tokens.astype(np.float64)) @ flatten_conv_weight(weight)
    expected = convolved[0].flatten(1).T
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.fixture
def random_frames() -> Callable[..., np.ndarray]:
    def make(num_frames: int, height: int, width: int) -> np.ndarray:
        generator = np.random.default_rng(height)
        return generator.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)

    return make
