"""Cutting and joining: inverse pairs, and einops as the independent reference."""

import numpy as np
import pytest
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from spacepatch.tubelets import LAYOUTS, cut_tubelets, grid_shape, join_tubelets

PATTERNS = {
    "c t p q": "(t k) (h p) (w q) c -> (t h w) (c k p q)",
    "t p q c": "(t k) (h p) (w q) c -> (t h w) (k p q c)",
    "p q c": "(t k) (h p) (w q) c -> (t h w) (k p q c)",
    "c p q": "(t k) (h p) (w q) c -> (t h w) (k c p q)",
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
