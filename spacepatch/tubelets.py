"""Cut a clip into tubelets, and join them back.

A tubelet is `tubelet_size` frames of one `patch_h` x `patch_w` patch: one token. Tokens are in
order of t; those of one t in raster order (h, then w), or in blocks of merge x merge patches whose
tokens lie side by side, the blocks and their inside in raster order (Qwen2-VL).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

LAYOUTS = {
    "c t p q": (0, 1, 2, 3),
    "t p q c": (1, 2, 3, 0),
    "p q c": (1, 2, 3, 0),
    "c p q": (0, 1, 2, 3),
}
"""Order of the values inside one token: channel, frame, row, column. The tuple says where each of
(c, t, p, q) is found in the layout. The two without `t` are for one frame a token (images)."""


def _repeat(num_frames: int, tubelet_size: int) -> int:
    return -num_frames % tubelet_size


def _drop(num_frames: int, tubelet_size: int) -> int:
    return -(num_frames % tubelet_size)


TAILS: dict[str, Callable[[int, int], int]] = {"repeat": _repeat, "drop": _drop, "pad": _repeat}
"""What becomes of frames that fill no whole tubelet: frames added (or, negative, taken away), from
(num_frames, tubelet_size). `repeat` the last frame, `pad` with zeros, or `drop` them."""


def grid_shape(
    num_frames: int,
    size: tuple[int, int],
    *,
    tubelet_size: int,
    patch_size: tuple[int, int],
    tail: str = "repeat",
) -> tuple[int, int, int]:
    """Tubelets in time, height and width of a clip of `num_frames` frames of (h, w) pixels.

    Pure integers, so that a plan knows it without a pixel. T is 0 where `tail="drop"` leaves
    nothing.
    """
    height, width = size
    patch_h, patch_w = patch_size
    if height % patch_h or width % patch_w:
        raise ValueError(f"size {size} is no multiple of the patch {patch_size}")
    covered = num_frames + TAILS[tail](num_frames, tubelet_size)
    return covered // tubelet_size, height // patch_h, width // patch_w


def token_width(
    tubelet_size: int, patch_size: tuple[int, int], channels: int = 3, halo: int = 0
) -> int:
    """D: the number of values in a token."""
    return channels * tubelet_size * (patch_size[0] + 2 * halo) * (patch_size[1] + 2 * halo)


def merge_of(order: str) -> int:
    """Patches on a side of a block: 1 for ``raster``, n for ``merge n x n``.

    Raises:
        ValueError: anything else.
    """
    if order == "raster":
        return 1
    match = re.fullmatch(r"merge ([1-9]\d?) ?x ?\1", order)
    if match is None:
        raise ValueError("not raster, or blocks such as 'merge 2 x 2'")
    return int(match[1])


def cell_order(grid_h: int, grid_w: int, *, merge: int = 1) -> np.ndarray:
    """Which cell of the grid each token of one t is.

    ``(h mh) (w mw) -> (h w mh mw)`` of the raster indices.

    Returns:
        ``(grid_h * grid_w,)`` int64 raster indices.
    """
    raster = np.arange(grid_h * grid_w, dtype=np.int64)
    blocks = raster.reshape(grid_h // merge, merge, grid_w // merge, merge)
    return blocks.transpose(0, 2, 1, 3).reshape(-1)


def cells_of_rows(rows: np.ndarray, grid_h: int, grid_w: int, *, merge: int = 1) -> np.ndarray:
    """``(R * grid_h * grid_w,)`` uint32 raster indices, in a grid of all rows, of the tokens of
    ``(R,)`` whole rows, in the order that they are stored in."""
    order = cell_order(grid_h, grid_w, merge=merge)
    cells = rows.astype(np.int64)[:, None] * len(order) + order
    return np.asarray(cells.reshape(-1), np.uint32)


def cut_tubelets(
    frames: np.ndarray,
    *,
    tubelet_size: int,
    patch_size: tuple[int, int],
    layout: str = "c t p q",
    merge: int = 1,
    halo: int = 0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cut a clip into flattened tubelets.

    ``(t k) (h p) (w q) c -> (t h w) (c k p q)`` by default,
    ``(t k) (h mh p) (w mw q) c -> (t h w mh mw) (c k p q)`` in blocks of `merge` x `merge` patches.

    Args:
        frames: ``(T, H, W, C)`` clip; T divides by `tubelet_size`, H and W by `patch_size` x
            `merge`.
        layout: one of `LAYOUTS`.
        halo: a token also covers so many pixels around its patch, zeros beyond the frame: ViTGAN's
            overlapping patches (arXiv 2107.04589, section 3.2).
        out: ``(N, D)`` C-contiguous array of the same dtype to fill, say a slice of the arena.

    Returns:
        ``(N, D)`` tokens, with D = C * tubelet_size * (patch_h + 2 halo) * (patch_w + 2 halo).

    Raises:
        ValueError: a side does not divide, or a layout without t has more than one frame a token.
    """
    num_frames, height, width, channels = frames.shape
    _check_layout(layout, tubelet_size)
    if num_frames % tubelet_size:
        raise ValueError(f"{num_frames} frames do not divide by tubelet_size {tubelet_size}")
    grid_t, grid_h, grid_w = grid_shape(
        num_frames, (height, width), tubelet_size=tubelet_size, patch_size=patch_size
    )
    depth = token_width(tubelet_size, patch_size, channels, halo)
    if out is None:
        out = np.empty((grid_t * grid_h * grid_w, depth), frames.dtype)
    rows = out.reshape(grid_t, grid_h * grid_w, depth)
    for index in range(num_frames):
        t, k = divmod(index, tubelet_size)
        write_frame(
            frames[index],
            rows[t],
            index_in_tubelet=k,
            tubelet_size=tubelet_size,
            patch_size=patch_size,
            layout=layout,
            merge=merge,
            halo=halo,
        )
    return out


def write_frame(
    frame: np.ndarray,
    row: np.ndarray,
    *,
    index_in_tubelet: int,
    tubelet_size: int,
    patch_size: tuple[int, int],
    layout: str = "c t p q",
    merge: int = 1,
    halo: int = 0,
) -> None:
    """Write one frame into its place in the tokens of a grid row: no clip is ever gathered.

    Args:
        frame: ``(H, W, C)``, any strides.
        row: ``(grid_h * grid_w, D)`` C-contiguous tokens of one t; only the values of this frame
            are written.
        index_in_tubelet: k in [0, tubelet_size).
    """
    height, width, channels = frame.shape
    patch_h, patch_w = patch_size
    grid = height // patch_h, width // patch_w
    if halo:
        around = np.pad(frame, ((halo, halo), (halo, halo), (0, 0)))
        window = patch_h + 2 * halo, patch_w + 2 * halo
        # h w c p q, each window a step of one patch from the next.
        patches = np.lib.stride_tricks.sliding_window_view(around, window, axis=(0, 1))
        patches = patches[::patch_h, ::patch_w]
    else:
        # (h p) (w q) c -> h w c p q
        patches = frame.reshape(grid[0], patch_h, grid[1], patch_w, channels)
        patches = patches.transpose(0, 2, 4, 1, 3)
    target = _axes_of(row, grid, channels, tubelet_size, patch_size, layout, merge, halo)
    # Into the k-th place of the frame axis of each token: (h mh) (w mw) -> h w mh mw.
    target = target[:, :, :, :, :, index_in_tubelet]
    blocks = patches.reshape(grid[0] // merge, merge, grid[1] // merge, merge, *patches.shape[2:])
    copy_in_words(target, blocks.transpose(0, 2, 1, 3, 4, 5, 6))


WORDS = {16: "c16", 8: "u8", 4: "u4", 2: "u2"}
"""Bytes to a dtype of so many: which one is of no matter, where values are only copied."""


def copy_in_words(target: np.ndarray, source: np.ndarray) -> None:
    """Copy; where the values of the last axis lie side by side in both, several as one."""
    item = source.itemsize
    if target.strides[-1] == source.strides[-1] == item and target.dtype == source.dtype:
        for width, word in WORDS.items():
            if width > item and source.shape[-1] * item % width == 0:
                target, source = target.view(word), source.view(word)
                break
    np.copyto(target, source)


def join_tubelets(
    tokens: np.ndarray,
    *,
    grid_thw: tuple[int, int, int],
    tubelet_size: int,
    patch_size: tuple[int, int],
    layout: str = "c t p q",
    merge: int = 1,
    halo: int = 0,
) -> np.ndarray:
    """The inverse of `cut_tubelets`: ``(N, D)`` tokens to ``(T, H, W, C)`` frames."""
    grid_t, grid_h, grid_w = grid_thw
    patch_h, patch_w = patch_size
    _check_layout(layout, tubelet_size)
    if tokens.shape[0] != grid_t * grid_h * grid_w:
        raise ValueError(f"{tokens.shape[0]} tokens do not fill a grid of {grid_thw}")
    channels = tokens.shape[1] // token_width(tubelet_size, patch_size, 1, halo)
    frames = np.empty(
        (grid_t, tubelet_size, grid_h, patch_h, grid_w, patch_w, channels), tokens.dtype
    )
    rows = np.ascontiguousarray(tokens).reshape(grid_t, grid_h * grid_w, -1)
    inner = slice(halo, halo + patch_h), slice(halo, halo + patch_w)
    for t in range(grid_t):
        axes = _axes_of(
            rows[t], (grid_h, grid_w), channels, tubelet_size, patch_size, layout, merge, halo
        )[..., inner[0], inner[1]]
        # h w mh mw c k p q -> k (h mh) p (w mw) q c
        target = frames[t].reshape(
            tubelet_size, grid_h // merge, merge, patch_h, grid_w // merge, merge, patch_w, channels
        )
        np.copyto(target, axes.transpose(5, 0, 2, 6, 1, 3, 7, 4))
    return frames.reshape(grid_t * tubelet_size, grid_h * patch_h, grid_w * patch_w, channels)


def _axes_of(
    row: np.ndarray,
    grid: tuple[int, int],
    channels: int,
    tubelet_size: int,
    patch_size: tuple[int, int],
    layout: str,
    merge: int,
    halo: int,
) -> np.ndarray:
    """A view of one grid row as (h, w, mh, mw, c, t, p, q), whatever the layout on disk."""
    sizes = (channels, tubelet_size, patch_size[0] + 2 * halo, patch_size[1] + 2 * halo)
    places = LAYOUTS[layout]
    # The layout's own order, then permuted to c t p q: (1, 2, 3, 0) reads "t p q c".
    blocks = grid[0] // merge, grid[1] // merge, merge, merge
    stored = row.reshape(*blocks, *(sizes[axis] for axis in places))
    return stored.transpose(0, 1, 2, 3, *(4 + places.index(axis) for axis in range(4)))


def change_layout(
    tokens: np.ndarray, *, token_shape: tuple[int, int, int, int], before: str, after: str
) -> np.ndarray:
    """Bring the values inside each token from one of `LAYOUTS` to another.

    Args:
        tokens: ``(N, D)``.
        token_shape: (c, t, p, q) of one token, with its halo; their product is D.

    Returns:
        ``(N, D)``, C-contiguous.
    """
    for layout in (before, after):
        _check_layout(layout, token_shape[1])
    old, new = LAYOUTS[before], LAYOUTS[after]
    stored = tokens.reshape(len(tokens), *(token_shape[axis] for axis in old))
    moved = stored.transpose(0, *(1 + old.index(axis) for axis in new))
    return np.ascontiguousarray(moved).reshape(len(tokens), -1)


def _check_layout(layout: str, tubelet_size: int) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; one of {', '.join(LAYOUTS)}")
    if "t" not in layout.split() and tubelet_size != 1:
        raise ValueError(f"layout {layout!r} has no t, so tubelet_size must be 1: {tubelet_size}")
