"""Where few frames are wanted: what is left out changes none of them."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from decoding import in_corpus
from frame_numbers import make_clip
from interlaced_clips import make_interlaced
from made_videos import clips_of
from numbered_clips import X265, ClipOf

from spacepatch.data import VideoInfo
from spacepatch.decode import decode_pictures, probe_video

NAMES = [
    *("h264_b_frames.mp4", "h264_open_gop.mp4", "h264_open_gop.mkv", "h264_open_gop.ts"),
    *("hevc_open_gop.mp4", "hevc_open_gop.ts", "mpeg2.ts", "refreshed.mp4", "edit_list.mp4"),
    *("no_cues.mkv", "fragmented.mp4", "stream_copy.mkv", "vp9_altref.webm", "mpeg4.mp4"),
    *("h264_two_keyframes.mp4", "vfr.mp4", "late.mkv", "mpeg2.mpg", "h264_b_frames.avi"),
]
SKIPPED = {"h264_b_frames.mp4", "h264_open_gop.mp4", "hevc_open_gop.mp4", "mpeg2.ts", "vfr.mp4"}
"""Those of them, among others, that have pictures no other refers to."""
IN_CORPUS = [
    *("decord__corrupted.mp4", "openshot__test1.mp4", "derived__editlist_skip_preroll.mp4"),
    *("derived__mpeg2_480i_tff_sar8x9.ts", "torchcodec__h265_10bits.mp4", "qt__container.mpeg"),
    *("derived__truncated_faststart_half.mp4", "mediabunny__no-initial-keyframe.ts"),
    *("derived__resolution_change_midstream.ts", "moviepy__example2.mp4"),
]


def keyframes_of(info: VideoInfo) -> np.ndarray:
    return np.stack([info.keyframes, info.frame_pts[info.keyframes]], axis=1)


def decode(
    path: str | Path,
    info: VideoInfo,
    indices: np.ndarray,
    keyframes: np.ndarray | None,
    **rules: str,
) -> tuple[dict[int, tuple[str, bool]], int]:
    """By index a digest of each picture, and whether it is damaged; and how many were decoded."""
    found: dict[int, tuple[str, bool]] = {}
    beats: list[int] = []
    for picture in decode_pictures(
        str(path),
        info=info,
        indices=indices,
        pts=info.frame_pts[indices],
        keyframes=keyframes,
        on_picture=lambda: beats.append(1),
        **rules,  # type: ignore[arg-type]
    ):
        array = picture.frame.to_ndarray()
        found[picture.index] = hashlib.sha256(array.tobytes()).hexdigest(), picture.is_corrupt
    return found, len(beats)


def subsets(num_frames: int) -> list[np.ndarray]:
    draws = np.random.default_rng(num_frames)
    few = max(2, num_frames // 40)
    return [
        np.arange(3, num_frames, 4),
        np.arange(num_frames // 2, num_frames, 13),
        np.sort(draws.choice(num_frames, few, replace=False)),
        np.array([num_frames - 1]),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_those_of_a_decode_of_every_frame(clip_of: ClipOf, name: str) -> None:
    path = clip_of(name)
    info = probe_video(str(path))
    every = np.arange(len(info.frame_pts))
    full, _ = decode(path, info, every, None)
    assert list(full) == every.tolist()
    keyframes = None if info.pts_repaired else keyframes_of(info)
    for indices in subsets(len(every)):
        found, num_decoded = decode(path, info, indices, keyframes)
        assert found == {index: full[index] for index in indices.tolist()}
        if name in SKIPPED:
            assert num_decoded < indices[-1] + 1


@pytest.mark.parametrize("name", IN_CORPUS)
def test_pictures_of_real_files_are_those_of_a_decode_of_every_frame(name: str) -> None:
    path = in_corpus(name)
    info = probe_video(path)
    every = np.arange(len(info.frame_pts))
    full, _ = decode(path, info, every, None)
    keyframes = None if info.pts_repaired else keyframes_of(info)
    for indices in subsets(len(every)):
        found, _ = decode(path, info, indices, keyframes)
        assert found == {index: full[index] for index in indices.tolist() if index in full}


def test_a_jump_leaves_out_the_groups_of_pictures_between(clip_of: ClipOf) -> None:
    path = clip_of("h264_open_gop.mp4")  # a keyframe every 48 frames
    info = probe_video(str(path))
    indices = np.array([0, 100, 101, 290, 500])
    found, num_decoded = decode(path, info, indices, keyframes_of(info))
    assert list(found) == indices.tolist()
    # From 0, 96, 288 and 480 on, and what a decoder holds back behind each.
    assert num_decoded <= 1 + 6 + 3 + 21 + 4 * 4


def test_a_plan_knows_the_keyframe_of_each_of_its_frames(clip_of: ClipOf) -> None:
    info = probe_video(str(clip_of("h264_open_gop.mp4")))
    clips = clips_of(info, sampler_value=Fraction(3), clip_seconds=Fraction(4))
    assert len(clips) > 3
    for clip in clips:
        wanted = {
            int(info.keyframes[info.keyframes <= index].max()) for index in clip.frame_indices
        }
        assert clip.keyframes[:, 0].tolist() == sorted(wanted)
        assert (info.frame_pts[clip.keyframes[:, 0]] == clip.keyframes[:, 1]).all()


@pytest.fixture(scope="module")
def fields(ffmpeg: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_interlaced(ffmpeg, tmp_path_factory.mktemp("fields"))


@pytest.mark.parametrize("policy", ["deinterlace", "keep"])
@pytest.mark.parametrize("name", ["mixed.ts", "mbaff_tff.mp4"])
def test_fields_in_a_stream_that_begins_without_them_have_their_neighbours(
    fields: Path, name: str, policy: str
) -> None:
    path = fields / name
    info = probe_video(str(path))
    every = np.arange(len(info.frame_pts))
    full, _ = decode(path, info, every, None, interlaced=policy)
    assert list(full) == every.tolist()
    for indices in subsets(len(every)):
        found, _ = decode(path, info, indices, keyframes_of(info), interlaced=policy)
        assert found == {index: full[index] for index in indices.tolist()}


@pytest.mark.parametrize("layered", [False, True])
def test_of_temporal_layers_only_what_no_layer_refers_to_is_left_out(
    ffmpeg: str, tmp_path: Path, layered: bool
) -> None:
    """A picture of the lowest layer that its own layer does not need may be needed by another."""
    params = "bframes=4:b-adapt=0:keyint=30:log-level=error"
    options = [*X265, params + ":temporal-layers=1" * layered]
    path = make_clip(ffmpeg, tmp_path / "layers.mp4", *options, numbers=range(60))
    info = probe_video(str(path))
    every = np.arange(len(info.frame_pts))
    full, _ = decode(path, info, every, None)
    for indices in subsets(len(every)):
        found, num_decoded = decode(path, info, indices, None)
        assert found == {index: full[index] for index in indices.tolist()}
        assert (num_decoded < indices[-1] + 1) != layered


PLAIN = [
    *("h264_b_frames.mp4", "h264_open_gop.mp4", "vfr.mp4", "refreshed.mp4", "late.mkv"),
    *("corpus/moviepy__chaplin.mp4", "corpus/mediabunny__rotate-buck-bunny.mp4"),
    *("corpus/derived__really_mkv_named.mp4", "corpus/qt__h264_yuv422p10.mp4"),
]
"""H.264 that tells how it is reordered, and such that does not."""


@pytest.mark.parametrize("name", PLAIN)
def test_pictures_are_those_that_pyav_makes_of_a_file_that_ffmpeg_looked_through(
    clip_of: ClipOf, name: str
) -> None:
    folder, _, file = name.rpartition("/")
    path = in_corpus(file) if folder else clip_of(name)
    info = probe_video(str(path))
    found, _ = decode(path, info, np.arange(len(info.frame_pts)), None)
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        wanted = {
            frame.pts: hashlib.sha256(frame.to_ndarray().tobytes()).hexdigest()
            for frame in container.decode(video)
        }
    assert found
    times = info.frame_pts[list(found)].tolist()
    assert [digest for digest, _ in found.values()] == [wanted[time] for time in times]
