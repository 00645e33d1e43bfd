"""Which pictures come: by number, by time, from files and from tars."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from decoding import INDEX, ffprobe_times, in_corpus, pictures, run, small
from numbered_clips import FRAMES, ClipOf, number_of

from spacepatch.decode import decode_pictures, probe_video


@pytest.mark.parametrize("name", ["h264_open_gop.mp4", "vp9_altref.webm", "mpeg4.avi"])
def test_only_wanted_frames_come_in_order_of_presentation(clip_of: ClipOf, name: str) -> None:
    info = probe_video(str(clip_of(name)))
    wanted = [3, 4, 59, 60, 61, 200, 333]
    assert [number_of(picture) for picture in pictures(clip_of(name), info, wanted)] == wanted


def test_nothing_wanted_is_nothing_decoded(clip_of: ClipOf, tmp_path: Path) -> None:
    info = probe_video(str(clip_of("h264_open_gop.mp4")))
    assert pictures(tmp_path / "gone.mp4", info, []) == []


def test_decoding_ends_after_the_last_wanted_frame(clip_of: ClipOf) -> None:
    path = str(clip_of("h264_open_gop.mp4"))
    info = probe_video(path)
    beats: list[int] = []
    decoded = decode_pictures(
        path,
        info=info,
        indices=np.arange(10),
        pts=info.frame_pts[:10],
        on_picture=lambda: beats.append(1),
    )
    assert [number_of(picture) for picture in decoded] == list(range(10))
    assert len(beats) == 10


@pytest.mark.parametrize(
    "name",
    [
        "mediabunny__annex-b-avc.mkv",
        "moviepy__big_buck_bunny_0_30.webm",
        "mediabunny__missing-keyframe-labels.ts",
        "mediabunny__transparency.webm",
    ],
)
def test_frames_after_a_seek_are_bit_equal_to_those_without(name: str) -> None:
    uri = in_corpus(name)
    info = probe_video(uri)
    late = range(len(info.frame_pts) - 40, len(info.frame_pts), 8)
    assert late[0] >= 500
    jumped = {picture.index: small(picture) for picture in pictures(uri, info, late)}
    assert list(jumped) == list(late)
    # One picture at a time: those of a whole video in HD are gigabytes.
    everything = np.arange(len(info.frame_pts))
    for picture in decode_pictures(uri, info=info, indices=everything, pts=info.frame_pts):
        if picture.index in jumped:
            np.testing.assert_array_equal(small(picture), jumped.pop(picture.index))
    assert not jumped


# --- edit lists, order, times ----------------------------------------------------------------


def test_frames_outside_the_edit_list_are_no_frames(clip_of: ClipOf, tmp_path: Path) -> None:
    # Cut without re-encoding: packets before the cut stay in the file, for the decoder alone.
    path = tmp_path / "cut.mp4"
    whole = clip_of("h264_open_gop.mp4")
    cut = ["-ss", "3.4", "-i", whole, "-t", "0.4", "-c", "copy", path]
    run("ffmpeg", "-v", "error", *cut)
    info = probe_video(str(path))
    with av.open(str(path)) as container:
        assert len(info.frame_pts) < container.streams.video[0].frames
        assert info.frame_pts.tolist() == [frame.pts for frame in container.decode(video=0)]
    numbers = [number_of(picture) for picture in pictures(path, info)]
    # ffmpeg cuts the end in decoding order: a picture before the last one is gone.
    seconds = (info.frame_pts - info.frame_pts[0]) * float(info.time_base)
    assert numbers == (102 + np.rint(seconds * 30).astype(int)).tolist()


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("h264_open_gop.ts", "cut.ts"),
        ("h264_open_gop.mkv", "cut.mkv"),
        ("hevc_open_gop.mp4", "cut.ts"),
    ],
)
def test_pictures_that_refer_to_what_was_cut_off_before_them_are_no_frames(
    clip_of: ClipOf, tmp_path: Path, name: str, cut: str
) -> None:
    # After the keyframe that the cut begins with come pictures to show before it.
    path = tmp_path / cut
    run("ffmpeg", "-v", "error", "-ss", "5.1", "-i", clip_of(name), "-c", "copy", path)
    info = probe_video(str(path))
    assert info.frame_pts.tolist() == ffprobe_times(str(path), 0)
    numbers = [number_of(picture) for picture in pictures(path, info)]
    assert numbers == list(range(FRAMES - len(info.frame_pts), FRAMES))


@pytest.mark.parametrize(
    ("name", "hidden"), [("derived__editlist_skip_preroll.mp4", 5), ("mediabunny__edts.mp4", 0)]
)
def test_hidden_packets_are_counted_and_not_shown(name: str, hidden: int) -> None:
    info = probe_video(in_corpus(name))
    assert info.num_packets - len(info.frame_pts) == hidden


def test_pictures_come_in_order_of_presentation_not_of_decoding() -> None:
    uri = in_corpus("decord__unordered.mov")
    with av.open(uri) as container:
        packets = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert packets != sorted(packets)
    info = probe_video(uri)
    assert [picture.pts for picture in pictures(uri, info)] == sorted(packets)


def test_a_stream_without_times_counts_frames_and_says_so(clip_of: ClipOf) -> None:
    info = probe_video(str(clip_of("h264_open_gop.h264")))
    assert info.pts_repaired == "missing"
    assert len(set(np.diff(info.frame_pts).tolist())) == 1


@pytest.mark.parametrize("kind", ["h264", "hevc", "m2v", "mjpeg", "mp4", "ts", "gif", "tiff"])
def test_a_single_frame_is_read_from_every_kind_of_file(
    tmp_path: Path, ffmpeg: str, kind: str
) -> None:
    path = tmp_path / f"a.{kind}"
    source = ["-f", "lavfi", "-i", "testsrc2=s=64x48:d=1", "-frames:v", "1"]
    run(ffmpeg, "-v", "error", *source, *(["-c:v", "mjpeg"] if kind == "mjpeg" else []), path)
    info = probe_video(str(path))
    (picture,) = pictures(path, info)
    assert (picture.index, small(picture).shape) == (0, (48, 64, 3))


def test_start_times_far_from_zero_are_kept() -> None:
    info = probe_video(in_corpus("derived__start_3600s.mkv"))
    assert info.frame_pts[0] * info.time_base == 3600
    assert (info.stop_pts - info.frame_pts[0]) * info.time_base == 2


def test_damaged_frames_are_missing_or_flagged_and_the_others_come() -> None:
    uri = in_corpus("decord__corrupted.mp4")
    info = probe_video(uri)
    found = pictures(uri, info)
    assert len(info.frame_pts) == 50
    assert len(found) == int(INDEX["decord__corrupted.mp4"]["nb_frames_decoded"])
    assert [picture.pts for picture in found] == [
        int(info.frame_pts[picture.index]) for picture in found
    ]


def test_a_video_that_is_cut_off_gives_the_frames_that_it_has(ffmpeg: str) -> None:
    name = "derived__truncated_faststart_half.mp4"
    info = probe_video(in_corpus(name))
    found = pictures(in_corpus(name), info)
    assert (len(info.frame_pts), len(found)) == (112, 111)
    assert [picture.pts for picture in found] == ffprobe_times(in_corpus(name), 0)


@pytest.mark.parametrize(
    ("name", "still"),
    [
        ("derived__png_renamed.mp4", True),
        ("qt__one_red_frame.mp4", False),
        ("derived__single_frame_real.mp4", False),
        ("lilliput__no-loop.gif", False),
    ],
)
def test_a_still_is_a_picture_file_and_not_a_short_video(name: str, still: bool) -> None:
    assert probe_video(in_corpus(name)).still is still


# --- inside a tar ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["landscape_640x360.mp4", "odd_size_321x179_vp9.webm", "still_picture_400x300.png"],
)
def test_a_video_inside_a_tar_decodes_like_the_file_itself(
    tmp_path: Path, sample_clips: Path, name: str
) -> None:
    content = (sample_clips / name).read_bytes()
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for member, data in [("0.txt", b"x" * 700), (name, content), ("1.bin", content[::-1])]:
            header = tarfile.TarInfo(member)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    with tarfile.open(path) as archive:
        place = {"offset": archive.getmember(name).offset_data, "num_bytes": len(content)}
    plain, member = probe_video(str(sample_clips / name)), probe_video(str(path), **place)
    assert member.frame_pts.tolist() == plain.frame_pts.tolist()
    assert member.keyframes.tolist() == plain.keyframes.tolist()
    lists = {"frame_pts": None, "keyframes": None}
    assert replace(member, **lists) == replace(plain, **lists)
    wanted = np.unique(np.linspace(0, len(plain.frame_pts) - 1, 4).astype(int))
    inside = decode_pictures(
        str(path), info=member, indices=wanted, pts=plain.frame_pts[wanted], **place
    )
    for one, other in zip(inside, pictures(sample_clips / name, plain, wanted), strict=True):
        np.testing.assert_array_equal(small(one), small(other))
