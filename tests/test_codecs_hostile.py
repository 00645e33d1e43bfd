"""Compressed tokens that are not ours: refused, or other tokens, and never more than that."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from compressed_tokens import Geometry, back, draw_tokens, geometry, stored_cells

from spacepatch.codecs import CODECS, compress, decompress
from spacepatch.codecs.segments import EXACT, LOSSY, PLAIN
from spacepatch.errors import ShardError
from spacepatch.tubelets import token_width

# --- content that is not ours ------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[bytes, np.ndarray, Geometry]]:
    shape = geometry((3, 5, 6), patch=(16, 16))
    tokens, kept = draw_tokens("smooth", shape), stored_cells(shape)
    tokens += draw_tokens("noise", shape) % 4
    found = {}
    for codec, floor in ((EXACT, None), (LOSSY, 36.0)):
        one = compress(tokens, kept, **shape, floor=floor)
        assert one.codec == codec
        found[codec] = one.content, kept, shape
    noise = draw_tokens("noise", shape)
    one = compress(noise, kept, **shape)
    assert one.codec == PLAIN
    found[PLAIN] = one.content, kept, shape
    return found


def read(content: bytes, codec: str, kept: np.ndarray, shape: Geometry) -> bool:
    """Whether tokens are made of it: the right number of them then, else a ShardError."""
    try:
        tokens = decompress(content, codec, kept, **shape)
    except ShardError as error:
        assert str(error).startswith("its ")
        return False
    width = token_width(2, (16, 16), shape["channels"], shape["halo"])
    assert (tokens.dtype, tokens.shape) == (np.uint8, (len(kept), width))
    return True


@pytest.mark.parametrize("codec", CODECS)
def test_mutated_content_is_refused_or_makes_other_tokens(
    codec: str, made: dict[str, tuple[bytes, np.ndarray, Geometry]]
) -> None:
    content, kept, shape = made[codec]
    drawn = np.random.default_rng(0)
    refused = 0
    for case in range(400):
        spoiled = np.frombuffer(content, np.uint8).copy()
        # Sizes and headers are in the first bytes.
        end = len(spoiled) if case % 2 else 120
        where = drawn.integers(0, end, 1 + case % 3)
        spoiled[where] = drawn.integers(0, 256, len(where))
        refused += not read(spoiled.tobytes(), codec, kept, shape)
    # Noise that was found to be incompressible lies there as it is: most of it may be anything.
    assert refused > (20 if codec == PLAIN else 50)


@pytest.mark.parametrize("codec", CODECS)
def test_content_that_is_cut_off_or_goes_on_is_refused(
    codec: str, made: dict[str, tuple[bytes, np.ndarray, Geometry]]
) -> None:
    content, kept, shape = made[codec]
    for size in [*range(40), *range(40, len(content), 211), len(content) - 1]:
        assert not read(content[:size], codec, kept, shape)
    for more in (b"\0", b"\0" * 1000, content):
        assert not read(content + more, codec, kept, shape)


@pytest.mark.parametrize("codec", CODECS)
def test_garbage_is_refused(
    codec: str, made: dict[str, tuple[bytes, np.ndarray, Geometry]]
) -> None:
    _, kept, shape = made[codec]
    drawn = np.random.default_rng(1)
    for size in (0, 1, 4, 24, 1000, 100_000):
        assert not read(drawn.bytes(size), codec, kept, shape)
        assert not read(b"\0" * size, codec, kept, shape)
        assert not read(b"\xff" * size, codec, kept, shape)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "other",
    [
        {"grid_thw": (3, 6, 6)},
        {"grid_thw": (4, 5, 6)},
        {"channels": 4},
        {"halo": 1},
        {"grid_thw": (3, 5, 13)},
        {"grid_thw": (2**20, 2**20, 2**20)},
    ],
    ids=str,
)
def test_content_of_another_geometry_is_refused(
    codec: str, other: Geometry, made: dict[str, tuple[bytes, np.ndarray, Geometry]]
) -> None:
    content, kept, shape = made[codec]
    assert not read(content, codec, kept, shape | other)


@pytest.mark.parametrize("codec", CODECS)
def test_content_of_another_codec_is_refused(
    codec: str, made: dict[str, tuple[bytes, np.ndarray, Geometry]]
) -> None:
    content, kept, shape = made[codec]
    for other in {*CODECS, "ffv1", "", "__class__"} - {codec}:
        assert not read(content, other, kept, shape)


def test_h264_of_another_size_is_refused(
    made: dict[str, tuple[bytes, np.ndarray, Geometry]],
) -> None:
    _, kept, shape = made[LOSSY]
    for grid in ((3, 5, 5), (3, 40, 40), (6, 5, 6)):
        larger = shape | {"grid_thw": grid}
        tokens = draw_tokens("smooth", larger)
        content = compress(tokens, stored_cells(larger), **larger, floor=36).content
        assert not read(content, LOSSY, kept, shape)


@pytest.mark.parametrize("codec", CODECS)
def test_cells_that_no_grid_has_are_refused(
    codec: str, made: dict[str, tuple[bytes, np.ndarray, Geometry]]
) -> None:
    content, kept, shape = made[codec]
    beyond, twice, more = kept.copy(), kept.copy(), np.append(kept, 0).astype(np.uint32)
    beyond[7], twice[7] = 2**32 - 1, kept[8]
    for cells in (beyond, twice, more):
        assert not read(content, codec, cells, shape)


def test_a_bomb_takes_no_more_memory_than_the_tokens(
    made: dict[str, tuple[bytes, np.ndarray, Geometry]],
) -> None:
    _, kept, shape = made[EXACT]
    bomb = pa.Codec("zstd").compress(np.zeros(2**28, np.uint8), asbytes=True)
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    assert not read(bomb, EXACT, kept, shape)
    assert pool.max_memory() <= max(before, 2**24)


def test_a_grid_without_bounds_takes_no_memory() -> None:
    shape = geometry((2**30, 2**30, 2**30), patch=(16, 16))
    kept = np.array([5, 2**31, 2**32 - 1], np.uint32)
    tokens = draw_tokens("noise", geometry((1, 1, 3), patch=(16, 16)))
    np.testing.assert_array_equal(back(compress(tokens, kept, **shape), kept, shape), tokens)


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        (np.zeros((2, 384), np.float32), [0, 1]),
        (np.zeros((2, 383), np.uint8), [0, 1]),
        (np.zeros((2, 384), np.uint8), [0]),
        (np.zeros((2, 384), np.uint8), [3, 3]),
        (np.zeros((2, 384), np.uint8), [3, 24]),
    ],
)
def test_misuse_is_a_value_error(tokens: np.ndarray, kept: list[int]) -> None:
    with pytest.raises(ValueError, match=r"tokens"):
        compress(tokens, np.array(kept, np.uint32), **geometry())
