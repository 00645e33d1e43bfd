"""Coordinates, tables, sinusoids and rotations, against loops and the peers' formulas restated."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from position_packs import make_pack

from spacepatch.masks import cu_seqlens
from spacepatch.positions import (
    apply_rope,
    factorized_embedding,
    fractional_coordinates,
    frame_index,
    insert_class_tokens,
    packed_table,
    raster_index,
    resize_table,
    rope_angles,
    sinusoidal,
    slice_cu_seqlens,
    vision_positions,
)

GRIDS = [(2, 4, 6), (1, 2, 2), (3, 2, 4)]


def randn(*shape, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "largest", "fractions", "kept"),
    [
        ((96, 128), (2, 3), (2 / 3, 3 / 4), (2 / 4, 3 / 4)),
        ((224, 160), (6, 4), (6 / 7, 4 / 5), (6 / 7, 4 / 7)),
    ],
)
def test_the_two_images_of_figure_16_of_navit(size, largest, fractions, kept) -> None:
    positions, ids, grid = make_pack([(1, size[0] // 32, size[1] // 32)])
    assert tuple(positions.amax(dim=0)[1:].tolist()) == largest
    own = fractional_coordinates(positions, ids, grid)
    longer = fractional_coordinates(positions, ids, grid, side="longer")
    assert own.amax(dim=0)[1:].tolist() == pytest.approx(fractions, abs=1e-15)
    assert longer.amax(dim=0)[1:].tolist() == pytest.approx(kept, abs=1e-15)
    # The end of the shorter side, one step beyond its last token: the factors of the figure.
    factor = min(size) / max(size)
    assert round(factor, 2) == {96: 0.75, 224: 0.71}[size[0]]
    step = 32 / max(size)
    assert min(longer.amax(dim=0)[1:].tolist()) + step == pytest.approx(factor, abs=1e-15)


@given(
    grids=st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    dropped=st.sets(st.integers(0, 60)),
)
@settings(max_examples=40, deadline=None)
def test_coordinates_are_what_their_sentences_say(grids, padding, dropped) -> None:
    pack = make_pack(grids, padding=padding, keep=lambda k: k not in dropped)
    positions, ids, _ = pack
    rows = zip(
        positions.tolist(),
        ids.tolist(),
        frame_index(*pack).tolist(),
        raster_index(*pack).tolist(),
        fractional_coordinates(*pack).tolist(),
        fractional_coordinates(*pack, side="longer").tolist(),
        strict=True,
    )
    for (t, h, w), segment, in_frame, in_grid, own, longer in rows:
        grid_t, grid_h, grid_w = grids[segment - 1] if segment else (1, 1, 1)
        everything = [
            (a, b, c) for a in range(grid_t) for b in range(grid_h) for c in range(grid_w)
        ]
        assert everything[in_grid] == (t, h, w)
        assert everything[in_frame] == (0, h, w)
        assert own == [t / grid_t, h / grid_h, w / grid_w]
        assert longer == [t / grid_t, h / max(grid_h, grid_w), w / max(grid_h, grid_w)]


@pytest.mark.parametrize("merge", [1, 2])
def test_positions_of_grids_are_those_of_a_whole_pack(merge) -> None:
    positions, _, grid_thw = make_pack(GRIDS, merge=merge)
    assert torch.equal(vision_positions(grid_thw, merge_size=merge), positions.long())


def test_a_grid_that_does_not_divide_into_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 4\)"):
        vision_positions(torch.tensor([[1, 3, 4]]), merge_size=2)


@pytest.mark.parametrize("merge", [1, 2])
def test_vision_towers_attend_within_slices_as_in_transformers(merge) -> None:
    positions, ids, _ = make_pack([[2, 4, 6], [1, 2, 2]], merge=merge, padding=5)
    assert slice_cu_seqlens(ids, positions).tolist() == [0, 24, 48, 52]
    assert slice_cu_seqlens(ids, positions).dtype == torch.int32


def test_borders_of_slices_stay_true_where_tokens_were_dropped() -> None:
    # Of the second row of the first video two tokens stay, and none of the third.
    positions, ids, _ = make_pack(
        [(3, 2, 2), (1, 2, 2)], keep=lambda k: k not in {5, 6, *range(8, 12)}
    )
    assert slice_cu_seqlens(ids, positions).tolist() == [0, 4, 6, 10]


def test_each_picture_is_a_slice_of_its_own() -> None:
    positions, ids, _ = make_pack([(1, 2, 2), (1, 3, 1), (2, 1, 1)])
    assert slice_cu_seqlens(ids, positions).tolist() == [0, 4, 7, 8, 9]


def test_padding_alone_has_no_slices() -> None:
    assert slice_cu_seqlens(torch.zeros(4, dtype=torch.int32), torch.zeros(4, 3)).tolist() == [0]


def test_a_factorized_embedding_is_the_sum_of_its_axes() -> None:
    positions, _, _ = make_pack(GRIDS, padding=2)
    tables = [randn(4, 5), randn(6, 5) + 1]
    out = factorized_embedding(positions[:, 1:], tables)
    for row, (_, h, w) in zip(out, positions.tolist(), strict=True):
        torch.testing.assert_close(row, tables[0][h] + tables[1][w], rtol=0, atol=0)
    with pytest.raises(ValueError, match="2 tables for 3 axes"):
        factorized_embedding(positions, tables)


def kernel_bilinear(x: float) -> float:
    return max(0.0, 1 - abs(x))


def kernel_bicubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((x - 5) * x + 8) * x * a - 4 * a if x < 2 else 0.0


def antialiased(size: int, new_size: int, mode: str) -> np.ndarray:
    """The matrix of an antialiased resize: the kernel is as wide as the step where sides shrink."""
    kernel, reach = {"bilinear": (kernel_bilinear, 1), "bicubic": (kernel_bicubic, 2)}[mode]
    step = size / new_size
    width = max(step, 1.0)
    matrix = np.zeros((new_size, size))
    for place in range(new_size):
        centre = (place + 0.5) * step
        for source in range(size):
            if abs(source + 0.5 - centre) < reach * width + 1:
                matrix[place, source] = kernel((source + 0.5 - centre) / width)
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("new_grid", [(14, 14), (3, 9), (7, 5), (10, 2), (1, 1)])
def test_a_table_is_resized_as_its_kernel_says(mode, new_grid) -> None:
    table = randn(1 + 7 * 5, 3)
    out = resize_table(table, grid=(7, 5), new_grid=new_grid, num_prefix=1, mode=mode)
    rows, columns = (antialiased(*sides, mode) for sides in zip((7, 5), new_grid, strict=True))
    expected = np.einsum("ah,bw,hwd->abd", rows, columns, table[1:].reshape(7, 5, 3).numpy())
    np.testing.assert_allclose(out[1:].numpy(), expected.reshape(-1, 3), rtol=0, atol=1e-12)
    assert torch.equal(out[0], table[0])


def test_every_grid_that_is_asked_for_is_met() -> None:
    # A scale factor of 37 / 14 would give a side of 36 or 38 for some of these.
    table = randn(14 * 14, 2)
    for side in range(1, 80):
        assert len(resize_table(table, grid=(14, 14), new_grid=(side, 37))) == side * 37


def test_a_table_in_half_precision_stays_so_and_its_own_grid_is_untouched() -> None:
    table = randn(4 * 4, 3, dtype=torch.float32).bfloat16()
    assert resize_table(table, grid=(4, 4), new_grid=(6, 6)).dtype == torch.bfloat16
    assert resize_table(table, grid=(4, 4), new_grid=(4, 4)) is table
    with pytest.raises(ValueError, match=r"16 rows is not 1 \+ 4 x 4"):
        resize_table(table, grid=(4, 4), new_grid=(6, 6), num_prefix=1)


def test_a_pack_reads_one_table_at_the_grid_of_each_segment() -> None:
    pack = make_pack([*GRIDS, (2, 4, 6)], merge=2, padding=3, keep=lambda k: k % 3)
    table = randn(3 * 3, 4).requires_grad_()
    out = packed_table(table, *pack, grid=(3, 3))
    for row, (_, h, w), segment in zip(out, pack[0].tolist(), pack[1].tolist(), strict=True):
        if segment == 0:
            assert not row.any()
            continue
        _, grid_h, grid_w = [*GRIDS, (2, 4, 6)][segment - 1]
        resized = resize_table(table, grid=(3, 3), new_grid=(grid_h, grid_w))
        assert torch.equal(row, resized.view(grid_h, grid_w, 4)[h, w])
    out.sum().backward()
    assert table.grad.abs().sum() > 0


@given(lengths=st.lists(st.integers(1, 5), max_size=5), padding=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_a_class_token_goes_before_each_segment(lengths, padding) -> None:
    positions, ids, _ = make_pack([(length, 1, 1) for length in lengths], padding=padding)
    positions = positions + torch.tensor([0, 1, 2], dtype=torch.int32)
    slots = insert_class_tokens(ids, positions, length=len(ids) + 7)
    tokens = torch.cat([torch.tensor([-1]), torch.arange(len(ids))])[slots.index]
    expected, expected_ids, expected_positions, places, k = [], [], [], [], 0
    for segment, length in enumerate(lengths, 1):
        places.append(len(expected))
        expected += [-1, *range(k, k + length)]
        expected_ids += [segment] * (1 + length)
        expected_positions += [[0, 0, 0], *positions[k : k + length].tolist()]
        k += length
    used = len(expected)
    assert tokens[:used].tolist() == expected
    assert slots.segment_ids.tolist() == expected_ids + [0] * (len(ids) + 7 - used)
    assert slots.positions[:used].tolist() == expected_positions
    assert slots.cu_seqlens.tolist() == [*places, used]
    assert torch.equal(cu_seqlens(slots.segment_ids), slots.cu_seqlens)
    assert slots.segment_ids.dtype == ids.dtype


def test_class_tokens_need_their_room() -> None:
    positions, ids, _ = make_pack([(2, 2, 2), (1, 1, 1)], padding=1)
    assert len(insert_class_tokens(ids, positions).index) == 12
    assert len(insert_class_tokens(ids, positions, length=11).index) == 11
    with pytest.raises(ValueError, match="9 tokens and 2 class tokens exceed 10"):
        insert_class_tokens(ids, positions, length=10)


def test_a_table_with_a_class_slot_is_vits() -> None:
    # One image of the table's own grid: class token and patches get rows 0, 1, .. in order.
    pack = make_pack([(1, 3, 4)])
    table = randn(1 + 12, 2)
    slots = insert_class_tokens(pack[1], pack[0])
    rows = torch.cat([table[:1], packed_table(table[1:], *pack, grid=(3, 4))])[slots.index]
    assert torch.equal(rows, table)


def test_videomae_numbers_the_whole_grid_and_alternates() -> None:
    pack = make_pack([(2, 3, 2)])
    out = sinusoidal(raster_index(*pack)[:, None], dims=(8,), layout="alternating")
    # get_sinusoid_encoding_table of VideoMAE: p / 10000^(2 (j // 2) / D), a sine where j is even.
    for p in range(12):
        for j in range(8):
            angle = p / 10000 ** (2 * (j // 2) / 8)
            assert out[p, j] == pytest.approx([math.sin, math.cos][j % 2](angle), abs=1e-7)


def test_mae_puts_the_width_first_and_sines_before_cosines() -> None:
    positions, _, _ = make_pack([(1, 3, 2)])
    out = sinusoidal(positions[:, [2, 1]], dims=(4, 4), dtype=torch.float64)
    # get_2d_sincos_pos_embed of MAE: omega_i = 1 / 10000^(i / (D/4)) for each half of D = 8.
    for row, (_, h, w) in zip(out.tolist(), positions.tolist(), strict=True):
        expected = [
            function(coordinate / 10000 ** (i / 2))
            for coordinate in (w, h)
            for function in (math.sin, math.cos)
            for i in range(2)
        ]
        assert row == pytest.approx(expected, abs=1e-15)


def test_three_axes_lie_side_by_side() -> None:
    positions, _, _ = make_pack(GRIDS)
    out = sinusoidal(positions, dims=(4, 6, 2))
    alone = [sinusoidal(positions[:, [axis]], dims=(dim,)) for axis, dim in enumerate((4, 6, 2))]
    assert torch.equal(out, torch.cat(alone, dim=1))
    assert out.dtype == torch.float32
    for dims in [(4, 6), (4, 6, 3)]:
        with pytest.raises(ValueError, match="3 axes need 3 even"):
            sinusoidal(positions, dims=dims)


@pytest.mark.parametrize("pairs", ["halves", "neighbours"])
@pytest.mark.parametrize("split", [(44, 42, 42), (16, 56, 56), (0, 40, 40), (20, 20, 20)])
@pytest.mark.parametrize("in_seconds", [False, True])
def test_a_score_depends_on_the_distance_only(pairs, split, in_seconds) -> None:
    positions, _, _ = make_pack(GRIDS)
    seconds = positions[:, 0] / 8 + 0.5 if in_seconds else None
    shift = torch.tensor([5, 11, 2])
    far = None if seconds is None else seconds + 123.5
    near = rope_angles(positions, split=split, seconds=seconds)
    away = rope_angles(positions + shift, split=split, seconds=far)
    query, key = randn(2, 2, len(positions), 128) / 128**0.25
    first, second = (
        apply_rope(query, angles, pairs=pairs) @ apply_rope(key, angles, pairs=pairs).mT
        for angles in (near, away)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    # And it does depend on the distance.
    assert (first - query @ key.mT).abs().max() > 0.1


def test_each_pair_turns_by_its_own_angle() -> None:
    positions = torch.tensor([[3, 5, 7]])
    angles = rope_angles(positions, split=(4, 2, 2), base=100.0)
    assert angles.tolist() == [[3, pytest.approx(0.3), 5, 7]]
    x = randn(1, 10)
    for pairs, places in [
        ("halves", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("neighbours", [(0, 1), (2, 3), (4, 5), (6, 7)]),
    ]:
        out = apply_rope(x, angles, pairs=pairs)
        for (i, j), angle in zip(places, angles[0].tolist(), strict=True):
            turned = complex(x[0, i], x[0, j]) * complex(math.cos(angle), math.sin(angle))
            assert complex(out[0, i], out[0, j]) == pytest.approx(turned, abs=1e-15)
        assert torch.equal(out[:, 8:], x[:, 8:])


def test_seconds_take_the_place_of_t() -> None:
    positions, _, _ = make_pack(GRIDS)
    seconds = torch.linspace(0, 9, len(positions), dtype=torch.float64) ** 2
    both = rope_angles(positions, split=(2, 2, 2), seconds=seconds)
    assert torch.equal(both[:, 0], seconds)
    assert torch.equal(both[:, 1:], positions[:, 1:].double())


def test_half_precision_stays_and_is_turned_in_float32() -> None:
    x = randn(4, 8, dtype=torch.float32)
    angles = rope_angles(torch.arange(4)[:, None] * 9999, split=(8,))
    out = apply_rope(x.bfloat16(), angles)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, apply_rope(x.bfloat16().float(), angles).bfloat16())


@pytest.mark.parametrize(
    "call",
    [
        lambda: fractional_coordinates(*make_pack(GRIDS), side="inner"),
        lambda: sinusoidal(torch.zeros(1, 1), dims=(2,), layout="inner"),
        lambda: apply_rope(torch.zeros(1, 2), torch.zeros(1, 1), pairs="inner"),
    ],
)
def test_an_unknown_word_is_refused_with_the_known_ones(call) -> None:
    with pytest.raises(ValueError, match=r"'inner'; one of \w+, \w+"):
        call()


def test_more_angles_than_a_head_has_values_are_refused() -> None:
    with pytest.raises(ValueError, match="3 angles turn 6 values, a head has 4"):
        apply_rope(torch.zeros(1, 4), torch.zeros(1, 3))


def test_the_examples_of_the_page_run(packed_folder, tmp_path, monkeypatch) -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "positions.md"
    (tmp_path / "shards").symlink_to(packed_folder)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) >= 5
