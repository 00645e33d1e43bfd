"""Which frames are keyframes: by ffprobe, by the decoder, by the numbers in the pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from decoding import pictures, run
from image_files import H, W, save, scene
from numbered_clips import ClipOf, number_of

from spacepatch.decode import probe_video
from spacepatch.probes import slim

TIMED = [
    *("h264_open_gop.mp4", "h264_open_gop.ts", "hevc_open_gop.mp4", "vp9_altref.webm"),
    *("edit_list.mp4", "cut_hevc.ts", "vfr.mkv", "frames.gif"),
]
COUNTED = ["jump_back.ts", "jump_forward.ts", "h264_b_frames.avi", "h264_no_b_frames.avi"]


@pytest.mark.parametrize("name", TIMED)
def test_keyframes_are_at_the_times_that_ffprobe_shows(clip_of: ClipOf, name: str) -> None:
    show = ["-select_streams", "v", "-show_entries", "packet=pts,flags", "-of", "json"]
    packets = json.loads(run("ffprobe", "-v", "error", *show, clip_of(name)))["packets"]
    # K: keyframe; D: outside the edit list.
    keys = [packet for packet in packets if "K" in packet["flags"] and "D" not in packet["flags"]]
    times = sorted(packet["pts"] for packet in keys)
    info = probe_video(str(clip_of(name)))
    assert info.keyframes.dtype == np.int64
    assert info.frame_pts[info.keyframes].tolist() == times


@pytest.mark.parametrize("name", [*TIMED, *COUNTED, "mpeg2.mpg", "mpeg4.avi"])
def test_keyframes_are_the_frames_that_the_decoder_calls_so(clip_of: ClipOf, name: str) -> None:
    info = probe_video(str(clip_of(name)))
    keys = [p.index for p in pictures(clip_of(name), info) if p.frame.key_frame]
    assert info.keyframes.tolist() == keys
    assert (len(keys) > 10) == (name not in ("vp9_altref.webm", "frames.gif"))


def test_keyframes_of_an_open_group_come_where_they_are_shown(clip_of: ClipOf) -> None:
    """Behind the pictures that refer to them, and are shown before."""
    path = clip_of("h264_open_gop.mp4")
    info = probe_video(str(path))
    found = pictures(path, info, info.keyframes)
    assert [number_of(picture) for picture in found] == list(range(0, 640, 48))


def test_frames_of_a_webp_that_hide_all_before_them_are_its_keyframes(tmp_path: Path) -> None:
    frames = [scene(k // 2 * 2 if k % 3 else k) for k in range(8)]
    path = save(tmp_path / "a.webp", frames, duration=100, kmin=1, kmax=2)
    content, places = path.read_bytes(), []
    while (place := content.find(b"ANMF", places[-1] + 1 if places else 0)) >= 0:
        places.append(place)
    # Its corner, its size less one, and the flag that it is not drawn over the one before.
    whole = bytes(6) + (W - 1).to_bytes(3, "little") + (H - 1).to_bytes(3, "little")
    expected = [
        number
        for number, place in enumerate(places)
        if content[place + 8 : place + 20] == whole and (content[place + 23] & 2 or not number)
    ]
    assert 1 < len(expected) < len(places)
    assert probe_video(str(path)).keyframes.tolist() == expected


@pytest.mark.parametrize("suffix", ["png", "avif", "gif"])
def test_a_single_picture_is_a_keyframe(tmp_path: Path, suffix: str) -> None:
    info = probe_video(str(save(tmp_path / f"a.{suffix}", [scene()])))
    assert info.keyframes.tolist() == [0]


def test_no_table_of_frames_goes_to_a_worker(clip_of: ClipOf) -> None:
    info = slim(probe_video(str(clip_of("h264_open_gop.mp4"))))
    assert (len(info.frame_pts), len(info.keyframes)) == (0, 0)
