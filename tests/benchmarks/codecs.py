"""What the pixel tokens of clips take by each codec, and how fast it makes and reads them.

`python -m tests.benchmarks.codecs --source FOLDER`; segments of the folder's clips, made by
`spacepatch tokenize`, up to `--megabytes` of each, one thread, seconds of the CPU. Codecs of
arrays get the tokens as they are stored; codecs of pictures get the film that the tokens were cut
from, a picture after the other. Every way without loss is turned back and compared. What is not
installed (blosc2, imagecodecs) is passed over.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import pyarrow as pa
from PIL import Image

from spacepatch.codecs import Compressed, compress, decompress
from spacepatch.codecs.films import film_of
from spacepatch.config import load_config
from spacepatch.pipeline import tokenize
from spacepatch.shards import ShardReader
from tests.benchmarks.results import RESULTS, Figure, conclude


@dataclass(frozen=True, slots=True)
class Segment:
    tokens: np.ndarray
    """``(n, D)``, whole rows of the grid."""
    film: np.ndarray
    """``(T, H, W, 3)``."""
    geometry: dict[str, Any]


Made = tuple[Any, int]
"""What is turned back, and the bytes that it takes."""
Codec = tuple[Callable[[Segment], Made], Callable[[Any, Segment], np.ndarray]]
"""Encode; decode into what was encoded: tokens or the film."""


def segments_of(folder: Path, most_bytes: int) -> Iterator[Segment]:
    for tar in sorted(folder.glob("*.tar")):
        with ShardReader(tar) as reader:
            for number in range(len(reader)):
                pack = reader.read(number)
                for offset, _, t, h, w, tubelet, *patch in pack.segments.tolist():
                    width = pack.tokens.shape[1]
                    rows = max(1, min(t, most_bytes // (h * w * width)))
                    geometry = {
                        "grid_thw": (rows, h, w),
                        "tubelet_size": tubelet,
                        "patch_size": tuple(patch),
                        "channels": 3,
                        "halo": 0,
                        "layout": "c t p q",
                        "merge": 1,
                    }
                    tokens = pack.tokens[offset : offset + rows * h * w].copy()
                    if len(tokens) < rows * h * w:
                        continue  # rows of it were lost
                    film = film_of(np.arange(len(tokens)), **geometry).draw(tokens)
                    pictures = np.ascontiguousarray(film.transpose(0, 2, 3, 1))
                    yield Segment(tokens, pictures, geometry)


# --- codecs ------------------------------------------------------------------------------------


def of_bytes(pack: Callable[[bytes], Any], unpack: Callable[[Any, int], Any]) -> Codec:
    def encode(segment: Segment) -> Made:
        made = pack(segment.tokens.tobytes())
        return made, len(made)

    def decode(made: Any, segment: Segment) -> np.ndarray:
        content = unpack(made, segment.tokens.nbytes)
        return np.frombuffer(content, np.uint8).reshape(segment.tokens.shape)

    return encode, decode


def of_pictures(
    pack: Callable[[np.ndarray], bytes], unpack: Callable[[bytes], np.ndarray]
) -> Codec:
    def encode(segment: Segment) -> Made:
        made = [pack(picture) for picture in segment.film]
        return made, sum(map(len, made)) + 4 * len(made)

    def decode(made: Any, segment: Segment) -> np.ndarray:
        return np.stack([unpack(content) for content in made])

    return encode, decode


def with_pillow(name: str, **options: Any) -> Codec:
    def pack(picture: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, name, **options)
        return file.getvalue()

    return of_pictures(pack, lambda content: np.asarray(Image.open(io.BytesIO(content))))


def with_ffmpeg(name: str, pixel_format: str, **options: str) -> Codec:
    """Of a codec that takes blue, green, red and nothing."""

    def encode(segment: Segment) -> Made:
        context: Any = av.CodecContext.create(name, "w")
        _, context.height, context.width, _ = segment.film.shape
        context.pix_fmt, context.thread_count, context.options = pixel_format, 1, options
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
        packets = []
        for number, picture in enumerate(segment.film):
            filled = np.concatenate([picture[..., ::-1], np.zeros_like(picture[..., :1])], axis=-1)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(filled), format="bgra")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = number, context.time_base
            packets += context.encode(frame)
        packets += context.encode(None)
        found = [bytes(packet) for packet in packets]
        extra = bytes(context.extradata or b"")
        return (extra, found), sum(map(len, found)) + 4 * len(found) + len(extra)

    def decode(made: Any, segment: Segment) -> np.ndarray:
        context: Any = av.CodecContext.create(name, "r")
        _, context.height, context.width, _ = segment.film.shape
        context.pix_fmt, context.thread_count, context.extradata = pixel_format, 1, made[0]
        packets = [*map(av.Packet, made[1]), None]
        frames = [frame for packet in packets for frame in context.decode(packet)]
        return np.stack([_rgb(frame) for frame in frames])

    return encode, decode


def _rgb(frame: Any) -> np.ndarray:
    (plane,) = frame.planes
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : 4 * frame.width].reshape(frame.height, -1, 4)[..., 2::-1]


def ours(floor: float | None) -> Codec:
    def encode(segment: Segment) -> Made:
        cells = np.arange(len(segment.tokens), dtype=np.uint32)
        made = compress(segment.tokens, cells, **segment.geometry, floor=floor)
        return made, len(made.content)

    def decode(made: Compressed, segment: Segment) -> np.ndarray:
        cells = np.arange(len(segment.tokens), dtype=np.uint32)
        return decompress(made.content, made.codec, cells, **segment.geometry)

    return encode, decode


def contenders() -> Iterator[tuple[str, Codec, bool]]:
    """(name, codec, whether it is without loss)."""
    for level in (1, 3, 9):
        zstd = pa.Codec("zstd", compression_level=level)
        yield (
            f"tubelets, zstd {level}",
            of_bytes(partial(zstd.compress, asbytes=True), zstd.decompress),
            True,
        )
    if (blosc := _found("blosc2")) is not None:
        blosc.set_nthreads(1)
        options = {"typesize": 1, "codec": blosc.Codec.ZSTD, "clevel": 5}
        pack = partial(blosc.compress2, **options, filter=blosc.Filter.BITSHUFFLE)
        yield "tubelets, blosc2 bitshuffle", of_bytes(pack, lambda x, _: blosc.decompress2(x)), True
    yield "pictures, PNG", with_pillow("PNG", compress_level=6), True
    lossless = {"lossless": True, "exact": True}
    yield "pictures, WebP fast", with_pillow("WEBP", **lossless, quality=0, method=0), True
    yield "pictures, WebP", with_pillow("WEBP", **lossless, quality=75, method=4), True
    if (images := _found("imagecodecs")) is not None:
        unpack = partial(images.jpegxl_decode, numthreads=1)
        for effort in (1, 3):
            pack = partial(images.jpegxl_encode, effort=effort, lossless=True, numthreads=1)
            yield f"pictures, JPEG XL effort {effort}", of_pictures(pack, unpack), True
    ffv1 = {"level": "3", "slices": "4", "slicecrc": "0", "context": "0"}
    yield "pictures, FFV1 rice", with_ffmpeg("ffv1", "bgr0", **ffv1, coder="0", g="1"), True
    yield "pictures, FFV1 range", with_ffmpeg("ffv1", "bgr0", **ffv1, coder="1", g="1"), True
    yield "film, H.264 of RGB: compressed", ours(None), True
    for floor in (40, 42, 45, 50):
        yield f"film, H.264 of YCoCg: compressed:{floor}", ours(floor), False


def _found(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


# --- the run -----------------------------------------------------------------------------------


def measure(segments: list[Segment]) -> list[Figure]:
    figures = []
    for name, (encode, decode), is_exact in contenders():
        ratios, sizes, raw, times = [], 0, 0, [0.0, 0.0]
        for segment in segments:
            began = time.process_time()
            made, size = encode(segment)
            middle = time.process_time()
            found = decode(made, segment)
            times[0] += middle - began
            times[1] += time.process_time() - middle
            wanted = segment.tokens if found.ndim == 2 else segment.film
            if is_exact and not np.array_equal(found, wanted):
                raise RuntimeError(f"{name}: is not without loss")
            raw, sizes = raw + segment.tokens.nbytes, sizes + size
            ratios.append(segment.tokens.nbytes / size)
        figures += [
            Figure(name, "times smaller, all together", [raw / sizes]),
            Figure(name, "times smaller, each segment", [min(ratios), median(ratios), max(ratios)]),
            Figure(name, "MB/s made", [raw / 1e6 / times[0]]),
            Figure(name, "MB/s read", [raw / 1e6 / times[1]]),
        ]
        print(f"  {name}: {raw / sizes:.2f}", file=sys.stderr, flush=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="a folder of clips")
    parser.add_argument("--megabytes", type=float, default=2.0, help="of each segment at most")
    parser.add_argument("--results", type=Path, default=RESULTS / "codecs.json")
    options = parser.parse_args()
    source = options.source or Path(__file__).parents[2] / "samples" / "clips"
    with tempfile.TemporaryDirectory(prefix="codecs-") as name:
        tokenize([str(source)], out=Path(name), config=load_config({}))
        segments = list(segments_of(Path(name), round(options.megabytes * 1e6)))
    megabytes = sum(segment.tokens.nbytes for segment in segments) / 1e6
    settings = {"source": source.name, "segments": len(segments), "megabytes": megabytes}
    return conclude(measure(segments), path=options.results, settings=settings)


if __name__ == "__main__":
    sys.exit(main())
