"""Frames in memory become the tokens that a lossless file of them becomes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from small_runs import make_dataset
from stored_segments import segments_of

from spacepatch.config import load_config
from spacepatch.errors import SpacepatchError
from spacepatch.pipeline import FrameTokens, tokenize, tokenize_frames


def moving_picture(num_frames: int, height: int, width: int) -> np.ndarray:
    """(T, H, W, 3) uint8: waves that move, a block that stands still, and noise."""
    t, y, x = np.ogrid[:num_frames, :height, :width]
    waves = [np.sin(x / 7 + t / 3 + c) + np.cos(y / (5 + c) - t / 4) for c in range(3)]
    clip = np.stack([(wave + 2) * 63 for wave in waves], axis=-1)
    clip += np.random.default_rng(1).normal(0, 3, clip.shape)
    clip[:, : height // 2, : width // 3] = (200, 30, 90)
    return clip.clip(0, 255).astype(np.uint8)


FRAMES = moving_picture(19, 122, 214)


def write(
    path: Path, frames: np.ndarray, codec: str, *, options: dict[str, str] | None = None
) -> Path:
    """A file of 10 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        stream.options = options or {}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def assert_keeps_every_number(path: Path) -> None:
    with av.open(str(path)) as container:
        back = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(np.stack(back), FRAMES)


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`FRAMES` in H.264, which decodes to planes of red, green and blue."""
    path = tmp_path_factory.mktemp("lossless") / "a.mkv"
    write(path, FRAMES, "libx264rgb", options={"qp": "0"})
    assert_keeps_every_number(path)
    return path


def assert_same_tokens(path: Path, out: Path, preset: str | None = None, **settings: Any) -> None:
    config = load_config({"workers": 1, "index": "full", **settings}, preset=preset)
    tokenize([str(path)], out=out, config=config)
    stored = [one for _, one in sorted(segments_of(out).items())]
    made = tokenize_frames(FRAMES, config, fps=10)
    assert len(made) == len(stored) > 0
    for one, other in zip(made, stored, strict=True):
        assert isinstance(one, FrameTokens)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.positions, other.positions)
        assert one.clip.frame_indices.tolist() == other.row["frame_indices"]
        assert one.clip.grid_thw == other.grid
        # Its times count frames, those of the file count ticks: the same seconds.
        times = [Fraction(int(pts), 10) for pts in one.clip.frame_pts]
        base = Fraction(other.row["time_base"])
        assert times == [pts * base for pts in other.row["frame_pts"]]
        if other.run_lengths is None:
            assert one.run_lengths is None
        else:
            np.testing.assert_array_equal(one.run_lengths, other.run_lengths)


@pytest.mark.parametrize("resampler", ["torch-bicubic", "bicubic", "area", "pillow-bilinear"])
def test_frames_and_a_lossless_file_of_them_give_the_same_tokens(
    lossless: Path, tmp_path: Path, resampler: str
) -> None:
    assert_same_tokens(
        lossless, tmp_path / "out", fps="4", max_tokens_per_frame=40, resampler=resampler
    )


def test_they_do_of_packed_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mov", FRAMES, "png")
    assert_keeps_every_number(path)
    assert_same_tokens(path, tmp_path / "out", fps="4", max_tokens_per_frame=40)


def test_they_do_with_the_preset_of_qwen2_vl(lossless: Path, tmp_path: Path) -> None:
    assert_same_tokens(lossless, tmp_path / "out", "qwen2-vl", every_frame=True)
    assert_same_tokens(lossless, tmp_path / "sampled", "qwen2-vl", fps="5")


@pytest.mark.parametrize(
    "settings",
    [
        {"drop": "static", "every_frame": True, "tail": "pad"},
        {"drop": "static:0.4", "order": "merge 2 x 2", "multiple": 2, "tail": "drop"},
        {"halo": 4, "fit": "pad", "resolution": "90", "buckets": "1:1", "layout": "t p q c"},
        {"clip_seconds": "0.7", "patch": "1x16x16,2x8x8", "views": "all"},
        {"num_frames": 5, "short_side": 96, "crop": "64x96", "resampler": "torch-bilinear"},
        {"stride": 3, "native": True, "pack_length": 300},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_they_do_whatever_else_is_asked_for(
    lossless: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert_same_tokens(lossless, tmp_path / "out", **settings)


def test_random_draws_go_by_seed_and_key_and_nothing_else() -> None:
    settings = {"fps": "5", "drop": "random:0.5", "random_crop": "0.5", "views": 3}

    def kept(seed: int, key: str) -> list[list[list[int]]]:
        config = load_config(settings | {"seed": seed})
        return [one.positions.tolist() for one in tokenize_frames(FRAMES, config, fps=10, key=key)]

    assert kept(1, "a") == kept(1, "a")
    assert len(kept(1, "a")) == 3
    ways = [str(views) for made in (kept(1, "a"), kept(1, "b"), kept(2, "a")) for views in made]
    assert len(set(ways)) == 9


def test_a_drop_keeps_what_it_keeps_of_the_undropped_tokens() -> None:
    settings = {"fps": "5", "max_tokens_per_frame": 40}
    (whole,) = tokenize_frames(FRAMES, load_config(settings), fps=10)
    (made,) = tokenize_frames(FRAMES, load_config(settings | {"drop": "random:0.7"}), fps=10)
    raster = np.ravel_multi_index(made.positions.T, made.clip.grid_thw)
    assert len(raster) == int(len(whole.tokens) * (1 - 0.7)) == made.clip.num_kept
    np.testing.assert_array_equal(made.tokens, whole.tokens[raster])


def test_one_frame_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(FRAMES[0]).save(path)
    out = make_dataset([path], tmp_path / "out", patch="1x16x16")
    (stored,) = segments_of(out).values()
    (made,) = tokenize_frames(FRAMES[:1], load_config({"patch": "1x16x16"}))
    np.testing.assert_array_equal(made.tokens, stored.tokens)


def test_frames_are_not_changed_and_may_be_strided() -> None:
    config = load_config({"fps": "5", "max_tokens_per_frame": 40})
    before = FRAMES.copy()
    turned = np.ascontiguousarray(FRAMES[:, :, ::-1])[:, :, ::-1]
    (one,), (other,) = (tokenize_frames(frames, config, fps=10) for frames in (FRAMES, turned))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(FRAMES, before)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((2, 32, 32, 4), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
    ],
    ids=lambda frames: f"{frames.dtype} {frames.shape}",
)
def test_frames_that_are_none_are_refused_with_what_they_are(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"not uint8 \(T, H, W, 3\)"):
        tokenize_frames(frames, load_config({}))


def test_settings_that_leave_nothing_say_why() -> None:
    with pytest.raises(SpacepatchError, match="too_short"):
        tokenize_frames(FRAMES, load_config({"min_seconds": 60}), fps=10)
    with pytest.raises(SpacepatchError, match="tail_dropped"):
        tokenize_frames(FRAMES, load_config({"tail": "drop", "patch": "64x16x16"}), fps=10)
