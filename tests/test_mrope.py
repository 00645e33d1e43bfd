"""M-RoPE against the formulas of transformers, restated here in loops."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from position_packs import make_pack

from spacepatch.positions import apply_rope, mrope_angles, mrope_ids

GRIDS = [(4, 4, 6), (1, 2, 2), (3, 2, 4)]


def reference_ids(grids, merge, time_of):
    """get_rope_index of Qwen2-VL: (t, h, w) of the merged grid; `time_of(segment, t)`."""
    return [
        (time_of(segment, t), h, w)
        for segment, (grid_t, grid_h, grid_w) in enumerate(grids)
        for t in range(grid_t)
        for h in range(grid_h // merge)
        for w in range(grid_w // merge)
    ]


@pytest.mark.parametrize(
    ("model", "time_of"), [("qwen2-vl", lambda s, t: t), ("qwen3-vl", lambda s, t: 0)]
)
def test_ids_are_those_of_the_merged_grid(model, time_of) -> None:
    positions, ids, _ = make_pack(GRIDS, merge=2, padding=4)
    out = mrope_ids(positions, ids, model=model)
    assert out.dtype == torch.int64 and out.shape == (3, len(ids))
    expected = [*reference_ids(GRIDS, 2, time_of), (0, 0, 0)]
    assert out[:, ::4].T.tolist() == [list(row) for row in expected]
    # All four tokens of a block share them.
    assert torch.equal(out, out[:, ::4].repeat_interleave(4, dim=1))


@pytest.mark.parametrize("per_grid", [0.5, 1.0, 0.25, 2.0])
def test_even_rows_have_the_time_ids_of_second_per_grid(per_grid) -> None:
    positions, ids, _ = make_pack(GRIDS, merge=2)
    out = mrope_ids(positions, ids, model="qwen2.5-vl", seconds=positions[:, 0] * per_grid)
    # t_index = (arange(t) * second_per_grid_t * tokens_per_second).long()
    expected = reference_ids(GRIDS, 2, lambda s, t: int(t * per_grid * 2))
    assert out[:, ::4].T.tolist() == [list(row) for row in expected]


@pytest.mark.parametrize("fps", [Fraction(1, 2), Fraction(10), Fraction(30000, 1001), Fraction(60)])
@pytest.mark.parametrize("rate", [2, 4, 25])
@pytest.mark.parametrize("start", [Fraction(0), Fraction(1), Fraction(36001, 10)])
def test_time_ids_are_the_floor_of_the_true_time(fps, rate, start) -> None:
    # Rational arithmetic as reference; the packs hold what float64 makes of it.
    positions, ids, _ = make_pack([(200, 1, 1), (120, 1, 1)], padding=2)
    times = [start + t / fps for t in range(200)] + [5 + 3 * t / fps for t in range(120)]
    seconds = torch.tensor([float(time) for time in times] + [0.0, 0.0], dtype=torch.float64)
    out = mrope_ids(
        positions,
        ids,
        model="qwen2.5-vl",
        merge_size=1,
        seconds=seconds,
        tokens_per_second=float(rate),
    )
    expected = [int(t / fps * rate) for t in range(200)]
    expected += [int(3 * t / fps * rate) for t in range(120)]
    assert out[0].tolist() == [*expected, 0, 0]


def test_seconds_are_needed_where_they_are_counted() -> None:
    positions, ids, _ = make_pack(GRIDS)
    with pytest.raises(ValueError, match="pass seconds"):
        mrope_ids(positions, ids, model="qwen2.5-vl")
    with pytest.raises(ValueError, match=r"'qwen'; one of qwen2-vl, qwen2\.5-vl, qwen3-vl"):
        mrope_ids(positions, ids, model="qwen")


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def reference_cos_sin(ids, sections, base, interleaved):
    """cos and sin over all 128 values, as the three models make them."""
    inverse = 1.0 / base ** (torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    freqs = ids.double()[:, :, None] * inverse  # (3, N, 64)
    if interleaved:
        # apply_interleaved_mrope: h at 1, 4, .. and w at 2, 5, .. below 3 * section.
        mixed = freqs[0].clone()
        for axis in (1, 2):
            for place in range(axis, 3 * sections[axis], 3):
                mixed[:, place] = freqs[axis][:, place]
        both = torch.cat([mixed, mixed], dim=-1)
        return both.cos(), both.sin()
    # apply_multimodal_rotary_pos_emb: the sections twice over, the i-th from axis i % 3.
    both = torch.cat([freqs, freqs], dim=-1)
    return tuple(
        torch.cat(
            [part[i % 3] for i, part in enumerate(whole.split(list(sections) * 2, dim=-1))], dim=-1
        )
        for whole in (both.cos(), both.sin())
    )


@pytest.mark.parametrize(
    ("model", "sections", "base", "interleaved"),
    [
        ("qwen2-vl", (16, 24, 24), 1e6, False),
        ("qwen2.5-vl", (16, 24, 24), 1e6, False),
        ("qwen3-vl", (24, 20, 20), 5e6, True),
    ],
)
def test_queries_turn_as_in_the_model(model, sections, base, interleaved) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 500, (3, 50), generator=generator)
    query = torch.randn(2, 50, 128, dtype=torch.float64, generator=generator)
    cos, sin = reference_cos_sin(ids, sections, base, interleaved)
    expected = query * cos + rotate_half(query) * sin
    out = apply_rope(query, mrope_angles(ids, model=model))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    # Every axis has as many frequencies as its section says.
    for axis, count in enumerate(sections):
        alone = torch.zeros(3, 1, dtype=torch.int64)
        alone[axis] = 1
        assert mrope_angles(alone, model=model).count_nonzero() == count


def test_text_turns_as_in_a_language_model() -> None:
    # Where all three ids agree, M-RoPE is the 1-D RoPE.
    ids = torch.arange(7).expand(3, 7)
    ladder = [1e6 ** (-2 * i / 128) for i in range(64)]
    expected = torch.tensor([[p * each for each in ladder] for p in range(7)], dtype=torch.float64)
    torch.testing.assert_close(mrope_angles(ids, model="qwen2-vl"), expected, rtol=1e-14, atol=0)
