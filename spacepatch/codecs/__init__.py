"""Compress the pixel tokens of a segment: without loss, or down to a floor of quality."""

from spacepatch.codecs.segments import CODECS, Compressed, compress, decompress

__all__ = ["CODECS", "Compressed", "compress", "decompress"]
