"""What `spacepatch unpack` makes of segments that miss tokens, and of latents and codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("threadpoolctl")

from decoded_datasets import make_codecs
from small_runs import copied, rows, run
from stored_segments import scaled_frames, segments_of
from unpacked_files import film_in, pictures_in, table_of, unpacked

from spacepatch.errors import ConfigError, EncodeError
from spacepatch.latents import load_encoder

CLIPS = ("square_320x320.mp4", "landscape_640x360.mp4")


@pytest.fixture(scope="module")
def clips(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(sample_clips, tmp_path_factory.mktemp("clips"), CLIPS)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_codecs(tmp_path_factory.mktemp("codecs"))


def spread(kept: np.ndarray, frames: np.ndarray, tubelet: int) -> np.ndarray:
    """(T, H, W) bool of pixels, from cells."""
    patch = frames.shape[1] // kept.shape[1], frames.shape[2] // kept.shape[2]
    pixels = kept.repeat(tubelet, 0).repeat(patch[0], 1).repeat(patch[1], 2)
    return pixels[: len(frames)]


def test_dropped_tokens_are_grey_and_named_in_a_mask(clips: Path, tmp_path: Path) -> None:
    run([clips], tmp_path / "out", drop="random:0.5", patch="2x16x16", mask="random:0.5",
        store_mask=True)  # fmt: skip
    done = unpacked(tmp_path / "out", tmp_path / "frames")
    assert (done.num_exact, done.num_gaps) == (0, done.num_segments)
    for stored in segments_of(tmp_path / "out").values():
        folder = tmp_path / "frames" / stored.row["segment_id"]
        kept = np.load(folder / "kept.npy")
        np.testing.assert_array_equal(kept.reshape(len(kept), -1), stored.keep)
        visible = np.load(folder / "visible.npy")
        assert 0 < visible.sum() < kept.sum()
        assert not (visible & ~kept).any()
        frames = np.stack(list(pictures_in(folder).values()))
        there = spread(kept, frames, 2)
        assert (frames[~there] == 128).all()
        expected = scaled_frames(clips / stored.row["source"], stored.row)
        np.testing.assert_array_equal(frames[there], expected[there])


@pytest.mark.parametrize("file_format", ["png", "mp4-lossless"])
def test_frames_of_lost_rows_have_no_file(
    part_damaged: list[Path], tmp_path: Path, file_format: str
) -> None:
    damaged = part_damaged[1] / "damaged_square_320x320.mp4"
    run([damaged], tmp_path / "out", fps="8", max_tokens_per_frame=16, patch="2x16x16")
    done = unpacked(tmp_path / "out", tmp_path / "frames", file_format=file_format)
    (row,) = table_of(tmp_path / "frames")
    (stored,) = segments_of(tmp_path / "out").values()
    empty = np.flatnonzero(~stored.keep.any(axis=1))
    lost = [frame for t in empty for frame in (2 * t, 2 * t + 1)]
    assert lost
    assert row["lost_frames"] == lost
    assert (done.lost_frames, row["is_exact"]) == (len(lost), False)
    left = [number for number in range(len(row["frame_pts"])) if number not in lost]
    folder = tmp_path / "frames" / row["folder"]
    if file_format == "png":
        assert list(pictures_in(folder)) == left
    else:
        frames, times, _ = film_in(folder)
        seconds = [row["frame_seconds"][k] - row["frame_seconds"][left[0]] for k in left]
        assert len(frames) == len(left)
        np.testing.assert_allclose([float(time) for time in times], seconds, atol=1e-9)


@pytest.mark.parametrize("kind", ["latents", "codes"])
def test_what_an_encoder_made_is_decoded(
    clips: Path, codecs: dict[str, str], tmp_path: Path, kind: str
) -> None:
    run([clips], tmp_path / "out", encoder=codecs[kind], latent_dtype="float32"
        if kind == "latents" else "float16")  # fmt: skip
    with pytest.raises(ConfigError, match=rf"these are {kind} of linear:.* --encoder linear:WHERE"):
        unpacked(tmp_path / "out", tmp_path / "frames")
    assert not (tmp_path / "frames").exists()
    done = unpacked(tmp_path / "out", tmp_path / "frames", encoder=codecs[kind])
    assert (done.num_exact, done.num_gaps, done.num_segments) == (0, 0, 2)
    encoder = load_encoder(codecs[kind])
    for row in table_of(tmp_path / "frames"):
        true = scaled_frames(clips / row["source"], row_of(tmp_path / "out", row["segment_id"]))
        padding = np.repeat(true[-1:], row["padded_frames"], axis=0)
        decoded = encoder.decode(encoder.encode(np.concatenate([true, padding])))
        assert decoded is not None
        frames = np.stack(list(pictures_in(tmp_path / "frames" / row["folder"]).values()))
        np.testing.assert_array_equal(frames, decoded[: len(true)])


def row_of(out: Path, segment_id: str) -> dict:
    return next(row for row in rows(out, "segments.parquet") if row["segment_id"] == segment_id)


def test_latents_with_gaps_are_decoded_around_them(
    clips: Path, codecs: dict[str, str], tmp_path: Path
) -> None:
    encoder = codecs["latents"]
    run([clips], tmp_path / "out", encoder=encoder, drop="random:0.3")
    run([clips], tmp_path / "whole", encoder=encoder)
    for name in ("out", "whole"):
        unpacked(tmp_path / name, tmp_path / f"{name}-frames", encoder=encoder)
    whole = {row["source"]: row for row in table_of(tmp_path / "whole-frames")}
    for row in table_of(tmp_path / "out-frames"):
        folder = tmp_path / "out-frames" / row["folder"]
        frames = np.stack(list(pictures_in(folder).values()))
        beside = tmp_path / "whole-frames" / whole[row["source"]]["folder"]
        expected = np.stack(list(pictures_in(beside).values()))
        there = spread(np.load(folder / "kept.npy"), frames, 2)
        assert (frames[~there] == 128).all()
        # This codec decodes each block by itself.
        np.testing.assert_array_equal(frames[there], expected[there])


def test_pixels_beside_latents_are_exact_and_need_no_encoder(
    clips: Path, codecs: dict[str, str], tmp_path: Path
) -> None:
    run([clips], tmp_path / "out", encoder=codecs["latents"], also="pixels", drop="random:0.5")
    done = unpacked(tmp_path / "out", tmp_path / "frames")
    assert done.num_exact == done.num_segments == 2
    for row in rows(tmp_path / "out", "segments.parquet"):
        frames = np.stack(list(pictures_in(tmp_path / "frames" / row["segment_id"]).values()))
        np.testing.assert_array_equal(frames, scaled_frames(clips / row["source"], row))
    done = unpacked(tmp_path / "out", tmp_path / "decoded", encoder=codecs["latents"])
    assert (done.num_exact, done.num_gaps) == (0, 2)
    with pytest.raises(EncodeError, match="is not the encoder of this dataset"):
        unpacked(tmp_path / "out", tmp_path / "other", encoder=codecs["codes"])
