"""Headers, packets and pictures of a source."""

from spacepatch.decode.probe import display_size, probe_video
from spacepatch.decode.pyav import decode_pictures

DECODERS = {"pyav": decode_pictures}
"""The word on the command line to a function that yields pictures."""

__all__ = ["DECODERS", "decode_pictures", "display_size", "probe_video"]
