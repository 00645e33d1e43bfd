"""What every decoder makes of every file of the corpus, as a table.

`python tests/conformance_table.py ../shared/corpus > tests/golden/decoding.tsv` writes the golden
file that tests/test_conformance.py compares with.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode import BACKENDS, choose_decoder, decode_pictures, probe_video
from spacepatch.errors import Declined, DecodeError, ProbeError

COLUMNS = (
    "file", "planned", "pyav", "ffmpeg", "decord", "torchcodec", "pts_equal",
    "decord_difference", "torchcodec_difference", "loss",
)  # fmt: skip
"""Name; frames by the packets; whole frames from PyAV; whether Debian's ffmpeg has the very same
times and bytes; frames from each backend, or why not; whether their times are PyAV's; the largest
difference of their full-size RGB from PyAV's; why frames or the file are lost."""
COMPARED = 40
"""Frames of a file whose pixels are compared: the first, the last, and others between."""
# What Debian's ffmpeg has otherwise, and why. All other files: the same times and bytes.
NOT_AS_FFMPEG = {
    "decord__corrupted.mp4": "after the damage, FFmpeg 5.1 and 8.1 conceal differently",
    "derived__resolution_change_midstream.ts": "times start again, and ffmpeg scales the new size",
    "lilliput__colors-animated-8bpc-alpha-exif-xmp.avif": "through Pillow, with its alpha",
    "lilliput__big_buck_bunny_720_5s.webp": "ffmpeg 5.1 reads no animated WebP",
    "lilliput__party-discord.webp": "ffmpeg 5.1 reads no animated WebP",
}


def decode(
    decoder: str, path: Path, info: VideoInfo, wanted: np.ndarray, **settings: object
) -> Iterator[Picture]:
    where = {"info": info, "indices": wanted, "pts": info.frame_pts[wanted]}
    return decode_pictures(str(path), **where, **settings, decoder=decoder)


def full_size(picture: Picture) -> np.ndarray:
    """``(h, w, 3)`` uint8, upright: the plain full-size RGB that decoders make by default."""
    rgb = np.rot90(picture.frame.to_ndarray(format="rgb24"), -picture.rotation // 90)
    return rgb[:, ::-1] if picture.mirrored else rgb


def compared(num_frames: int, limit: int = COMPARED) -> np.ndarray:
    """``(n,)`` increasing indices of frames, spread over the file."""
    return np.unique(np.linspace(0, num_frames - 1, min(num_frames, limit)).round().astype(int))


def difference(one: np.ndarray, other: np.ndarray) -> int:
    if one.shape != other.shape:
        return 255
    return int(np.abs(one.astype(np.int16) - other).max())


class _Backend:
    """A decoder that runs beside PyAV."""

    def __init__(self, decoder: str, path: Path, info: VideoInfo) -> None:
        self._pictures = decode(decoder, path, info, np.arange(len(info.frame_pts)))
        self.count, self.largest, self.pts_equal = 0, 0, True
        self.cell = "" if choose_decoder(info, decoder) == decoder else "declined: Pillow reads it"
        self._at: Picture | None = None

    def _next(self) -> None:
        try:
            self._at = next(self._pictures, None)
            self.count += self._at is not None
        except Declined as declined:
            self._at, self.cell = None, f"declined: {declined}"
        except DecodeError as error:
            self._at, self.cell = None, f"{self.count}, then {error.reason}"

    def compare(self, reference: Picture, rgb: np.ndarray | None) -> None:
        """Hold the picture of the same index against PyAV's, `rgb` where pixels matter."""
        if self.cell:
            return
        self._next()
        while self._at is not None and self._at.index < reference.index:
            self._next()  # what PyAV could not decode
        if self._at is not None and self._at.index == reference.index:
            self.pts_equal &= self._at.pts == reference.pts
            if rgb is not None:
                self.largest = max(self.largest, difference(full_size(self._at), rgb))

    def end(self) -> str:
        """Its cell in the table: a count, or what came in between."""
        while not self.cell:
            self._next()
            self.cell = self.cell or (str(self.count) if self._at is None else "")
        return self.cell


class _Ffmpeg:
    """Debian's ffmpeg program, which decodes the same stream beside PyAV."""

    def __init__(self, path: Path, info: VideoInfo) -> None:
        # Its own VP8 and VP9 leave alpha out; with libvpx it is there, as in PyAV's pictures.
        name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(info.codec) if info.alpha else None
        decoder = ["-c:v", name] if name else []
        # fmt: off
        arguments = ["-nostdin", "-v", "quiet", "-noautorotate", "-copyts", *decoder,
                     "-i", f"file:{path}", "-map", f"0:{info.stream_index}",
                     "-fps_mode", "passthrough", "-enc_time_base", "-1",
                     "-f", "framehash", "-hash", "crc32", "-"]
        # fmt: on
        program = shutil.which("ffmpeg")
        assert program is not None, "the table needs Debian's ffmpeg"
        self._process = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, text=True)
        self._frames: list[tuple[Fraction, str]] = []

    def add(self, picture: Picture, info: VideoInfo) -> None:
        """A picture of PyAV's, in its own pixel format."""
        # How a damaged picture is patched up depends on what lay in the memory before.
        whole = not picture.is_corrupt
        checksum = f"{zlib.crc32(raw_bytes(picture.frame)):08x}" if whole else "damaged"
        self._frames.append((picture.pts * info.time_base, checksum))

    def end(self) -> str:
        """`exact`, or what is not: ffmpeg's frames, and how many PyAV has just so."""
        text, _ = self._process.communicate(timeout=300)
        time_base, theirs = Fraction(1), []
        for line in text.splitlines():
            if line.startswith("#tb"):
                time_base = Fraction(line.partition(": ")[2])
            elif not line.startswith("#"):
                _, _, pts, _, _, checksum = (part.strip() for part in line.split(","))
                theirs.append((int(pts) * time_base, checksum))
        if not theirs:
            return "no frames"
        if [time for time, _ in theirs] != [time for time, _ in self._frames]:
            same = len(set(theirs) & set(self._frames))
            return f"{same} of {len(theirs)} frames, other times"
        pairs = zip(theirs, self._frames, strict=True)
        same = sum(ours[1] in (other[1], "damaged") for other, ours in pairs)
        return "exact" if same == len(theirs) else f"{same} of {len(theirs)} frames, same times"


def raw_bytes(frame: av.VideoFrame) -> bytes:
    """A picture's planes without padding, as FFmpeg's rawvideo has them."""
    parts, pixels = [], frame.format
    packed = len(frame.planes) == 1 and len(pixels.components) > 1
    step = pixels.padded_bits_per_pixel // 8 if packed else (pixels.components[0].bits + 7) // 8
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, abs(plane.line_size))
        rows = rows[: plane.height][:: -1 if plane.line_size < 0 else 1]
        parts.append(rows[:, : plane.width * step].tobytes())
    return b"".join(parts)


def describe(path: Path) -> dict[str, str]:
    """A row of the table."""
    row = dict.fromkeys(COLUMNS, "")
    row["file"] = path.name
    try:
        info = probe_video(str(path))
    except ProbeError as error:
        row["loss"] = error.reason
        return row
    num_frames = len(info.frame_pts)
    wanted, chosen = np.arange(num_frames), set(compared(num_frames).tolist())
    backends = {name: _Backend(name, path, info) for name in sorted(BACKENDS)}
    ffmpeg = _Ffmpeg(path, info)
    intact, reasons = 0, set()
    try:
        for picture in decode("pyav", path, info, wanted, interlaced="keep"):
            ffmpeg.add(picture, info)
            alive = any(not backend.cell for backend in backends.values())
            rgb = full_size(picture) if alive and picture.index in chosen else None
            for backend in backends.values():
                backend.compare(picture, rgb)
            intact += not picture.is_corrupt
    except DecodeError as error:
        reasons.add(error.reason)
    if intact < num_frames and not reasons:
        reasons.add("corrupt_frames")
    if info.cut_off:
        reasons.add("truncated")
    row |= {"planned": str(num_frames), "pyav": str(intact), "loss": ", ".join(sorted(reasons))}
    row["ffmpeg"] = ffmpeg.end()
    for name, backend in backends.items():
        row[name] = backend.end()
        row[f"{name}_difference"] = str(backend.largest) if backend.count else ""
    read = [backend for backend in backends.values() if backend.count]
    if read:
        row["pts_equal"] = "yes" if all(backend.pts_equal for backend in read) else "no"
    return row


def make_table(corpus: Path) -> list[dict[str, str]]:
    """One row a file, sorted by name."""
    files = sorted(path for path in corpus.iterdir() if path.name != "INDEX.tsv")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=context) as pool:
        # The largest first, so that no process ends long after the other.
        by_size = sorted(files, key=lambda path: -path.stat().st_size)
        return sorted(pool.map(describe, by_size), key=lambda row: row["file"])


def write_table(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


if __name__ == "__main__":
    sys.stdout.write(write_table(make_table(Path(sys.argv[1]))))
