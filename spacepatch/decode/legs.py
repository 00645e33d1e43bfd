"""What of a stream need not be decoded: groups of pictures, and pictures that no other needs."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

import numpy as np

from spacepatch.data import VideoInfo
from spacepatch.decode.request import Request

JUMP_AFTER_FRAMES = 4
"""Frames between the last wanted one and the next one's keyframe from which a jump there pays."""
SEEK_AFTER_FRAMES = 500
"""The same where the way to a keyframe is searched for, not looked up in an index."""
INDEXED_CONTAINERS = frozenset({"mov", "matroska"})
TIMED_CONTAINERS = INDEXED_CONTAINERS | {"asf", "mpegts"}
"""Those that tell the time of every packet. Elsewhere (a program stream, a raw one) FFmpeg counts
times from the start, and after a jump they can be a frame off. Of an FLV that was begun anew FFmpeg
overlooks the new headers as it jumps."""

SKIPPING_CODECS = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video"})
"""Codecs that say of a picture that no other refers to it; FFmpeg's decoders heed `skip_frame`."""
HVCC_LAYERS = 21
"""Byte of an hvcC box that counts temporal layers (ISO/IEC 14496-15, 8.3.3.1.2)."""
SPS = re.compile(rb"\x00\x00\x01\x42\x01(.)", re.DOTALL)
"""In a byte stream of HEVC, where a sequence parameter set tells its layers (H.265 7.3.2.2)."""


class Leg(NamedTuple):
    """Wanted frames that are decoded in one go."""

    wanted: slice
    """Of the request's frames."""
    seek_to: int | None
    """The time to jump to before; None: go on from where the last leg ended."""


def may_skip(info: VideoInfo) -> bool:
    """Whether pictures that no other refers to can be left out: they are found by their time, and
    each packet is one whole picture."""
    return (
        info.codec in SKIPPING_CODECS
        and not info.pts_repaired
        and info.interlaced not in ("tff", "bff")
    )


def has_layers(codec: str, extradata: bytes | None) -> bool:
    """Whether what a stream says of references may be of a temporal layer alone: of HEVC it is, and
    pictures of a higher layer may refer to the picture all the same (H.265 3.137)."""
    if codec != "hevc":
        return False
    if extradata is None or len(extradata) <= HVCC_LAYERS:
        return True
    if extradata[0] == 1:
        return extradata[HVCC_LAYERS] >> 3 & 7 != 1
    layers = [found[1][0] >> 1 & 7 for found in SPS.finditer(extradata)]
    return not layers or any(layers)


def legs_of(request: Request, *, needs_neighbours: bool) -> list[Leg]:
    """Cut the wanted frames where a jump to a keyframe pays; the first leg may begin with one.

    Args:
        needs_neighbours: of a wanted picture, the one before it is needed too.
    """
    info, indices, pts = request.info, request.indices, request.pts
    if not len(indices):
        return []
    if info.pts_repaired or info.container not in TIMED_CONTAINERS:
        return [Leg(slice(0, len(indices)), None)]
    before = np.concatenate([[-1], indices[:-1]])
    starts = np.flatnonzero(indices - before > SEEK_AFTER_FRAMES)
    targets = {int(start): int(pts[start]) - needs_neighbours for start in starts}
    if request.keyframes is not None and len(request.keyframes):
        keys, key_pts = request.keyframes.T
        place = np.searchsorted(keys, indices, side="right") - 1
        known = (place >= 0) & (keys[place] <= indices - needs_neighbours)
        after = JUMP_AFTER_FRAMES if info.container in INDEXED_CONTAINERS else SEEK_AFTER_FRAMES
        pays = known & (keys[place] - before > after)
        targets = {start: pts for start, pts in targets.items() if not known[start]}
        targets |= {int(n): int(key_pts[place[n]]) for n in np.flatnonzero(pays)}
    borders = sorted({0, *targets})
    return [
        Leg(slice(first, last), targets.get(first))
        for first, last in itertools.pairwise([*borders, len(indices)])
    ]
