"""Headers, packets and pictures of a source."""

from collections.abc import Callable, Iterator

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode import decord, pyav, torchcodec
from spacepatch.decode.images import IMAGE_CONTAINERS, decode_image
from spacepatch.decode.orientation import display_size
from spacepatch.decode.probe import probe_video
from spacepatch.decode.pyav import decode_pictures

Decoder = Callable[..., Iterator[Picture]]

DECODERS: dict[str, Decoder] = {
    "pyav": pyav.decode_pictures,
    "decord": decord.decode_pictures,
    "torchcodec": torchcodec.decode_pictures,
}
"""The word on the command line to a function that yields pictures."""


def choose_decoder(info: VideoInfo, word: str = "pyav") -> tuple[str, Decoder]:
    """What reads a source, and its name: Pillow for the images that FFmpeg cannot read."""
    return (
        ("pillow", decode_image) if info.container in IMAGE_CONTAINERS else (word, DECODERS[word])
    )


__all__ = ["DECODERS", "choose_decoder", "decode_pictures", "display_size", "probe_video"]
