"""Encoding in tiles, on request: as diffusers does it, where it does it right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_autoencoders import CONFIGS, VIDEOS, as_input, as_latents, noise, save_tiny

from spacepatch.errors import ConfigError

pytest.importorskip("diffusers", reason="diffusers is not installed")

# Side of a tile in the models of `tiny_autoencoders`, by hand from diffusers.
TILES = {
    "AutoencoderKL": 64,
    "AutoencoderTiny": 512,
    "AutoencoderDC": 512,
    "AutoencoderKLWan": 256,
    "AutoencoderKLHunyuanVideo": 256,
    "AutoencoderKLCogVideoX": 360,
    "AutoencoderKLLTXVideo": 512,
    "AutoencoderKLMochi": 256,
}
CHANGES: dict[str, dict[str, Any]] = {"AutoencoderKL": {"sample_size": 64}}

Saved = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Folder and model of a class; the models are called directly, as the reference."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, tuple[Path, Any]] = {}

    def save(name: str) -> tuple[Path, Any]:
        if name not in made:
            made[name] = root / name, save_tiny(name, root / name, **CHANGES.get(name, {}))
        return made[name]

    return save


def load(folder: Path, **options: Any) -> Any:
    from spacepatch.latents import load_encoder

    return load_encoder(f"diffusers:{folder}", **options)


def picture(encoder: Any, side: int) -> np.ndarray:
    """Smooth frames, as few as the encoder takes, of a tile and a quarter either way."""
    rows = round(1.25 * side / encoder.multiple[0]) * encoder.multiple[0]
    y, x = np.mgrid[:rows, :rows] * (64 / side)
    waves = [np.sin(x / 9 + y / 23), np.cos(x / 13 - y / 11), np.sin(x * y / 900)]
    frame = np.stack([127.5 + 120 * wave for wave in waves], -1)
    return np.repeat(frame[None].astype(np.uint8), max(1, encoder.rule.first), 0)


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan"])
def test_tiled_latents_are_those_of_diffusers_told_to_tile(saved: Saved, name: str) -> None:
    folder, model = saved(name)
    plain, tiled = load(folder), load(folder, tiles=True)
    frames = picture(plain, TILES[name])
    x = as_input(frames, video=name in VIDEOS)
    try:
        for encoder, switch in ((plain, model.disable_tiling), (tiled, model.enable_tiling)):
            switch()
            expected = as_latents(model.encode(x).latent_dist.mode())
            np.testing.assert_allclose(encoder.encode(frames), expected, rtol=0, atol=1e-4)
    finally:
        model.disable_tiling()


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan"])
def test_tiled_latents_are_others_and_decode_to_nearly_the_same(saved: Saved, name: str) -> None:
    plain, tiled = load(saved(name)[0]), load(saved(name)[0], tiles=True)
    frames = picture(plain, TILES[name])
    one, other = plain.encode(frames), tiled.encode(frames)
    assert other.shape == one.shape
    assert not np.array_equal(other, one)
    # Not by its tiles: these are about latents.
    seen = [plain.decode(z).astype(float) for z in (one, other)]
    assert np.abs(seen[0] - seen[1]).mean() < 0.3 * seen[0].std()
    assert tiled.decode(other).shape == frames.shape


@pytest.mark.parametrize("name", TILES)
def test_latents_of_the_last_tile_lie_where_they_do_without_tiles(saved: Saved, name: str) -> None:
    plain, tiled = load(saved(name)[0]), load(saved(name)[0], tiles=True)
    frames = picture(plain, TILES[name])
    # Of another colour in each latent's place, so that neighbours are nothing alike.
    _, height, width, _ = frames.shape
    rows, columns = plain.multiple
    cells = np.random.default_rng(0).integers(0, 256, (height // rows, width // columns, 3))
    frames = frames // 2 + (cells.repeat(rows, 0).repeat(columns, 1) // 2).astype(np.uint8)
    expected, made = (encoder.encode(frames)[0] for encoder in (plain, tiled))
    assert made.shape == expected.shape
    corner = slice(-(made.shape[0] // 4) - 2, -2)

    def likeness(h: int, w: int) -> float:
        moved = np.roll(made, (h, w), (0, 1))[corner, corner]
        pair = [part - part.mean((0, 1)) for part in (expected[corner, corner], moved)]
        return float(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1])

    others = [likeness(h, w) for h in range(-2, 3) for w in range(-2, 3) if h or w]
    assert likeness(0, 0) > max(others) + 0.1


@pytest.mark.parametrize("name", TILES)
def test_frames_that_fit_a_tile_are_encoded_as_without(saved: Saved, name: str) -> None:
    plain, tiled = load(saved(name)[0]), load(saved(name)[0], tiles=True)
    frames = noise(plain, plain.rule.first + plain.rule.step)
    assert np.array_equal(plain.encode(frames), tiled.encode(frames))


def test_tiles_and_their_sizes_are_part_of_the_identity(saved: Saved, tmp_path: Path) -> None:
    plain = load(saved("AutoencoderKL")[0]).identity()
    tiled = load(saved("AutoencoderKL")[0], tiles=True).identity()
    sizes = {"tile_sample_min_size": 64, "tile_latent_min_size": 16, "tile_overlap_factor": 0.25}
    assert (plain["tiles"], plain["tile_sizes"]) == (False, None)
    assert tiled == plain | {"tiles": True, "tile_sizes": sizes}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in TILES])
def test_a_class_without_tiles_or_with_wrong_ones_is_refused(saved: Saved, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--encode-tiles: {name} has no tiles, or wrong ones"):
        load(saved(name)[0], tiles=True)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("AutoencoderKL", {"sample_size": 50}, "tiles of 50 pixels .* begin where latents begin"),
        ("AutoencoderKLCogVideoX", {"sample_width": 110}, "tiles of 55 pixels"),
        ("AutoencoderTiny", {"latent_channels": 16}, "for 4 latent channels only, not for 16"),
    ],
)
def test_tiles_that_would_move_latents_are_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    save_tiny(name, tmp_path, **changes)
    load(tmp_path)
    with pytest.raises(ConfigError, match=rf"^--encode-tiles: .*{message}.*; leave it out$"):
        load(tmp_path, tiles=True)
