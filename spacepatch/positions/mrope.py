"""Qwen's M-RoPE: ids of t, h and w for the language model, and the angles made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from spacepatch.positions.sinusoids import frequencies

TOLERANCE = 1e-7
"""Of an id: in float64, (1.2 - 1.0) * 10 is a little below 2, and would be floored to 1."""


def _by_row(
    t: torch.Tensor, ids: torch.Tensor, seconds: torch.Tensor | None, rate: float
) -> torch.Tensor:
    return t


def _by_seconds(
    t: torch.Tensor, ids: torch.Tensor, seconds: torch.Tensor | None, rate: float
) -> torch.Tensor:
    if seconds is None:
        raise ValueError(
            "the time ids of qwen2.5-vl count seconds: pass seconds, as the loader has"
        )
    first = seconds.new_full((int(ids.max()) + 1,), torch.inf).double()
    first = first.scatter_reduce(0, ids, seconds.double(), "amin")
    # Scaled before it is made an integer: half a second cast first is 0, whatever the rate.
    return torch.floor((seconds.double() - first[ids]) * rate + TOLERANCE).long()


def _one_slice(
    t: torch.Tensor, ids: torch.Tensor, seconds: torch.Tensor | None, rate: float
) -> torch.Tensor:
    return torch.zeros_like(t)


def _blocks(sections: tuple[int, int, int]) -> list[int]:
    return [axis for axis, count in enumerate(sections) for _ in range(count)]


def _interleaved(sections: tuple[int, int, int]) -> list[int]:
    # t h w t h w .., and t again once h and w have what they need.
    return [i % 3 if i < 3 * sections[i % 3] else 0 for i in range(sum(sections))]


@dataclass(frozen=True)
class MropeModel:
    """How a model counts time, and which frequencies are given to t, h and w."""

    times: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, float], torch.Tensor]
    sections: tuple[int, int, int]
    """Pairs of values of a head for t, h and w (`mrope_section`)."""
    axes: Callable[[tuple[int, int, int]], list[int]]
    """From sections to the axis of each frequency, the highest first."""
    base: float
    """`rope_theta`."""


MROPE_MODELS = {
    "qwen2-vl": MropeModel(_by_row, (16, 24, 24), _blocks, 1e6),
    "qwen2.5-vl": MropeModel(_by_seconds, (16, 24, 24), _blocks, 1e6),
    "qwen3-vl": MropeModel(_one_slice, (24, 20, 20), _interleaved, 5e6),
}
"""Time: the index of the grid row; true seconds; none, since in Qwen3-VL each row is a picture of
its own after a text with its time. From `get_rope_index` and `apply_interleaved_mrope` of
transformers (models/qwen2_vl, qwen2_5_vl, qwen3_vl) and the configurations of their checkpoints."""


def mrope_ids(
    positions: torch.Tensor,
    segment_ids: torch.Tensor,
    *,
    model: str,
    merge_size: int = 2,
    seconds: torch.Tensor | None = None,
    tokens_per_second: float = 2.0,
) -> torch.Tensor:
    """The ids of each vision token of a pack, in the grid after merging, from 0 in each segment.

    The m * m tokens that the model merges to one share their ids: with tokens in the order
    `merge m x m`, ``ids[:, :: m * m]`` is one a token of the language model. Add the id that
    the text before has reached.

    Args:
        positions: ``(N, 3)`` integers t, h, w of the grid before merging.
        segment_ids: ``(N,)`` integers, 0 = padding.
        model: one of `MROPE_MODELS`.
        merge_size: m.
        seconds: ``(N,)`` float64, for qwen2.5-vl, counted from the first row that the segment has.
            For even rows they may be ``positions[:, 0] * second_per_grid_t``.
        tokens_per_second: time ids a second, for qwen2.5-vl: floor(seconds * tokens_per_second).

    Returns:
        ``(3, N)`` int64 t, h, w; padding gets 0.

    Raises:
        ValueError: an unknown model, or qwen2.5-vl without seconds.
    """
    t, h, w = positions.long().unbind(dim=1)
    times = _model(model).times(t, segment_ids.long(), seconds, tokens_per_second)
    return torch.stack([times, h // merge_size, w // merge_size])


def mrope_angles(ids: torch.Tensor, *, model: str) -> torch.Tensor:
    """Angles for `apply_rope(.., pairs="halves")`: one ladder of frequencies, shared by the axes.

    Frequency i is base^(-2i / d). In Qwen2-VL and Qwen2.5-VL the first 16 turn with t, 24 with h,
    24 with w; in Qwen3-VL they alternate t, h, w up to 60, and the last four are t.

    Args:
        ids: ``(3, N)`` of vision tokens, or of text, where all three are the same.
        model: one of `MROPE_MODELS`.

    Returns:
        ``(N, 64)`` float64, for heads of d = 128 values.

    Raises:
        ValueError: an unknown model.
    """
    known = _model(model)
    axes = torch.tensor(known.axes(known.sections), device=ids.device)
    ladder = frequencies(2 * sum(known.sections), known.base).to(ids.device)
    return ids.T.double()[:, axes] * ladder


def _model(word: str) -> MropeModel:
    if word not in MROPE_MODELS:
        raise ValueError(f"unknown model {word!r}; one of {', '.join(MROPE_MODELS)}")
    return MROPE_MODELS[word]
