"""The tokens of a pack of store compressed: one member, each segment compressed by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.codecs import Compressed, compress, decompress
from spacepatch.errors import ShardError
from spacepatch.stages import timed
from spacepatch.tubelets import merge_of, token_width

if TYPE_CHECKING:
    from spacepatch.shards.writing import Layout, SegmentContent

MOST_TOKEN_VALUES = 2**24
"""Values in a token that is believed in."""


@contextmanager
def compressing(
    packs: Sequence[Sequence[SegmentContent]], layout: Layout, threads: int
) -> Iterator[Iterator[list[Compressed]]]:
    """The segments of each pack in turn, compressed by some threads ahead of who takes them."""
    if layout.store != "compressed":
        yield iter([[] for _ in packs])
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="spacepatch-codec") as pool:
        futures: list[list[Future[Compressed]]] = [
            [pool.submit(_compress, content, layout) for content in pack] for pack in packs
        ]
        try:
            yield timed("compress", ([one.result() for one in pack] for pack in futures))
        finally:
            pool.shutdown(cancel_futures=True)


def _compress(content: SegmentContent, layout: Layout) -> Compressed:
    row = content.row
    return compress(
        content.tokens,
        content.kept,
        grid_thw=tuple(row["grid_thw"]),
        tubelet_size=row["tubelet_size"],
        patch_size=tuple(row["patch_size"]),
        channels=layout.channels,
        halo=layout.halo,
        layout=row["layout"],
        merge=merge_of(layout.order),
        floor=layout.floor,
    )


def describe_codecs(
    contents: Sequence[SegmentContent], made: Sequence[Compressed], layout: Layout
) -> dict[str, Any]:
    """What pack.json says besides, so that the tokens can be read of the pack alone."""
    return {
        "codec": [[one.codec, len(one.content)] for one in made],
        "token_layout": contents[0].row["layout"],
        "channels": layout.channels,
        "halo": layout.halo,
    }


@dataclass(frozen=True, slots=True)
class CodecNotes:
    """What pack.json says of the codecs of a pack."""

    codecs: list[tuple[str, int]]
    """Of each segment: the codec's name, and its bytes."""
    layout: str
    channels: int
    halo: int
    merge: int

    @classmethod
    def of(cls, document: dict[str, Any], num_segments: int, where: str) -> CodecNotes:
        """Raises a ShardError where they are missing or absurd."""
        try:
            codecs = [(str(name), int(size)) for name, size in document["codec"]]
            notes = cls(
                codecs,
                str(document["token_layout"]),
                int(document["channels"]),
                int(document["halo"]),
                merge_of(document["order"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{where}: pack.json does not describe tokens.bin ({error})") from None
        if (
            len(codecs) != num_segments
            or min(size for _, size in codecs) < 0
            or notes.channels not in (3, 4)
            or notes.halo < 0
        ):
            raise ShardError(f"{where}: pack.json does not describe tokens.bin")
        return notes


def read_compressed(
    content: memoryview,
    document: dict[str, Any],
    segments: np.ndarray,
    kept: np.ndarray,
    *,
    width: int,
    where: str,
) -> np.ndarray:
    """``(N, D)`` uint8 of the bytes of tokens.bin, which are hostile until they are read.

    Args:
        segments: ``(S, 8)`` int32, checked.
        kept: ``(N,)`` raster index of each token in its segment's grid, checked.
        width: D.

    Raises:
        ShardError: they are not the tokens of these segments.
    """
    notes = CodecNotes.of(document, len(segments), where)
    if sum(size for _, size in notes.codecs) != len(content):
        raise ShardError(f"{where}: tokens.bin has {len(content)} bytes, pack.json says otherwise")
    for tubelet, *patch in set(map(tuple, segments[:, 5:].tolist())):
        own = token_width(tubelet, (patch[0], patch[1]), notes.channels, notes.halo)
        if own != width or width > MOST_TOKEN_VALUES:
            raise ShardError(f"{where}: tokens of {own} values, the receipt says {width}")
    tokens = np.empty((len(kept), width), np.uint8)
    start = 0
    for (codec, size), row in zip(notes.codecs, segments.tolist(), strict=True):
        offset, count, *grid = row[:5]
        span = slice(offset, offset + count)
        made = decompress(
            content[start : start + size],
            codec,
            kept[span],
            grid_thw=tuple(grid),
            tubelet_size=row[5],
            patch_size=(row[6], row[7]),
            channels=notes.channels,
            halo=notes.halo,
            layout=notes.layout,
            merge=notes.merge,
        )
        if made.shape != (count, width) or made.dtype != np.uint8:
            raise ShardError(f"{where}: tokens.bin does not hold the tokens of its segments")
        tokens[span] = made
        start += size
    return tokens
