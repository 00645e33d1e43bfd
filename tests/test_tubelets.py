"""Cutting and joining: inverse pairs, and einops as the independent reference."""

import numpy as np
import pytest
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from untimed import untimed

from spacepatch.tubelets import (
    LAYOUTS,
    cell_order,
    change_layout,
    cut_tubelets,
    grid_shape,
    join_tubelets,
    merge_of,
    token_width,
    write_frame,
)

PATTERNS = {
    "c t p q": "(t k) (h p) (w q) c -> (t h w) (c k p q)",
    "t p q c": "(t k) (h p) (w q) c -> (t h w) (k p q c)",
    "p q c": "(t k) (h p) (w q) c -> (t h w) (k p q c)",
    "c p q": "(t k) (h p) (w q) c -> (t h w) (k c p q)",
}


MERGED = {
    "c t p q": "(t k) (h mh p) (w mw q) c -> (t h w mh mw) (c k p q)",
    "t p q c": "(t k) (h mh p) (w mw q) c -> (t h w mh mw) (k p q c)",
    "p q c": "(t k) (h mh p) (w mw q) c -> (t h w mh mw) (k p q c)",
    "c p q": "(t k) (h mh p) (w mw q) c -> (t h w mh mw) (k c p q)",
}


def clip(t: int, h: int, w: int, c: int = 3) -> np.ndarray:
    return np.random.default_rng(t * 1000 + h * 10 + w).integers(0, 256, (t, h, w, c), np.uint8)


def test_every_layout_has_a_pattern() -> None:
    assert set(PATTERNS) == set(LAYOUTS)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@given(
    grid=st.tuples(*[st.integers(1, 4)] * 3),
    k=st.integers(1, 3),
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.sampled_from([1, 3, 4]),
)
@settings(max_examples=25, deadline=None)
def test_cut_equals_einops_and_join_undoes_it(layout, grid, k, patch, channels) -> None:
    k = k if "t" in layout.split() else 1
    frames = clip(grid[0] * k, grid[1] * patch[0], grid[2] * patch[1], channels)
    tokens = cut_tubelets(frames, tubelet_size=k, patch_size=patch, layout=layout)
    expected = rearrange(frames, PATTERNS[layout], k=k, p=patch[0], q=patch[1])
    np.testing.assert_array_equal(tokens, expected)
    back = join_tubelets(tokens, grid_thw=grid, tubelet_size=k, patch_size=patch, layout=layout)
    np.testing.assert_array_equal(back, frames)


def test_cut_accepts_transposed_frames_and_fills_out() -> None:
    frames = clip(2, 32, 48).transpose(0, 2, 1, 3)[:, :, ::-1]
    out = np.zeros((6, 2 * 16 * 16 * 3), np.uint8)
    assert cut_tubelets(frames, tubelet_size=2, patch_size=(16, 16), out=out) is out
    np.testing.assert_array_equal(out, rearrange(frames, PATTERNS["c t p q"], k=2, p=16, q=16))


@pytest.mark.parametrize("tubelet", range(1, 17))
def test_tail_policies_cover_what_they_say(tubelet: int) -> None:
    for n in range(1, 201):
        rows = {
            tail: grid_shape(n, (16, 16), tubelet_size=tubelet, patch_size=(16, 16), tail=tail)[0]
            for tail in ("repeat", "pad", "drop")
        }
        assert rows["repeat"] == rows["pad"] == (n + (-n % tubelet)) // tubelet
        assert rows["drop"] == n // tubelet


def test_sizes_that_do_not_divide_are_refused_with_their_values() -> None:
    with pytest.raises(ValueError, match=r"\(17, 16\)"):
        grid_shape(2, (17, 16), tubelet_size=2, patch_size=(16, 16))
    with pytest.raises(ValueError, match="3 frames"):
        cut_tubelets(clip(3, 16, 16), tubelet_size=2, patch_size=(16, 16))
    with pytest.raises(ValueError, match="no t"):
        cut_tubelets(clip(2, 16, 16), tubelet_size=2, patch_size=(16, 16), layout="p q c")


def shapes(layout: str) -> st.SearchStrategy:
    """(frames a tubelet, patch, blocks of the grid, merge, halo)."""
    return st.tuples(
        st.integers(1, 3) if "t" in layout.split() else st.just(1),
        st.tuples(st.integers(1, 4), st.integers(1, 4)),
        st.tuples(*[st.integers(1, 3)] * 3),
        st.integers(1, 3),
        st.integers(0, 5),
    )


# --- blocks of patches ---


def test_tokens_of_a_grid_in_blocks_of_two_are_in_this_order() -> None:
    assert cell_order(2, 4, merge=2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert cell_order(4, 2, merge=2).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert cell_order(3, 3, merge=3).tolist() == list(range(9))
    assert cell_order(2, 3).tolist() == list(range(6))


@given(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(1, 4))
@untimed
def test_blocks_lie_in_raster_order_and_so_does_their_inside(blocks, merge) -> None:
    grid_h, grid_w = blocks[0] * merge, blocks[1] * merge
    expected = [
        (row * merge + y) * grid_w + column * merge + x
        for row in range(blocks[0])
        for column in range(blocks[1])
        for y in range(merge)
        for x in range(merge)
    ]
    assert cell_order(grid_h, grid_w, merge=merge).tolist() == expected


@pytest.mark.parametrize(
    ("order", "merge"),
    [
        ("raster", 1),
        ("merge 1 x 1", 1),
        ("merge 2 x 2", 2),
        ("merge 2x2", 2),
        ("merge 12 x 12", 12),
    ],
)
def test_an_order_names_the_side_of_its_blocks(order: str, merge: int) -> None:
    assert merge_of(order) == merge


@pytest.mark.parametrize(
    "order",
    ["", "rows", "merge", "merge 0 x 0", "merge 2 x 3", "merge 2 x 22", "merge 2 x 2 ", "2 x 2"],
)
def test_an_order_that_is_none_is_refused_with_one_that_is(order: str) -> None:
    with pytest.raises(ValueError, match="merge 2 x 2"):
        merge_of(order)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@given(data=st.data())
@untimed
def test_cut_in_blocks_equals_einops_and_join_undoes_it(layout, data) -> None:
    k, patch, blocks, merge, _ = data.draw(shapes(layout))
    grid = blocks[0], blocks[1] * merge, blocks[2] * merge
    frames = clip(grid[0] * k, grid[1] * patch[0], grid[2] * patch[1])
    cut = {"tubelet_size": k, "patch_size": patch, "layout": layout, "merge": merge}
    tokens = cut_tubelets(frames, **cut)
    sizes = {"k": k, "p": patch[0], "q": patch[1], "mh": merge, "mw": merge}
    np.testing.assert_array_equal(tokens, rearrange(frames, MERGED[layout], **sizes))
    raster = cut_tubelets(frames, **cut | {"merge": 1}).reshape(grid[0], -1, tokens.shape[1])
    order = cell_order(*grid[1:], merge=merge)
    np.testing.assert_array_equal(tokens, raster[:, order].reshape(tokens.shape))
    np.testing.assert_array_equal(join_tubelets(tokens, grid_thw=grid, **cut), frames)


# --- pixels around a patch ---


def cut_by_loops(frames, k, patch, halo, merge=1) -> np.ndarray:
    """(N, C, k, p + 2 halo, q + 2 halo), token by token."""
    around = np.pad(frames, ((0, 0), (halo, halo), (halo, halo), (0, 0)))
    grid_h, grid_w = frames.shape[1] // patch[0], frames.shape[2] // patch[1]
    tokens = []
    for t in range(0, len(frames), k):
        for cell in cell_order(grid_h, grid_w, merge=merge).tolist():
            top, left = cell // grid_w * patch[0], cell % grid_w * patch[1]
            window = around[t : t + k, top : top + patch[0] + 2 * halo]
            tokens.append(window[:, :, left : left + patch[1] + 2 * halo].transpose(3, 0, 1, 2))
    return np.stack(tokens)


VALUES = {"c t p q": "ctpq", "t p q c": "tpqc", "p q c": "tpqc", "c p q": "tcpq"}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@given(data=st.data())
@untimed
def test_a_halo_adds_the_pixels_around_and_zeros_beyond_the_frame(layout, data) -> None:
    k, patch, blocks, merge, halo = data.draw(shapes(layout))
    grid = blocks[0], blocks[1] * merge, blocks[2] * merge
    frames = clip(grid[0] * k, grid[1] * patch[0], grid[2] * patch[1])
    cut = {"tubelet_size": k, "patch_size": patch, "layout": layout, "merge": merge, "halo": halo}
    tokens = cut_tubelets(frames, **cut)
    width = 3 * k * (patch[0] + 2 * halo) * (patch[1] + 2 * halo)
    assert tokens.shape == (grid[0] * grid[1] * grid[2], width)
    assert token_width(k, patch, halo=halo) == width
    assert token_width(k, patch, 4, halo) == width // 3 * 4
    moved = cut_by_loops(frames, k, patch, halo, merge)
    moved = moved.transpose(0, *(1 + "ctpq".index(axis) for axis in VALUES[layout]))
    np.testing.assert_array_equal(tokens, moved.reshape(tokens.shape))
    np.testing.assert_array_equal(join_tubelets(tokens, grid_thw=grid, **cut), frames)


def test_a_frame_writes_its_own_values_and_no_others() -> None:
    frames = clip(3, 8, 12)
    row = np.full((6, 3 * 3 * 6 * 6), 77, np.uint8)
    shape = {"tubelet_size": 3, "patch_size": (4, 4), "halo": 1}
    write_frame(frames[1], row, index_in_tubelet=1, **shape)
    values = row.reshape(6, 3, 3, 6, 6)
    assert (values[:, :, [0, 2]] == 77).all()
    expected = cut_tubelets(frames, **shape).reshape(values.shape)
    np.testing.assert_array_equal(values[:, :, 1], expected[:, :, 1])


# --- values inside a token ---


@pytest.mark.parametrize("before", sorted(LAYOUTS))
@pytest.mark.parametrize("after", sorted(LAYOUTS))
@given(data=st.data(), channels=st.sampled_from([1, 3, 4]))
@untimed
def test_a_changed_layout_is_that_of_a_new_cut_and_goes_back(before, after, data, channels) -> None:
    both = before if "t" not in before.split() else after
    k, patch, grid, _, halo = data.draw(shapes(both))
    frames = clip(grid[0] * k, grid[1] * patch[0], grid[2] * patch[1], channels)
    cut = {"tubelet_size": k, "patch_size": patch, "halo": halo}
    tokens = cut_tubelets(frames, layout=before, **cut)
    shape = channels, k, patch[0] + 2 * halo, patch[1] + 2 * halo
    moved = change_layout(tokens, token_shape=shape, before=before, after=after)
    np.testing.assert_array_equal(moved, cut_tubelets(frames, layout=after, **cut))
    assert moved.flags.c_contiguous
    back = change_layout(moved, token_shape=shape, before=after, after=before)
    np.testing.assert_array_equal(back, tokens)


def test_a_changed_layout_moves_each_value_to_its_place() -> None:
    # The value says where it is: 1000 c + 100 t + 10 p + q.
    c, t, p, q = np.indices((3, 2, 4, 5))
    tokens = np.stack([1000 * c + 100 * t + 10 * p + q] * 2).reshape(2, -1)
    moved = change_layout(tokens, token_shape=(3, 2, 4, 5), before="c t p q", after="t p q c")
    assert moved.reshape(2, 2, 4, 5, 3)[1, 1, 3, 2, 2] == 2132
    assert moved.reshape(2, 2, 4, 5, 3)[0, 0, 1, 4, 1] == 1014


def test_layouts_that_are_none_or_need_one_frame_are_refused() -> None:
    tokens = np.zeros((1, 24), np.uint8)
    for before, after in [("c t p q", "p q c"), ("c p q", "c t p q")]:
        with pytest.raises(ValueError, match="no t"):
            change_layout(tokens, token_shape=(3, 2, 2, 2), before=before, after=after)
    with pytest.raises(ValueError, match="unknown layout 'q p c'"):
        change_layout(tokens, token_shape=(3, 2, 2, 2), before="c t p q", after="q p c")
    with pytest.raises(ValueError, match="5 tokens do not fill"):
        join_tubelets(tokens[[0] * 5], grid_thw=(1, 2, 2), tubelet_size=2, patch_size=(2, 2))
