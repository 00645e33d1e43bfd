"""Frames that are cropped or padded: the stored pixels are those of the scaled whole picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import make_dataset, rows
from stored_segments import Stored, pictures_of, scaled_frames, scaled_size, segments_of

from spacepatch.inspection import verify

SOURCES = {
    "landscape_640x360.mp4": (360, 640),
    "portrait_270x480.mp4": (480, 270),
    "square_320x320.mp4": (320, 320),
    "ultrawide_960x270.mp4": (270, 960),
}
"""Upright, of square pixels: (h, w)."""


def stored_frames(folder: Path, out: Path, **settings: Any) -> list[tuple[Stored, np.ndarray]]:
    """Each segment with the scaled whole pictures that its frames were made of."""
    values = {"fps": "2", "patch": "2x16x16", "resampler": "bicubic", **settings}
    make_dataset([folder / name for name in SOURCES], out, **values)
    assert verify(out) == []
    stored = list(segments_of(out).values())
    assert {one.row["source"] for one in stored} == set(SOURCES)
    return [
        (one, scaled_frames(folder / one.row["source"], one.row, values["resampler"]))
        for one in stored
    ]


def assert_frames_are(stored: Stored, expected: np.ndarray) -> None:
    """The last frame is repeated where they fill no whole tubelet."""
    padded = stored.row["padded_frames"]
    expected = np.concatenate([expected, *[expected[-1:]] * padded])
    np.testing.assert_array_equal(pictures_of(stored), expected)


@pytest.mark.parametrize("resampler", ["bicubic", "torch-bilinear"])
def test_fit_crop_keeps_the_middle_of_a_picture_that_covers_the_frame(
    sample_clips: Path, tmp_path: Path, resampler: str
) -> None:
    settings = {"fit": "crop", "resolution": 96, "buckets": "1:1,2:1", "resampler": resampler}
    shapes = set()
    for stored, whole in stored_frames(sample_clips, tmp_path / "out", **settings):
        row = stored.row
        (scaled_h, scaled_w), (height, width) = whole.shape[1:3], row["size"]
        crop = [(scaled_h - height) // 2, (scaled_w - width) // 2, height, width]
        # One side meets the frame, the other one hangs over.
        assert (scaled_h == height) or (scaled_w == width)
        assert row["crop"] == (None if crop == [0, 0, scaled_h, scaled_w] else crop)
        assert row["pad"] == [0, 0]
        top, left = crop[:2]
        assert_frames_are(stored, whole[:, top : top + height, left : left + width])
        shapes.add((crop[0] > 0, crop[1] > 0))
    assert shapes == {(True, False), (False, True), (False, False)}


def test_fit_pad_adds_zeros_at_the_bottom_and_right(sample_clips: Path, tmp_path: Path) -> None:
    settings = {"fit": "pad", "resolution": 96, "buckets": "1:1"}
    shapes = set()
    for stored, whole in stored_frames(sample_clips, tmp_path / "out", **settings):
        row = stored.row
        (scaled_h, scaled_w), (height, width) = whole.shape[1:3], row["size"]
        rows, columns = row["pad"]
        assert row["size"] == [96, 96]
        assert row["crop"] is None
        assert (rows, columns) == (height - scaled_h, width - scaled_w)
        padded = np.pad(whole, ((0, 0), (0, rows), (0, columns), (0, 0)))
        assert_frames_are(stored, padded)
        shapes.add((rows > 0, columns > 0))
    assert shapes == {(True, False), (False, True), (False, False)}


def test_short_side_and_crop_keep_the_centre_as_the_peers_do(
    sample_clips: Path, tmp_path: Path
) -> None:
    settings = {"short_side": 76, "crop": "64x48"}
    for stored, whole in stored_frames(sample_clips, tmp_path / "out", **settings):
        row = stored.row
        height, width = SOURCES[row["source"]]
        # get_resize_output_image_size, then center_crop.
        short, long = 76, int(76 * max(height, width) / min(height, width))
        assert whole.shape[1:3] == ((short, long) if height <= width else (long, short))
        top, left = (whole.shape[1] - 64) // 2, (whole.shape[2] - 48) // 2
        assert row["crop"] == [top, left, 64, 48]
        assert_frames_are(stored, whole[:, top : top + 64, left : left + 48])


def test_a_random_crop_is_that_part_of_the_scaled_picture(
    sample_clips: Path, tmp_path: Path
) -> None:
    settings = {"random_crop": "uniform:0.2..0.8", "max_tokens_per_frame": 24, "views": 3}
    places = set()
    for stored, whole in stored_frames(sample_clips, tmp_path / "out", **settings):
        top, left, height, width = map(int, stored.row["crop"])
        assert stored.row["size"] == [height, width]
        # The size is that of the window; the whole is larger by 1 / sqrt(share).
        share = height * width / (whole.shape[1] * whole.shape[2])
        assert 0.19 < share < 0.82
        assert_frames_are(stored, whole[:, top : top + height, left : left + width])
        places.add((top, left))
    assert len(places) == 12


def test_crops_are_whole_pixels_that_slice_a_picture(sample_clips: Path, tmp_path: Path) -> None:
    source = sample_clips / "square_320x320.mp4"
    out = make_dataset([source], tmp_path / "out", fps="1", random_crop="0.5", native=True)
    (row,) = rows(out, "segments.parquet")
    assert [type(value) for value in row["crop"]] == [int] * 4


def test_a_random_crop_that_is_padded_has_zeros_where_the_picture_ends(
    sample_clips: Path, tmp_path: Path
) -> None:
    settings = {"random_crop": "0.9", "fit": "pad", "resolution": 96, "buckets": "3:1", "views": 2}
    padded = 0
    for stored, whole in stored_frames(sample_clips, tmp_path / "out", **settings):
        row = stored.row
        top, left, height, width = map(int, row["crop"] or (0, 0, *whole.shape[1:3]))
        rows, columns = row["pad"]
        assert [height + rows, width + columns] == row["size"]
        shown = whole[:, top : top + height, left : left + width]
        assert_frames_are(stored, np.pad(shown, ((0, 0), (0, rows), (0, columns), (0, 0))))
        padded += rows > 0 or columns > 0
    assert padded > 2


def test_what_is_stretched_has_neither_crop_nor_padding_and_its_error_is_recorded(
    sample_clips: Path, tmp_path: Path
) -> None:
    for stored, whole in stored_frames(sample_clips, tmp_path / "out", resolution=96):
        row = stored.row
        assert (row["crop"], row["pad"]) == (None, [0, 0])
        height, width = SOURCES[row["source"]]
        ratio = row["size"][1] / row["size"][0] / (width / height)
        assert row["aspect_error"] == pytest.approx(max(ratio, 1 / ratio) - 1, abs=1e-12)
        assert list(scaled_size(row, (height, width))) == row["size"]
        assert_frames_are(stored, whole)
