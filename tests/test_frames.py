"""Frames: upright, of the asked size, and within 2 levels of the ffmpeg command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
from pictures import corners, make_picture, make_planes

from spacepatch.resize import RESAMPLERS, make_frame

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg command here")


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_frame_is_turned_clockwise_and_then_mirrored(resampler, rotation, mirrored):
    array = corners((32, 64))
    expected = np.rot90(array, -rotation // 90)
    expected = np.fliplr(expected) if mirrored else expected
    picture = make_picture(
        av.VideoFrame.from_ndarray(array, format="rgb24"), rotation=rotation, mirrored=mirrored
    )
    frame = make_frame(picture, size=expected.shape[:2], resampler=resampler)
    np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_resized_frame_is_turned_too(rotation):
    yuv = av.VideoFrame.from_ndarray(corners((64, 128)), format="rgb24").reformat(format="yuv444p")
    expected = np.rot90(corners((32, 64)), -rotation // 90)
    frame = make_frame(make_picture(yuv, rotation=rotation), size=expected.shape[:2])
    # One pixel inside each corner: the edges between the quarters ring.
    ends = np.ix_([1, -2], [1, -2])
    assert np.abs(frame[ends].astype(int) - expected[ends]).max() <= 2


@pytest.mark.parametrize("rotation", [0, 90])
def test_out_receives_what_would_be_returned(rotation):
    array = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    picture = make_picture(av.VideoFrame.from_ndarray(array, format="rgb24"), rotation=rotation)
    clip = np.zeros((2, 16, 32, 3), np.uint8)
    returned = make_frame(picture, size=(16, 32), out=clip[1])
    assert np.shares_memory(returned, clip)
    np.testing.assert_array_equal(clip[1], make_frame(picture, size=(16, 32)))
    assert not clip[0].any()


def test_out_of_another_shape_is_misuse():
    picture = make_picture(av.VideoFrame.from_ndarray(corners((32, 32)), format="rgb24"))
    with pytest.raises(ValueError, match=r"\(2, 16, 16, 3\)"):
        make_frame(picture, size=(16, 16), out=np.zeros((2, 16, 16, 3), np.uint8))


def test_a_frame_outlives_its_picture():
    array = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    frames = [
        make_frame(
            make_picture(make_planes("yuv444p", [n, 128, 128], size=(64, 64), range_tag=2)),
            size=(32, 32),
        )
        for n in array[..., 0].ravel()[:64]
    ]
    assert [frame[5, 5, 0] for frame in frames] == array[..., 0].ravel()[:64].tolist()


def test_a_full_size_frame_is_a_copy_of_an_rgb_picture():
    source = av.VideoFrame.from_ndarray(corners((32, 32)), format="rgb24")
    make_frame(make_picture(source), size=(32, 32))[:] = 7
    np.testing.assert_array_equal(source.to_ndarray(), corners((32, 32)))


@pytest.mark.parametrize("name", ["rgb24", "rgba", "yuv420p", "gray"])
def test_a_picture_that_is_stored_bottom_up_comes_out_upright(name):
    source = av.VideoFrame.from_ndarray(corners((32, 32)), format="rgb24").reformat(format=name)
    graph = av.filter.Graph()
    feed = graph.add_buffer(width=32, height=32, format=source.format, time_base=Fraction(1, 25))
    # FFmpeg turns a picture over by a negative line size.
    graph.link_nodes(feed, graph.add("vflip"), graph.add("buffersink")).configure()
    graph.push(source)
    turned = graph.pull()
    assert turned.planes[0].line_size < 0
    upright = make_frame(make_picture(source), size=(32, 32))
    frame = make_frame(make_picture(turned), size=(32, 32)).astype(int)
    assert np.abs(frame - upright[::-1]).max() <= 1


@pytest.mark.parametrize("name", ["rgb24", "yuv420p", "yuv444p", "gray"])
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((1, 1), (16, 16)),
        ((1, 1), (1, 1)),
        ((179, 321), (7, 14)),
        ((8, 8192), (16, 32)),
        ((2048, 24), (16, 16)),
        ((16, 16), (2048, 16)),
    ],
)
@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
def test_a_plain_picture_stays_plain_at_any_size(name, size, target, resampler):
    planes = [100] if name in ("rgb24", "gray") else [100, 128, 128]
    source = av.VideoFrame(size[1], size[0], name)
    source.color_range = 2
    for plane, value in zip(source.planes, planes, strict=True):
        np.frombuffer(memoryview(plane), np.uint8)[:] = value
    frame = make_frame(make_picture(source), size=target, resampler=resampler)
    assert frame.shape == (*target, 3)
    assert frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - 100).max() <= 1


# The share of the zone plate's contrast that may be left where the small picture can show none.
@pytest.mark.parametrize(
    ("resampler", "limit"),
    [("bicubic", 0.02), ("area", 0.06), ("torch-bicubic", 0.02), ("torch-bilinear", 0.02)],
)
@pytest.mark.parametrize("name", ["gray", "yuv420p", "rgb24"])
def test_a_zone_plate_shrunk_8_times_does_not_alias(name, resampler, limit):
    y, x = np.mgrid[-256:256, -256:256] + 0.5
    rings = np.rint(127.5 + 100 * np.cos(np.pi * (y * y + x * x) / 512)).astype(np.uint8)
    source = av.VideoFrame.from_ndarray(np.repeat(rings[..., None], 3, 2), format="rgb24")
    small = make_frame(
        make_picture(source.reformat(format=name)), size=(64, 64), resampler=resampler
    )
    # A ring r pixels from the centre has r / 512 cycles a pixel; 1/16 is the small one's limit.
    beyond = (y * y + x * x > 100**2)[::8, ::8] & (np.maximum(abs(y), abs(x)) < 240)[::8, ::8]
    assert small[beyond].std() / 100 < limit


def test_a_reused_context_makes_the_pixels_of_a_fresh_one():
    rng = np.random.default_rng(4)
    sources = [
        make_planes("yuv420p", [rng.integers(0, 256, (64, 64)), 90, 140], size=(64, 64), matrix=m)
        for m in (1, 5)
    ]
    sizes = [(16, 16), (48, 32), (64, 64)]
    first = [make_frame(make_picture(s), size=n) for n in sizes for s in sources]
    again = [make_frame(make_picture(s), size=n) for n in sizes for s in sources]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != first[1]).any()


def test_threads_make_the_pixels_of_one_thread():
    rng = np.random.default_rng(5)
    pictures = [
        make_picture(
            make_planes("yuv420p", [rng.integers(0, 256, (240, 320)), 90, 140], size=(240, 320))
        )
        for _ in range(24)
    ]
    alone = [make_frame(picture, size=(112, 144)) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: make_frame(picture, size=(112, 144)), pictures))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("resampler", ["torch-bicubic", "torch-bilinear"])
def test_torch_resamplers_are_torch_on_the_rgb_that_pyav_makes(resampler):
    import torch

    rng = np.random.default_rng(6)
    source = make_planes("yuv420p", [rng.integers(0, 256, (60, 90)), 90, 140], size=(60, 90))
    full = torch.from_numpy(np.rot90(source.to_ndarray(format="rgb24"), -1).copy())
    expected = torch.nn.functional.interpolate(
        full.permute(2, 0, 1)[None], size=(32, 48), mode=resampler[6:], antialias=True
    )[0].permute(1, 2, 0)
    frame = make_frame(make_picture(source, rotation=90), size=(32, 48), resampler=resampler)
    np.testing.assert_array_equal(frame, expected.numpy())


def test_importing_resize_loads_neither_av_nor_torch():
    code = "import sys, spacepatch.resize; sys.exit(bool({'av', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def write_clip(path, name, *, size, range_tag=0, codec="ffv1"):
    """One lossless frame of soft shapes with a little noise, and its picture as PyAV decodes it."""
    h, w = size
    y, x = np.mgrid[:h, :w]
    rng = np.random.default_rng(7)
    waves = [128 + 70 * np.sin(x / a + y / b) for a, b in ((19, 31), (-23, 17), (37, -13))]
    array = (np.stack(waves, -1) + rng.normal(0, 4, (h, w, 3))).clip(40, 215).astype(np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = w, h, name
        if range_tag:
            stream.codec_context.color_range = range_tag
        frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=name)
        output.mux([*stream.encode(frame), *stream.encode(None)])
    with av.open(str(path)) as container:
        return make_picture(next(container.decode(video=0)))


def run_ffmpeg(path, size, *, kernel, full):
    flags = f"{kernel}+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp"
    colour = f"in_color_matrix=bt601:in_range={'full' if full else 'limited'}"
    scale = f"scale={size[1]}:{size[0]}:{colour}:flags={flags},format=rgb24"
    command = ["ffmpeg", "-v", "error", "-i", path, "-vf", scale, "-f", "rawvideo", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(*size, 3).astype(int)


FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le", "gray", "bgr0"]


# Limited grey is ours alone: swscale takes it for full range.
@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "range_tag"),
    [(name, tag) for name in FORMATS for tag in (1, 2) if (name, tag) != ("gray", 1)],
)
def test_a_full_size_frame_is_within_2_of_the_ffmpeg_command(tmp_path, name, range_tag):
    path = tmp_path / "clip.mkv"
    picture = write_clip(path, name, size=(180, 242), range_tag=range_tag)
    frame = make_frame(picture, size=(180, 242))
    expected = run_ffmpeg(path, (180, 242), kernel="bicubic", full=range_tag == 2)
    assert np.abs(frame - expected).max() <= 2


@needs_ffmpeg
@pytest.mark.parametrize("kernel", ["bicubic", "area"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_resized_frame_is_within_2_of_the_ffmpeg_command(tmp_path, name, kernel):
    path = tmp_path / "clip.mkv"
    picture = write_clip(path, name, size=(180, 242), range_tag=2)
    frame = make_frame(picture, size=(80, 112), resampler=kernel)
    expected = run_ffmpeg(path, (80, 112), kernel=kernel, full=True)
    assert np.abs(frame - expected).max() <= 2
