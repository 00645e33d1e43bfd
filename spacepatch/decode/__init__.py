"""Headers, packets and pictures of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode import decord, pyav, torchcodec
from spacepatch.decode.full_size import BACKENDS, UNTAGGED_MATRIX
from spacepatch.decode.images import IMAGE_CONTAINERS, decode_image
from spacepatch.decode.opening import MAX_PIXELS
from spacepatch.decode.orientation import display_size
from spacepatch.decode.probe import probe_video
from spacepatch.decode.request import Request

DECODERS: dict[str, Callable[[Request], Iterator[Picture]]] = {
    "pyav": pyav.decode,
    "decord": decord.decode,
    "torchcodec": torchcodec.decode,
}
"""The word on the command line to a function that yields pictures."""


def choose_decoder(info: VideoInfo, word: str = "pyav") -> str:
    """Name of what reads a source: `pillow` for the images that FFmpeg cannot read, else `word`."""
    return "pillow" if info.container in IMAGE_CONTAINERS else word


def decode_pictures(
    uri: str,
    *,
    info: VideoInfo,
    indices: np.ndarray,
    pts: np.ndarray,
    offset: int | None = None,
    num_bytes: int | None = None,
    on_picture: Callable[[], None] = lambda: None,
    interlaced: str = "deinterlace",
    max_pixels: int = MAX_PIXELS,
    trust_input: bool = False,
    untagged: str = "bt601",
    decoder: str = "pyav",
    keyframes: np.ndarray | None = None,
) -> Iterator[Picture]:
    """Yield the wanted pictures in order of presentation, in one pass, and stop after the last.

    A picture that cannot be had is not yielded; whoever asked counts what is missing. Nothing is
    opened before the first one is asked for.

    Args:
        info: what `probe_video` said of this very source; its `frame_pts` are not needed.
        indices: ``(n,)`` strictly increasing presentation indices of the wanted frames.
        pts: ``(n,)`` int64, their times as probed.
        offset, num_bytes: where the video lies in `uri`, when that is a tar.
        on_picture: called for every picture that the decoder makes, wanted or not: a sign of life.
        interlaced: what becomes of pictures of two fields, a word of `INTERLACED`.
        max_pixels: of a picture; a larger one in the middle of a stream is not decoded.
        trust_input: let `decord` and `torchcodec` open what does not begin like ISO-BMFF, Matroska
            or AVI. What the others read is always held against the allow-lists.
        untagged: how YUV without a matrix is to be read; those two know `bt601` only. The others
            give pictures in their own colours.
        decoder: a word of `DECODERS`; Pillow reads the containers of `IMAGE_CONTAINERS` all the
            same.
        keyframes: ``(k, 2)`` int64 index and time of keyframes, increasing, among them for each
            wanted frame the last one that is not after it: where to jump to. None: unknown.

    Raises:
        Declined: before the first picture: `decord` or `torchcodec` must not or cannot read it.
        DecodeError: the source does not open any more, or the size of its pictures is not the
            planned one (`size_changed`), or it is interlaced where `interlaced` is `skip`
            (`skipped_by_policy`), after the pictures before that.
    """
    request = Request(
        uri=uri,
        info=info,
        indices=indices,
        pts=pts,
        offset=offset,
        num_bytes=num_bytes,
        on_picture=on_picture,
        interlaced=interlaced,
        max_pixels=max_pixels,
        trust_input=trust_input,
        untagged=untagged,
        keyframes=keyframes,
    )
    name = choose_decoder(info, decoder)
    return decode_image(request) if name == "pillow" else DECODERS[name](request)


__all__ = [
    "BACKENDS",
    "DECODERS",
    "UNTAGGED_MATRIX",
    "choose_decoder",
    "decode_pictures",
    "display_size",
    "probe_video",
]
