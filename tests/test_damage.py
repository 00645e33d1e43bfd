"""Reads that fail, packets that are broken, times that repeat."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
from decoding import pictures, run
from numbered_clips import FRAMES, NAMES, ClipOf, number_of

from spacepatch.decode import probe_video

# --- reads that fail, packets that are broken, times that repeat -----------------------------

FAILING_READ = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
ssize_t read(int file, void *to, size_t size) {
    static ssize_t (*real)(int, void *, size_t);
    if (!real) real = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    struct stat info;
    off_t left = atoll(getenv("EIO_FROM")) - lseek(file, 0, SEEK_CUR);
    if (!fstat(file, &info) && info.st_ino == strtoull(getenv("EIO_INODE"), 0, 10)) {
        if (left <= 0) { errno = EIO; return -1; }
        if ((off_t)size > left) size = left;
    }
    return real(file, to, size);
}
"""


@pytest.fixture(scope="module")
def failing_read(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library to preload, under which a disk fails from the middle of one file on."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("failing_read")
    (folder / "a.c").write_text(FAILING_READ)
    run(compiler, "-shared", "-fPIC", "-o", folder / "a.so", folder / "a.c", "-ldl")
    return folder / "a.so"


@pytest.mark.parametrize("name", ["live.mkv", "h264_open_gop.ts", "flv1.flv", "mpeg4.avi"])
@pytest.mark.parametrize("what", ["probe", "decode"])
def test_a_failed_read_is_not_the_end_of_the_video(
    clip_of: ClipOf, failing_read: Path, name: str, what: str
) -> None:
    program = """
import os, sys
import numpy as np
from spacepatch.decode import decode_pictures, probe_video
from spacepatch.errors import SourceError
uri, size = sys.argv[1], os.path.getsize(sys.argv[1])
os.environ.update(EIO_INODE=str(os.stat(uri).st_ino), EIO_FROM=str(size * 6 // 10))
if sys.argv[2] == "decode":
    os.environ["EIO_FROM"] = str(size * 2)
try:
    info = probe_video(uri)
    os.environ["EIO_FROM"] = str(size * 6 // 10)
    for _ in decode_pictures(uri, info=info, indices=np.arange(640), pts=info.frame_pts):
        pass
except SourceError as error:
    print(error.reason, error, sep=":")
except OSError as error:  # which a job turns into the same loss
    print("io", f"cannot be read: {error.strerror}", sep=":")
"""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(failing_read),
        "EIO_INODE": "0",
        "EIO_FROM": "0",
    }
    command = [sys.executable, "-c", program, str(clip_of(name)), what]
    program_done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert program_done.stdout == "io:cannot be read: Input/output error\n", program_done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_frames_by_number_are_those_that_they_are_by_time(clip_of: ClipOf, name: str) -> None:
    info = probe_video(str(clip_of(name)))
    numbers = [number_of(picture) for picture in pictures(clip_of(name), info)]
    by_number = pictures(clip_of(name), replace(info, pts_repaired="missing"))
    assert [number_of(picture) for picture in by_number] == numbers
    assert len(numbers) == len(info.frame_pts)


def break_packet(source: Path, target: Path, number: int) -> None:
    """Copy a file with the bytes of one packet overwritten."""
    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        data = bytes(packet)
    content = source.read_bytes()
    assert packet.pos is not None
    place = content.index(data, packet.pos)
    target.write_bytes(content[:place] + b"\xff" * len(data) + content[place + len(data) :])


def test_a_broken_packet_does_not_shift_the_numbers_of_the_next(
    clip_of: ClipOf, tmp_path: Path
) -> None:
    break_packet(clip_of("vp8_altref.webm"), tmp_path / "a.webm", 20)
    info = replace(probe_video(str(tmp_path / "a.webm")), pts_repaired="discontinuous")
    indices = [picture.index for picture in pictures(tmp_path / "a.webm", info)]
    assert indices == [index for index in range(FRAMES) if index != 20]


def test_where_pictures_are_reordered_a_broken_packet_ends_the_numbers(
    clip_of: ClipOf, tmp_path: Path
) -> None:
    break_packet(clip_of("h264_open_gop.mkv"), tmp_path / "a.mkv", 20)
    info = replace(probe_video(str(tmp_path / "a.mkv")), pts_repaired="discontinuous")
    found = pictures(tmp_path / "a.mkv", info)
    assert 10 < len(found) <= 20
    assert [number_of(picture) for picture in found] == [picture.index for picture in found]


def copy_with_times(source: Path, target: Path, times: list[int]) -> None:
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = (packet for packet in old.demux(video=0) if packet.size)
        for packet, time in zip(packets, times, strict=False):
            packet.stream = stream
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = time
            new.mux(packet)


def test_a_repeated_time_moves_its_own_frame_and_no_other(clip_of: ClipOf, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    times = [int(40 * i + 3 * i**1.5) for i in range(60)]
    shown = [*times]
    times[31], shown[31] = times[30], times[30] + 1
    copy_with_times(clip_of("vp8_altref.webm"), path, times)
    info = probe_video(str(path))
    assert (info.pts_repaired, info.frame_pts.tolist()) == ("repeated", shown)
    found = pictures(path, info)
    assert [(picture.index, number_of(picture)) for picture in found] == [(i, i) for i in range(60)]


def test_repeated_times_without_a_free_tick_are_counted(clip_of: ClipOf, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    copy_with_times(clip_of("vp8_altref.webm"), path, [0, 40, 40, 41, *range(80, 900, 40)])
    info = probe_video(str(path))
    assert info.pts_repaired == "crowded"
    found = pictures(path, info)
    assert [number_of(picture) for picture in found] == list(range(len(info.frame_pts)))
