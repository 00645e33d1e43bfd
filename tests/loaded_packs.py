"""What the tests of packs as tensors share."""

from __future__ import annotations

import torch


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[name].dtype, name
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def segments_of(pack: dict):
    """(segment as in pack.json, slice of its tokens) for each segment."""
    borders = pack["cu_seqlens"].tolist()
    return zip(pack["segments"], map(slice, borders, borders[1:]), strict=True)


def make_ids(lengths, padding) -> torch.Tensor:
    ids = [place for place, length in enumerate(lengths, 1) for _ in range(length)]
    return torch.tensor(ids + [0] * padding, dtype=torch.int32)
