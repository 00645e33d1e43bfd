"""Interlaced pictures, held against FFmpeg's own run of the same filter and Debian's ffmpeg."""

import gc
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import BlockingIOError as NothingYet
from av.filter import Graph
from interlaced_clips import CLIPS, FIELDS, MPEG2, X264, combing, make_interlaced, run

from spacepatch.data import Picture
from spacepatch.decode import decode_pictures, probe_video
from spacepatch.decode.deinterlace import treat_interlaced
from spacepatch.errors import DecodeError

Treated = list[tuple[av.VideoFrame, int, bool]]


@pytest.fixture(scope="module")
def clips(ffmpeg: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of interlaced clips."""
    return make_interlaced(ffmpeg, tmp_path_factory.mktemp("interlaced"))


@pytest.fixture(params=[*CLIPS, "mixed.ts"])
def clip(clips: Path, request: pytest.FixtureRequest) -> Path:
    return clips / str(request.param)


def decode(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        return list(container.decode(video=0))


def treat(
    frames: Iterable[av.VideoFrame],
    wanted: Callable[[int], bool] = lambda index: True,
    policy: str = "deinterlace",
) -> Treated:
    keyed = ((frame, index if wanted(index) else None) for index, frame in enumerate(frames))
    return list(treat_interlaced(keyed, policy=policy))


def pixels(frame: av.VideoFrame) -> np.ndarray:
    return np.asarray(frame.to_ndarray())


def run_filter(frames: list[av.VideoFrame]) -> list[np.ndarray]:
    """The planes that bwdif makes in one run over the whole stream, as FFmpeg's manual has it."""
    graph = Graph()
    source = graph.add_buffer(
        width=frames[0].width,
        height=frames[0].height,
        format=frames[0].format,
        time_base=frames[0].time_base,
    )
    bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
    graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
    made = []
    for frame in (*frames, None):
        graph.vpush(frame)
        try:
            while True:
                made.append(pixels(graph.vpull()))
        except (NothingYet, EOFError):
            pass
    return made


# --- what comes out --------------------------------------------------------------------------


def test_pictures_are_those_of_one_run_of_the_filter_over_the_stream(clip: Path) -> None:
    frames = decode(clip)
    made = treat(frames)
    assert [key for _, key, _ in made] == list(range(len(frames)))
    expected = run_filter(frames)
    differ = [k for k, (frame, _, _) in enumerate(made) if (pixels(frame) != expected[k]).any()]
    flagged = [frame.interlaced_frame for frame in frames]
    # The first flagged picture after unflagged ones: FFmpeg's run forgets its neighbours.
    assert differ == ([] if flagged[0] else [flagged.index(True)])


def test_pictures_are_those_of_the_ffmpeg_command(clip: Path, ffmpeg: str) -> None:
    frames = decode(clip)
    source = ["-i", clip, "-vf", "bwdif=mode=send_frame:deint=interlaced"]
    raw = run(ffmpeg, "-v", "error", *source, "-vsync", "passthrough", "-f", "rawvideo", "-")
    expected = np.frombuffer(raw, np.uint8).reshape(len(frames), -1, 320)
    first = [frame.interlaced_frame for frame in frames].index(True)
    for k, (frame, _, _) in enumerate(treat(frames)):
        if k != first:
            np.testing.assert_array_equal(pixels(frame), expected[k])
        elif k == 0:
            # FFmpeg 5 extrapolated the rows at the edges of the first picture otherwise.
            np.testing.assert_array_equal(pixels(frame)[4:236], expected[k][4:236])


@pytest.mark.parametrize("name", CLIPS)
def test_combs_go_and_the_picture_of_the_first_field_is_left(
    clips: Path, name: str, ffmpeg: str
) -> None:
    frames = decode(clips / name)
    made = treat(frames)
    before = np.mean([combing(pixels(frame), 240) for frame in frames])
    after = np.mean([combing(pixels(frame), 240) for frame, _, _ in made])
    source = ["-f", "lavfi", "-i", FIELDS, "-f", "rawvideo", "-pix_fmt", "yuv420p"]
    raw = run(ffmpeg, "-v", "error", *source, "-")
    truth = np.frombuffer(raw, np.uint8).reshape(-1, 360, 320)[::2].astype(np.float64)
    assert after < before / 3
    error = [np.mean((pixels(f) - truth[k]) ** 2) for k, f in enumerate(frames)]
    error_after = [np.mean((pixels(f) - truth[k]) ** 2) for f, k, _ in made]
    assert np.mean(error_after) < np.mean(error) / 1.5


@pytest.mark.parametrize(
    "name", ["derived__mpeg2_480i_tff_sar8x9.ts", "openshot__test1.mp4", "qt__colors.mp4"]
)
def test_corpus_files_come_out_as_from_the_filter(corpus: Path, name: str) -> None:
    frames = decode(corpus / name)[:40]
    assert all(frame.interlaced_frame for frame in frames)
    for (frame, _, _), expected in zip(treat(frames), run_filter(frames), strict=True):
        np.testing.assert_array_equal(pixels(frame), expected)


def test_a_stream_of_one_picture_comes_out_as_from_the_filter(clips: Path) -> None:
    frames = decode(clips / "mpeg2_tff.ts")[:1]
    np.testing.assert_array_equal(pixels(treat(frames)[0][0]), run_filter(frames)[0])


# --- what is not flagged ---------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["deinterlace", "keep", "skip"])
def test_progressive_pictures_are_passed_on_themselves(clips: Path, policy: str) -> None:
    frames = decode(clips / "plain.h264")
    made = treat(frames, policy=policy)
    assert [frame is made[k][0] for k, frame in enumerate(frames)] == [True] * len(frames)


def test_a_progressive_picture_waits_for_nothing(clips: Path) -> None:
    frames = decode(clips / "plain.h264")
    taken = []
    source = ((taken.append(k) or frame, k) for k, frame in enumerate(frames))
    first = next(treat_interlaced(source))
    assert (first[1], taken) == (0, [0])


def test_in_a_mixed_stream_only_flagged_pictures_change(clips: Path) -> None:
    frames = decode(clips / "mixed.ts")
    flagged = [frame.interlaced_frame for frame in frames]
    assert 30 < sum(flagged) < 45 < len(flagged)
    made = treat(frames)
    assert [frames[k] is not frame for frame, k, _ in made] == flagged
    assert not any(frame.interlaced_frame for frame, _, _ in made)


# --- the same whatever else is wanted --------------------------------------------------------


def test_a_choice_of_pictures_gives_those_of_the_full_run(clip: Path) -> None:
    frames = decode(clip)
    full = {k: pixels(frame) for frame, k, _ in treat(frames)}
    every = np.arange(len(frames))
    random = np.random.default_rng(0)
    choices = [every[1::2], every[2::3], every[6::7], every[24::25]]
    choices += [every[random.random(len(every)) < share] for share in (0.2, 0.5, 0.8)]
    for chosen in choices:
        made = treat(frames, lambda k, chosen=chosen: k in chosen)
        assert [k for _, k, _ in made] == chosen.tolist()
        for frame, k, _ in made:
            np.testing.assert_array_equal(pixels(frame), full[k])


def test_a_window_entered_one_picture_early_gives_the_pictures_of_the_full_run(clip: Path) -> None:
    frames = decode(clip)
    full = {k: pixels(frame) for frame, k, _ in treat(frames)}
    for start, stop in ((1, 4), (18, 26), (39, 43), (50, len(frames))):
        window = frames[start - 1 : stop + 1]
        made = treat(window, lambda k, n=stop - start: 1 <= k <= n)
        assert len(made) == stop - start
        for frame, k, _ in made:
            np.testing.assert_array_equal(pixels(frame), full[start - 1 + k])


# --- what a picture carries ------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["deinterlace", "keep"])
def test_times_tags_and_orientation_survive(
    clips: Path, tmp_path: Path, ffmpeg: str, policy: str
) -> None:
    tags = ["-color_primaries", "smpte170m", "-color_trc", "bt709", "-colorspace", "bt709"]
    source = ["-i", clips / "mbaff_tff.mp4", *X264, "-top", "1"]
    run(ffmpeg, "-v", "error", *source, *tags, "-color_range", "pc", tmp_path / "tagged.mp4")
    turn = ["-i", tmp_path / "tagged.mp4", "-c", "copy", "-metadata:s:v", "rotate=90"]
    run(ffmpeg, "-v", "error", *turn, tmp_path / "turned.mp4")
    frames = decode(tmp_path / "turned.mp4")
    assert (frames[0].rotation, frames[0].colorspace, frames[0].color_range) == (90, 1, 2)

    def carried(frame: av.VideoFrame) -> list[object]:
        names = (
            "pts time_base duration rotation colorspace color_range color_primaries color_trc"
            " is_corrupt pict_type key_frame width height"
        )
        sides = [(str(data.type), bytes(data)) for data in frame.side_data]
        return [*(getattr(frame, name) for name in names.split()), frame.format.name, sides]

    expected = [carried(frame) for frame in frames]
    assert all(frame.interlaced_frame for frame in frames)
    made = treat(frames, policy=policy)
    assert [carried(frame) for frame, _, _ in made] == expected
    assert not any(frame.interlaced_frame for frame, _, _ in made)
    # Nothing was changed on the decoder's own pictures, which are neighbours of others.
    assert [carried(frame) for frame in frames] == expected


def test_a_picture_next_to_a_corrupt_one_is_corrupt(clips: Path, tmp_path: Path) -> None:
    content = bytearray((clips / "mbaff_tff.mp4").read_bytes())
    place = content.index(b"mdat") + len(content) // 2
    content[place : place + 60] = bytes(60)
    (tmp_path / "damaged.mp4").write_bytes(content)
    frames = []
    with av.open(str(tmp_path / "damaged.mp4")) as container:
        container.streams.video[0].thread_count = 1
        for packet in container.demux(video=0):
            try:
                frames += packet.decode()
            except av.FFmpegError:
                continue
    corrupt = [bool(frame.is_corrupt) for frame in frames]
    assert 0 < sum(corrupt) < len(frames) - 5
    spread = [any(corrupt[max(0, k - 1) : k + 2]) for k in range(len(frames))]
    assert sum(spread) > sum(corrupt)
    assert [bad for _, _, bad in treat(frames)] == spread
    assert [bad for _, _, bad in treat(frames, policy="keep")] == corrupt


def test_a_picture_of_another_size_is_no_neighbour(
    clips: Path, tmp_path: Path, ffmpeg: str
) -> None:
    source = ["-i", clips / "mpeg2_tff.ts", "-vf", "crop=160:120:0:0", *MPEG2, "-top", "1"]
    run(ffmpeg, "-v", "error", *source, tmp_path / "small.ts")
    large, small = decode(clips / "mpeg2_tff.ts")[:10], decode(tmp_path / "small.ts")[:10]
    expected = [*run_filter(large), *run_filter(small), *run_filter(large)]
    made = treat([*large, *small, *large])
    assert [frame.width for frame, _, _ in made] == [320] * 10 + [160] * 10 + [320] * 10
    for (frame, _, _), planes in zip(made, expected, strict=True):
        np.testing.assert_array_equal(pixels(frame), planes)


@pytest.mark.parametrize("name", ["yuv422p10le", "yuv444p", "gray", "uyvy422", "rgb24", "nv12"])
def test_formats_that_the_filter_takes_are_deinterlaced_and_others_kept(
    name: str, clips: Path
) -> None:
    graph = Graph()
    first = decode(clips / "mpeg2_tff.ts")[0]
    source = graph.add_buffer(width=320, height=240, format=first.format, time_base=1)
    nodes = [graph.add("format", name), graph.add("setfield", "tff"), graph.add("buffersink")]
    graph.link_nodes(source, *nodes).configure()
    frames = []
    for frame in decode(clips / "mpeg2_tff.ts")[:6]:
        graph.vpush(frame)
        frames.append(graph.vpull())
    assert (frames[0].format.name, frames[0].interlaced_frame) == (name, True)
    before = np.mean([combing(f.to_ndarray(format="gray"), 240) for f in frames])
    made = [frame for frame, _, _ in treat(frames)]
    after = np.mean([combing(f.to_ndarray(format="gray"), 240) for f in made])
    assert [frame.pts for frame in made] == [frame.pts for frame in frames]
    assert not any(frame.interlaced_frame for frame in made)
    assert {frame.format.name for frame in made} == {name}
    assert after < before / 3 if name in ("yuv422p10le", "yuv444p", "gray") else after == before


def test_pictures_too_small_for_the_filter_are_kept(tmp_path: Path, ffmpeg: str) -> None:
    path = tmp_path / "tiny.ts"
    source = ["-f", "lavfi", "-i", "testsrc2=size=32x4:rate=25:duration=0.4"]
    fields = ["-vf", "setfield=tff", "-c:v", "mpeg2video", "-flags", "+ildct+ilme"]
    run(ffmpeg, "-v", "error", *source, *fields, path)
    frames = decode(path)
    assert frames[0].interlaced_frame
    for frame, (made, _, _) in zip(frames, treat(frames), strict=True):
        np.testing.assert_array_equal(pixels(made), pixels(frame))


# --- the other policies ----------------------------------------------------------------------


def test_keep_changes_no_pixel_and_copies_none(clip: Path) -> None:
    for frame, kept in zip(frames := decode(clip), treat(frames, policy="keep"), strict=True):
        np.testing.assert_array_equal(pixels(kept[0]), pixels(frame))
        assert kept[0].planes[0].buffer_ptr == frame.planes[0].buffer_ptr
        assert not kept[0].interlaced_frame


def test_kept_pictures_are_scaled_as_one_picture_not_as_two_fields(clips: Path) -> None:
    frame = decode(clips / "mpeg2_tff.ts")[10]
    plain = av.VideoFrame.from_ndarray(frame.to_ndarray(), "yuv420p")
    kept = treat([frame], policy="keep")[0][0]
    small = [f.reformat(96, 72, "gray").to_ndarray() for f in (plain, kept, frame)]
    np.testing.assert_array_equal(small[1], small[0])
    assert (small[2] != small[0]).any()


def test_skip_refuses_at_the_first_wanted_flagged_picture(clips: Path) -> None:
    frames = decode(clips / "mixed.ts")
    keyed = ((frame, k) for k, frame in enumerate(frames))
    taken: list[int] = []
    with pytest.raises(DecodeError, match="interlaced") as error:
        for _, key, _ in treat_interlaced(keyed, policy="skip"):
            taken.append(key)
    assert error.value.reason == "skipped_by_policy"
    assert taken == list(range([frame.interlaced_frame for frame in frames].index(True)))


def test_an_unknown_policy_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="unknown policy 'blend'"):
        next(treat_interlaced([], policy="blend"))


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["deinterlace", "keep"])
def test_memory_does_not_grow_with_the_stream(clips: Path, policy: str) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def loop() -> Iterable[tuple[av.VideoFrame, int | None]]:
        for number in range(2400 // 60):
            with av.open(str(clips / "mpeg2_tff.ts")) as container:
                container.streams.video[0].thread_count = 1
                for k, frame in enumerate(container.decode(video=0)):
                    yield frame, (None if k % 5 == 4 else number * 60 + k)

    if not Path("/proc/self/statm").exists():
        pytest.skip("the resident memory is read from /proc")
    gc.collect()
    gc.disable()  # what only the collector frees would pile up in a worker too
    try:
        sizes = [resident() for _, key, _ in treat_interlaced(loop(), policy=policy) if key % 50]
    finally:
        gc.enable()
    # A picture is 115 kB: one kept in a hundred would be 2.3 MB.
    assert max(sizes[400:]) - max(sizes[300:400]) < 2_000_000


# --- through the decoder ---------------------------------------------------------------------


def pictures(path: Path, indices: Iterable[int], policy: str = "deinterlace") -> list[Picture]:
    info = probe_video(str(path))
    wanted = np.array(list(indices), np.int64)
    made = decode_pictures(
        str(path), info=info, indices=wanted, pts=info.frame_pts[wanted], interlaced=policy
    )
    return list(made)


@pytest.mark.parametrize("policy", ["deinterlace", "keep"])
def test_the_decoder_yields_pictures_without_combs(clip: Path, policy: str) -> None:
    frames = decode(clip)
    made = pictures(clip, range(len(frames)), policy)
    assert [(p.index, p.pts) for p in made] == [(k, f.pts) for k, f in enumerate(frames)]
    for picture, (frame, _, _) in zip(made, treat(frames, policy=policy), strict=True):
        np.testing.assert_array_equal(pixels(picture.frame), pixels(frame))


def test_the_decoder_reads_on_to_the_neighbour_of_the_last_wanted(clip: Path) -> None:
    frames = decode(clip)
    full = {k: pixels(frame) for frame, k, _ in treat(frames)}
    for indices in ([0], [5], [7, 8, 30], [18, 19, 20, 21], [len(frames) - 1]):
        made = pictures(clip, indices)
        assert [picture.index for picture in made] == indices
        for picture in made:
            np.testing.assert_array_equal(pixels(picture.frame), full[picture.index])


def test_the_decoder_skips_by_policy(clips: Path) -> None:
    with pytest.raises(DecodeError, match="interlaced") as error:
        pictures(clips / "mixed.ts", range(40), "skip")
    assert error.value.reason == "skipped_by_policy"
