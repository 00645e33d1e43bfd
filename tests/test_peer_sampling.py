"""The peers' rules of which frames: against their tables, their formulas and a brute force."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import SHIFTS, TIME_BASES, brute_grid, sampled, spans

from spacepatch.errors import SourceError
from spacepatch.peer_indices import qwen2_vl_indices, qwen3_vl_indices, transformers_indices


@pytest.mark.parametrize(
    ("case", "rule"), [("qwen2_vl", qwen2_vl_indices), ("qwen3_vl", qwen3_vl_indices)]
)
def test_indices_are_those_of_the_processors_own_tables(shared: Path, case: str, rule) -> None:
    rows = json.loads((shared / "parity" / "tables.json").read_text())["sample_frames"][case]
    assert len(rows) == 80
    for row in rows:
        indices = rule(row["total_num_frames"], row["fps"], row["target_fps"])
        assert indices.tolist() == row["out"], row["total_num_frames"]


@pytest.mark.parametrize(
    ("rule", "video", "count", "begins", "last"),
    [
        (qwen2_vl_indices, (300, 30, 2), 20, [0, 15, 30], 285),
        (qwen2_vl_indices, (301, 25, 4), 48, [0, 6, 12, 18, 25, 31], 294),
        (qwen3_vl_indices, (300, 30, 2), 20, [0, 16, 31, 47, 63, 79], 299),
        (qwen3_vl_indices, (7, 30, 2), 4, [0, 2, 4, 6], 6),
        (qwen3_vl_indices, (5000, 24, 24), 768, [0, 7], 4999),
    ],
)
def test_published_cases(rule, video, count: int, begins: list[int], last: int) -> None:
    indices = rule(*video).tolist()
    assert (len(indices), indices[: len(begins)], indices[-1]) == (count, begins, last)


@given(
    num_frames=st.one_of(st.integers(2, 2000), st.integers(2, 3_000_000)),
    fps=st.floats(1, 240),
    target=st.floats(0.05, 30),
)
@settings(max_examples=500, deadline=None)
def test_qwen2_vl_is_torchs_arange_however_long_the_video(num_frames, fps, target) -> None:
    torch = pytest.importorskip("torch")
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("torch rounds these in another order here")
    most = math.floor(min(768, num_frames) / 2) * 2
    wanted = min(max(num_frames / fps * target, 4), most, num_frames)
    count = math.floor(wanted / 2) * 2
    peer = torch.arange(0, num_frames, num_frames / count).int().tolist()
    # The processor cannot take the index beyond the last frame that this can end with.
    expected = [index for index in peer if index < num_frames]
    assert qwen2_vl_indices(num_frames, fps, target).tolist() == expected


def test_an_index_beyond_the_last_frame_is_left_out() -> None:
    indices = qwen2_vl_indices(111, 111, 54).tolist()
    assert (len(indices), indices[-1]) == (54, 108)


def test_a_video_shorter_than_a_tubelet_is_taken_whole() -> None:
    assert qwen2_vl_indices(1, 30, 2).tolist() == [0]
    assert qwen3_vl_indices(1, 30, 2).tolist() == [0]
    assert qwen2_vl_indices(3, 30, 2, tubelet_size=4).tolist() == [0, 1, 2]


@given(num_frames=st.integers(1, 5000), count=st.integers(1, 5000))
@settings(max_examples=200, deadline=None)
def test_transformers_takes_the_floor_of_equal_distances(num_frames: int, count: int) -> None:
    expected = [math.floor(Fraction(k * num_frames, count)) for k in range(count)]
    assert transformers_indices(num_frames, count).tolist() == expected


# --- as samplers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("qwen2-vl", 2, [100 + k for k in range(0, 300, 15)]),
        ("qwen3-vl", 2, [100 + k for k in qwen3_vl_indices(300, 30, 2).tolist()]),
        ("transformers-fps", 2, [100 + k for k in range(0, 300, 15)]),
        ("transformers-num-frames", 7, [100, 142, 185, 228, 271, 314, 357]),
    ],
)
def test_a_rule_sees_the_frames_of_a_span_as_a_video_of_its_own(
    name: str, value: int, expected: list[int]
) -> None:
    pts = [17 + 3 * k for k in range(1000)]
    start, stop = pts[100], pts[400]
    samples = sampled(name, pts, start, stop, Fraction(1, 90), value)
    assert samples.indices.tolist() == expected
    assert samples.ticks.tolist() == [pts[k] for k in expected]
    assert samples.fps == Fraction(len(expected), 10)


@given(span=spans(), base=st.sampled_from(TIME_BASES), value=st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_the_rate_of_a_span_is_its_frames_over_its_seconds(span, base, value) -> None:
    pts, start, stop = span
    inside = [k for k, time in enumerate(pts) if start <= time < stop]
    fps = float(Fraction(len(inside)) / ((stop - start) * base))
    for name, rule in (("qwen2-vl", qwen2_vl_indices), ("qwen3-vl", qwen3_vl_indices)):
        expected = [inside[k] for k in rule(len(inside), fps, value)] if inside else []
        assert sampled(name, pts, start, stop, base, value).indices.tolist() == expected
    if inside:
        count = max(1, int(len(inside) / fps * value))
        expected = [inside[k * len(inside) // count] for k in range(count)]
        samples = sampled("transformers-fps", pts, start, stop, base, value)
        assert samples.indices.tolist() == expected


def test_a_rate_that_is_a_slip_is_refused() -> None:
    for name in ("fps", "nearest-fps", "transformers-fps"):
        with pytest.raises(SourceError, match="samples a second"):
            sampled(name, [0, 1000], 0, 2000, Fraction(1, 1000), 10**9)


# --- the nearest frame -------------------------------------------------------------------------


def nearest(pts: list[int], start: int, stop: int, times: list[Fraction]) -> list[int]:
    """The frame of the span at the least distance; of two, the earlier."""
    inside = [k for k, time in enumerate(pts) if start <= time < stop]
    return [min(inside, key=lambda k: (abs(pts[k] - at), k)) for at in times] if inside else []


@given(
    span=spans(),
    base=st.sampled_from(TIME_BASES),
    fps=st.sampled_from([Fraction(8), Fraction(30_000, 1001), Fraction(7, 3), Fraction(1, 3)]),
    shift=st.sampled_from(SHIFTS),
)
@settings(max_examples=300, deadline=None)
def test_nearest_is_the_frame_at_the_least_distance_of_time(span, base, fps, shift) -> None:
    pts, start, stop = span
    step = 1 / (fps * base)
    times = brute_grid(start + shift * min(step, stop - start), stop, step)
    samples = sampled("nearest-fps", pts, start, stop, base, fps, shift)
    assert samples.indices.tolist() == nearest(pts, start, stop, times)
    assert samples.fps == fps


@given(span=spans(), count=st.integers(1, 64))
@settings(max_examples=200, deadline=None)
def test_nearest_by_number_looks_at_equal_distances(span, count: int) -> None:
    pts, start, stop = span
    times = [start + Fraction(k * (stop - start), count) for k in range(count)]
    samples = sampled("nearest-num-frames", pts, start, stop, Fraction(1, 1000), count)
    assert samples.indices.tolist() == nearest(pts, start, stop, times)


def test_of_two_frames_as_near_the_earlier_is_taken() -> None:
    # Samples at 0, 50, 100 and 150 ms; 50 is as far from 0 as from 100.
    samples = sampled("nearest-fps", [0, 100, 149], 0, 200, Fraction(1, 1000), 20)
    assert samples.indices.tolist() == [0, 0, 1, 2]


def test_nearest_stays_exact_where_64_bits_are_not_enough() -> None:
    second = 10**9
    pts = np.arange(3600) * second
    fps = Fraction(30_000, 1001) * Fraction(10**9 + 7, 10**9 + 9)
    samples = sampled("nearest-fps", pts.tolist(), 0, 3600 * second, Fraction(1, second), fps)
    for k in (1, 999, 50_000):
        seconds = k / fps
        assert samples.indices[k] == math.ceil(seconds - Fraction(1, 2))
