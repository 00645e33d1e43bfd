"""Masks and borders, held against what their sentences say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loaded_packs import make_ids

from spacepatch.masks import block_mask, cu_seqlens

LENGTHS = st.lists(st.integers(1, 5), max_size=6)


@given(lengths=LENGTHS, padding=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_the_mask_is_what_its_sentence_says(lengths, padding) -> None:
    ids = make_ids(lengths, padding)
    mask = block_mask(ids)
    for i, mine in enumerate(ids.tolist()):
        for j, other in enumerate(ids.tolist()):
            assert bool(mask[i, j]) is (i == j if mine == 0 else mine == other)


def test_the_mask_of_a_batch_is_the_masks_of_its_packs() -> None:
    ids = torch.stack([make_ids([3, 2], 1), make_ids([1], 5), make_ids([], 6)])
    assert torch.equal(block_mask(ids), torch.stack([block_mask(row) for row in ids]))


@given(lengths=LENGTHS, padding=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_borders_are_the_running_sum_of_the_lengths(lengths, padding) -> None:
    borders = cu_seqlens(make_ids(lengths, padding))
    assert borders.dtype == torch.int32
    assert borders.tolist() == [0, *np.cumsum(lengths)]


@pytest.mark.parametrize(
    "ids",
    [
        [2, 2, 3],  # does not start with 1
        [1, 3],  # a segment without tokens
        [1, 2, 1],
        [2, 1],
        [0, 1],  # padding first
        [1, 0, 2],  # padding in between
        [1, 0, 1],
        [-1, 0],
        [1, -1],
    ],
)
def test_ids_of_any_other_form_are_refused(ids) -> None:
    with pytest.raises(ValueError, match=r"segment_ids\[\d\]"):
        cu_seqlens(torch.tensor(ids))


def test_borders_of_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        cu_seqlens(torch.ones(2, 3, dtype=torch.int32))


def test_borders_by_ids_are_those_of_the_packs(pack_dataset) -> None:
    for pack in pack_dataset:
        assert torch.equal(cu_seqlens(pack["segment_ids"]), pack["cu_seqlens"])
