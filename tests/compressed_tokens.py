"""Pixel tokens to be compressed, and what became of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from spacepatch.codecs import Compressed, decompress
from spacepatch.tubelets import LAYOUTS, cell_order, cut_tubelets

Geometry = dict[str, Any]
CONTENTS = ("noise", "flat", "smooth", "still")


def geometry(
    grid: tuple[int, int, int] = (2, 3, 4),
    *,
    tubelet: int = 2,
    patch: tuple[int, int] = (8, 8),
    channels: int = 3,
    **more: Any,
) -> Geometry:
    return {
        "grid_thw": grid,
        "tubelet_size": tubelet,
        "patch_size": patch,
        "channels": channels,
        "halo": 0,
        "layout": "c t p q",
        "merge": 1,
    } | more


def draw_frames(what: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """(T, H, W, C) uint8."""
    drawn = np.random.default_rng(seed)
    t, h, w, c = shape
    if what == "noise":
        return drawn.integers(0, 256, shape, np.uint8)
    if what == "flat":
        return np.full(shape, drawn.integers(0, 256), np.uint8)
    y, x, colour = np.ogrid[:h, :w, :c]
    moving = 3 * np.arange(t) if what == "smooth" else np.zeros(t)
    waves = [np.sin((x + step) / 9 + colour) + np.cos(y / 7 - colour) for step in moving]
    return (127 + 60 * np.array(waves)).astype(np.uint8)


def draw_tokens(what: str, shape: Geometry, seed: int = 0) -> np.ndarray:
    """(N, D): all cells, in the order that they are stored in."""
    (t, h, w), (p, q) = shape["grid_thw"], shape["patch_size"]
    size = (t * shape["tubelet_size"], h * p, w * q, shape["channels"])
    names = ("tubelet_size", "patch_size", "layout", "merge", "halo")
    return cut_tubelets(draw_frames(what, size, seed), **{name: shape[name] for name in names})


def stored_cells(shape: Geometry) -> np.ndarray:
    """(N,) raster index of each of all tokens."""
    t, h, w = shape["grid_thw"]
    order = cell_order(h, w, merge=shape["merge"])
    return np.concatenate([row * h * w + order for row in range(t)]).astype(np.uint32)


def back(made: Compressed, kept: np.ndarray, shape: Geometry) -> np.ndarray:
    return decompress(made.content, made.codec, kept, **shape)


def psnr(tokens: np.ndarray, others: np.ndarray) -> float:
    error = np.mean((tokens.astype(np.float64) - others.astype(np.float64)) ** 2)
    return math.inf if error == 0 else float(20 * np.log10(255) - 10 * np.log10(error))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    merge = draw(st.integers(1, 3))
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    return geometry(
        (draw(st.integers(1, 4)), *(merge * draw(st.integers(1, 3)) for _ in "hw")),
        tubelet=draw(st.integers(1, 3)) if "t" in layout.split() else 1,
        patch=(draw(st.integers(1, 17)), draw(st.integers(1, 17))),
        channels=draw(st.sampled_from([3, 4])),
        halo=draw(st.sampled_from([0, 0, 1, 3])),
        layout=layout,
        merge=merge,
    )


@st.composite
def segments(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Tokens, their cells and their geometry: all of them or some; in order or not."""
    shape = draw(geometries())
    tokens = draw_tokens(draw(st.sampled_from(CONTENTS)), shape, draw(st.integers(0, 99)))
    num = draw(st.one_of(st.just(len(tokens)), st.integers(1, len(tokens))))
    chosen = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(tokens))[:num]
    if draw(st.booleans()):
        chosen.sort()
    return tokens[chosen], stored_cells(shape)[chosen], shape
