"""Cut a clip into tubelets, and join them back.

A tubelet is `tubelet_size` frames of one `patch_h` x `patch_w` patch: one token. Tokens are in
raster order (t, then h, then w).
"""

from __future__ import annotations

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


def token_width(tubelet_size: int, patch_size: tuple[int, int], channels: int = 3) -> int:
    """D: the number of values in a token."""
    return channels * tubelet_size * patch_size[0] * patch_size[1]


def cut_tubelets(
    frames: np.ndarray,
    *,
    tubelet_size: int,
    patch_size: tuple[int, int],
    layout: str = "c t p q",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cut a clip into flattened tubelets, in raster order (t, then h, then w).

    ``(t k) (h p) (w q) c -> (t h w) (c k p q)`` for the default layout.

    Args:
        frames: ``(T, H, W, C)`` clip; T divides by `tubelet_size`, H and W by `patch_size`.
        layout: one of `LAYOUTS`.
        out: ``(N, D)`` C-contiguous array of the same dtype to fill, say a slice of the arena.

    Returns:
        ``(N, D)`` tokens, with D = C * tubelet_size * patch_h * patch_w.

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
    depth = token_width(tubelet_size, patch_size, channels)
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
    grid_h, grid_w = height // patch_h, width // patch_w
    # (h p) (w q) c -> h w c p q, into the k-th place of the frame axis of each token.
    patches = frame.reshape(grid_h, patch_h, grid_w, patch_w, channels).transpose(0, 2, 4, 1, 3)
    target = _axes_of(row, grid_h, grid_w, channels, tubelet_size, patch_size, layout)
    np.copyto(target[:, :, :, index_in_tubelet], patches)


def join_tubelets(
    tokens: np.ndarray,
    *,
    grid_thw: tuple[int, int, int],
    tubelet_size: int,
    patch_size: tuple[int, int],
    layout: str = "c t p q",
) -> np.ndarray:
    """The inverse of `cut_tubelets`: ``(N, D)`` tokens to ``(T, H, W, C)`` frames."""
    grid_t, grid_h, grid_w = grid_thw
    patch_h, patch_w = patch_size
    _check_layout(layout, tubelet_size)
    if tokens.shape[0] != grid_t * grid_h * grid_w:
        raise ValueError(f"{tokens.shape[0]} tokens do not fill a grid of {grid_thw}")
    channels = tokens.shape[1] // (tubelet_size * patch_h * patch_w)
    frames = np.empty(
        (grid_t, tubelet_size, grid_h, patch_h, grid_w, patch_w, channels), tokens.dtype
    )
    rows = np.ascontiguousarray(tokens).reshape(grid_t, grid_h * grid_w, -1)
    for t in range(grid_t):
        axes = _axes_of(rows[t], grid_h, grid_w, channels, tubelet_size, patch_size, layout)
        # h w c k p q -> k h p w q c
        np.copyto(frames[t], axes.transpose(3, 0, 4, 1, 5, 2))
    return frames.reshape(grid_t * tubelet_size, grid_h * patch_h, grid_w * patch_w, channels)


def _axes_of(
    row: np.ndarray,
    grid_h: int,
    grid_w: int,
    channels: int,
    tubelet_size: int,
    patch_size: tuple[int, int],
    layout: str,
) -> np.ndarray:
    """A view of one grid row as (grid_h, grid_w, c, t, p, q), whatever the layout on disk."""
    sizes = (channels, tubelet_size, *patch_size)
    places = LAYOUTS[layout]
    # The layout's own order, then permuted to c t p q: (1, 2, 3, 0) reads "t p q c".
    stored = row.reshape(grid_h, grid_w, *(sizes[axis] for axis in places))
    return stored.transpose(0, 1, *(2 + places.index(axis) for axis in range(4)))


def _check_layout(layout: str, tubelet_size: int) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; one of {', '.join(LAYOUTS)}")
    if "t" not in layout.split() and tubelet_size != 1:
        raise ValueError(f"layout {layout!r} has no t, so tubelet_size must be 1: {tubelet_size}")
