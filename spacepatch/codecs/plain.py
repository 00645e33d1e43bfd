"""Tokens through zstd, as they are: for what is no film of red, green and blue."""

from __future__ import annotations

import numpy as np

from spacepatch.errors import ShardError

LEVEL = 3


def encode(tokens: np.ndarray) -> bytes:
    """Compress ``(n, D)`` uint8 tokens."""
    import pyarrow as pa

    content = np.ascontiguousarray(tokens)
    compressed: bytes = pa.Codec("zstd", compression_level=LEVEL).compress(content, asbytes=True)
    return compressed


def decode(content: bytes, shape: tuple[int, int]) -> np.ndarray:
    """``(n, D)`` uint8 tokens; a `ShardError` where the content is not that of so many."""
    import pyarrow as pa

    try:
        buffer = pa.Codec("zstd").decompress(content, shape[0] * shape[1])
    except OSError as error:
        raise ShardError(f"its compressed tokens are damaged ({error})") from None
    return np.frombuffer(buffer, np.uint8).reshape(shape)
