"""Static tokens: what changes, by fractions and by RLT's own formula; how long runs are."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from decoding import in_corpus
from hypothesis import given
from hypothesis import strategies as st
from untimed import untimed

from spacepatch.drop import changed_tokens, fill_static, keep_static, run_lengths
from spacepatch.tubelets import cut_tubelets

STD = [Fraction(229, 1000), Fraction(224, 1000), Fraction(225, 1000)]
TENTH = Fraction(1, 10)


def noise(*shape: int, key: int = 0, below: int = 256) -> np.ndarray:
    return np.random.default_rng(key).integers(0, below, shape, np.uint8)


def mean_change(first: np.ndarray, last: np.ndarray) -> Fraction:
    """Of one patch, in exact fractions."""
    rows, columns, _ = first.shape
    total = sum(
        abs(Fraction(int(last[y, x, c]) - int(first[y, x, c]), 255)) / STD[c]
        for y in range(rows)
        for x in range(columns)
        for c in range(3)
    )
    return Fraction(total, 3 * rows * columns)


@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    patch=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.sampled_from([3, 4]),
    key=st.integers(0, 10**6),
)
@untimed
def test_a_change_is_compared_with_the_threshold_exactly(
    grid: tuple[int, int], patch: tuple[int, int], channels: int, key: int
) -> None:
    shape = grid[0] * patch[0], grid[1] * patch[1], channels
    first, last = noise(*shape, key=key, below=1 + key % 256), noise(*shape, key=key + 1)
    changes = [
        mean_change(
            first[y : y + patch[0], x : x + patch[1]], last[y : y + patch[0], x:][:, : patch[1]]
        )
        for y in range(0, shape[0], patch[0])
        for x in range(0, shape[1], patch[1])
    ]
    # A threshold that equals one of them: strictly above it is what counts.
    for threshold in (changes[key % len(changes)], TENTH):
        changed = changed_tokens(first, last, patch_size=patch, threshold=threshold)
        assert changed.dtype == bool
        assert changed.tolist() == [change > threshold for change in changes]


def test_a_change_downwards_counts_as_one_upwards_and_alpha_counts_for_nothing() -> None:
    dark, bright = np.zeros((2, 2, 4), np.uint8), np.full((2, 2, 4), 90, np.uint8)
    for first, last in [(dark, bright), (bright, dark)]:
        assert changed_tokens(first, last, patch_size=(2, 2), threshold=TENTH).tolist() == [True]
    clear = dark.copy()
    clear[..., 3] = 255
    assert changed_tokens(dark, clear, patch_size=(2, 2), threshold=0).tolist() == [False]


def test_a_threshold_of_0_keeps_what_is_not_equal() -> None:
    first = noise(4, 6, 3)
    last = first.copy()
    last[3, 5, 2] ^= 1
    assert changed_tokens(first, last, patch_size=(2, 3), threshold=0).tolist() == [
        *[False] * 3,
        True,
    ]


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 3), np.float32)),
        (np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 1), np.uint8)),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)),
    ],
)
def test_frames_that_cannot_be_compared_are_refused(first: np.ndarray, last: np.ndarray) -> None:
    with pytest.raises(ValueError, match="frames"):
        changed_tokens(first, last, patch_size=(2, 2), threshold=TENTH)


def rlt_changes(clip: np.ndarray, tubelet_size: int, patch: int) -> torch.Tensor:
    """RLT's formula in float64: normalized frames, first of a tubelet against last of the next,
    average pool, mean over channels."""
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None, None]
    x = torch.from_numpy(clip).permute(3, 0, 1, 2).double() / 255 / std
    difference = (
        x[:, 2 * tubelet_size - 1 :: tubelet_size] - x[:, :-tubelet_size:tubelet_size]
    ).abs()
    pooled = torch.nn.functional.avg_pool3d(difference[None], (1, patch, patch))[0]
    return pooled.mean(dim=0).flatten(1)


@pytest.mark.parametrize("tubelet_size", [1, 2, 3])
def test_kept_tokens_are_those_of_rlt(tubelet_size: int) -> None:
    clip = np.full((5 * tubelet_size, 16, 24, 3), 100, np.uint8) + noise(
        5 * tubelet_size, 16, 24, 3, below=22
    )
    changes = rlt_changes(clip, tubelet_size, 4)
    # The fourth decimal splits the patches, and none is so near that float64 decides.
    threshold = round(float(changes.median()), 4)
    assert (changes - threshold).abs().min() > 1e-9
    keep = keep_static(clip, tubelet_size=tubelet_size, patch_size=(4, 4), threshold=threshold)
    assert keep[0].all()
    np.testing.assert_array_equal(keep[1:], (changes > threshold).numpy())
    assert 0.4 < keep[1:].mean() < 0.6


def test_a_clip_of_one_tubelet_is_kept_whole() -> None:
    keep = keep_static(noise(2, 4, 8, 3), tubelet_size=2, patch_size=(4, 4), threshold=TENTH)
    assert keep.tolist() == [[True, True]]


@pytest.mark.parametrize("num_frames", [0, 3])
def test_frames_that_fill_no_tubelet_are_refused(num_frames: int) -> None:
    with pytest.raises(ValueError, match="tubelets of 2"):
        keep_static(noise(num_frames, 4, 4, 3), tubelet_size=2, patch_size=(4, 4), threshold=0)


# --- run lengths ---


@st.composite
def kept_grids(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(keep, present), where the first row and rows after absent ones are kept whole."""
    num_rows, num_cells = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    present = np.array(draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)))
    keep = noise(num_rows, num_cells, key=draw(st.integers(0, 10**6)), below=4) == 0
    for row in range(num_rows):
        if row == 0 or not present[row - 1]:
            keep[row] = True
        if not present[row]:
            keep[row] = False
    return keep, present


@given(kept_grids())
@untimed
def test_a_run_ends_at_the_next_kept_token_an_absent_row_or_the_end(
    grid: tuple[np.ndarray, np.ndarray],
) -> None:
    keep, present = grid
    expected = []
    for row, cell in zip(*np.nonzero(keep), strict=True):
        stop = row + 1
        while stop < len(keep) and present[stop] and not keep[stop, cell]:
            stop += 1
        expected.append(stop - row)
    lengths = run_lengths(keep, present)
    assert lengths.dtype == np.uint16
    assert lengths.tolist() == expected
    sums = np.bincount(np.nonzero(keep)[1], weights=lengths, minlength=keep.shape[1])
    assert (sums == present.sum()).all()


@pytest.mark.parametrize(
    ("keep", "present"),
    [
        ([[1, 1], [0, 1]], [True, False]),
        ([[1, 0], [1, 1]], [True, True]),
        ([[1, 1], [0, 0], [1, 0]], [True, False, True]),
    ],
)
def test_grids_whose_runs_would_not_add_up_are_refused(
    keep: list[list[int]], present: list[bool]
) -> None:
    with pytest.raises(ValueError, match="absent"):
        run_lengths(np.array(keep, bool), np.array(present))


def test_a_still_of_days_is_kept_again_where_16_bits_end() -> None:
    clip = np.zeros((70_000, 1, 2, 3), np.uint8)
    keep = keep_static(clip, tubelet_size=1, patch_size=(1, 1), threshold=TENTH)
    assert np.flatnonzero(keep.all(axis=1)).tolist() == [0, 65_535]
    assert keep.sum() == 4
    present = np.ones(70_000, bool)
    assert run_lengths(keep, present).tolist() == [65_535, 65_535, 4_465, 4_465]
    keep[65_535, 1] = False
    with pytest.raises(ValueError, match="stands for 70000 tubelets"):
        run_lengths(keep, present)


# --- what the model sees ---


@given(kept_grids(), st.integers(1, 3))
@untimed
def test_a_dropped_token_is_seen_as_the_last_kept_one_of_its_cell(
    grid: tuple[np.ndarray, np.ndarray], width: int
) -> None:
    keep, _ = grid
    keep[0] = True
    tokens = noise(int(keep.sum()), width)
    full, seen, count = [], {}, 0
    for row in range(keep.shape[0]):
        for cell in range(keep.shape[1]):
            if keep[row, cell]:
                seen[cell], count = tokens[count], count + 1
            full.append(seen[cell])
    np.testing.assert_array_equal(fill_static(tokens, keep), np.array(full))


def test_filling_needs_the_first_row_and_as_many_tokens_as_are_kept() -> None:
    keep = np.array([[True, True], [False, True]])
    with pytest.raises(ValueError, match="2 tokens, where 3 are kept"):
        fill_static(noise(2, 4), keep)
    with pytest.raises(ValueError, match="first row"):
        fill_static(noise(3, 4), keep[::-1])


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("exo__sample_with_colr_mdcv_and_clli.mp4", 0.05, 0.15),  # almost still
        ("lilliput__big_buck_bunny_480p_10s_std.mp4", 0.45, 0.65),  # moves
        ("decord__flipping_a_pancake.mkv", 0.2, 0.5),  # moves in a still picture
    ],
)
def test_real_clips_are_rebuilt_to_30_db(name: str, least: float, most: float) -> None:
    with av.open(in_corpus(name)) as container:
        decoded = container.decode(video=0)
        frames = np.stack([next(decoded).to_ndarray(format="rgb24") for _ in range(24)])
    frames = frames[:, : frames.shape[1] // 16 * 16, : frames.shape[2] // 16 * 16]
    cut = {"tubelet_size": 2, "patch_size": (16, 16)}
    keep = keep_static(frames, **cut, threshold=TENTH)
    assert least < keep.mean() < most
    tokens = cut_tubelets(frames, **cut)
    rebuilt = fill_static(tokens[keep.ravel()], keep)
    error = np.square(rebuilt.astype(np.float32) - tokens).mean()
    assert 10 * np.log10(255**2 / error) >= 30
