"""Pictures through zstd, as they are: for noise, and for sizes that no video codec takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spacepatch.errors import ShardError

LEVEL = 3


def encode(pictures: np.ndarray) -> bytes:
    """Compress ``(T, C, H, W)`` uint8."""
    import pyarrow as pa

    content = np.ascontiguousarray(pictures)
    compressed: bytes = pa.Codec("zstd", compression_level=LEVEL).compress(content, asbytes=True)
    return compressed


def decode(content: bytes | memoryview, shape: tuple[int, int, int, int]) -> Iterator[np.ndarray]:
    """Each of the T pictures, ``(C, H, W)`` uint8, in turn; a `ShardError` where the content is not
    that of such."""
    import pyarrow as pa

    num_bytes = int(np.prod(shape, dtype=np.int64))
    try:
        buffer = pa.Codec("zstd").decompress(content, num_bytes)
    except OSError as error:
        raise ShardError(f"its compressed tokens are damaged ({error})") from None
    if len(buffer) != num_bytes:
        raise ShardError("its compressed tokens are damaged (other pictures)")
    yield from np.frombuffer(buffer, np.uint8).reshape(shape)
