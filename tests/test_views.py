"""Views: variants of a clip, each with draws of its own, the same in every run."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from conftest import SpacepatchCli
from planned_clips import planned
from small_runs import make_dataset, rows
from stored_segments import digests, pictures_of, segments_of

from spacepatch.config import load_config
from spacepatch.data import ClipSpec
from spacepatch.decode import probe_video
from spacepatch.inspection import verify
from spacepatch.pipeline.choosing import view_rules_of

RANDOM: dict[str, Any] = {
    "fps": "2,4,8",
    "resolution": "uniform:48..112",
    "patch": "2x16x16,1x16x16,1x32x32",
    "random_crop": "uniform:0.3..1",
    "random_offset": True,
    "drop": "random:uniform:0.2..0.8",
}
"""Every setting that draws."""

FLAGS = ["--pack-length", "2048", "--shard-size", "8MB"]


def as_flags(values: dict[str, Any]) -> list[str]:
    flags = []
    for key, value in values.items():
        flags += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return flags


@pytest.fixture(scope="module")
def viewed(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four views of each sample clip, by two workers."""
    out = tmp_path_factory.mktemp("viewed") / "out"
    return make_dataset([sample_clips], out, views="4", seed=5, **RANDOM)


# --- the same everywhere -----------------------------------------------------------------------


def test_views_are_the_same_bytes_in_another_process_and_folder_and_with_one_worker(
    viewed: Path, sample_clips: Path, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    out = tmp_path / "elsewhere" / "out"
    flags = as_flags(RANDOM | {"views": 4, "seed": 5})
    done = spacepatch_cli("tokenize", sample_clips, "--out", out, *flags, *FLAGS, "--workers", "1")
    assert done.returncode == 3, done.stderr  # broken_on_purpose.mp4
    assert len(list(out.glob("*.tar"))) > 2
    assert digests(out) == digests(viewed)
    assert verify(out) == []


def drawn(clip: ClipSpec) -> tuple[object, ...]:
    """What was drawn for a clip, as a plan shows it."""
    return (
        clip.sampled_fps,
        clip.start_pts,
        clip.tubelet_size,
        clip.patch_size,
        clip.size,
        clip.fit.offset,
        clip.drop,
    )


def test_another_seed_draws_others_and_so_does_each_source_window_and_view(
    sample_clips: Path,
) -> None:
    names = ("landscape_640x360.mp4", "square_320x320.mp4")
    sources = [sample_clips / name for name in names]
    settings = RANDOM | {"views": 8, "clip_seconds": 1}
    one, again, other = (planned(*sources, seed=seed, **settings) for seed in (1, 1, 2))
    assert list(map(drawn, one)) == list(map(drawn, again))
    rates = [{clip.drop for clip in clips} for clips in (one, other)]
    # A rate has six digits: of these few no two are equal by chance.
    assert len(rates[0]) == len(one) > 40
    assert not rates[0] & rates[1]
    for position in (0, 2, 4):  # rate, tubelet and size of the same clip under the other seed
        pairs = [(drawn(a)[position], drawn(b)[position]) for a, b in zip(one, other, strict=False)]
        assert sum(a != b for a, b in pairs) > len(pairs) // 4


@pytest.mark.parametrize(
    ("setting", "constant", "fields"),
    [
        ("fps", "4", {"value"}),
        ("resolution", "64", {"size_value"}),
        ("patch", "2x16x16", {"tubelet_size", "patch_size"}),
        ("random_crop", None, {"share", "place"}),
        ("random_offset", False, {"shift"}),
        ("drop", None, {"drop"}),
    ],
)
def test_one_random_setting_does_not_change_what_the_others_draw(
    setting: str, constant: Any, fields: set[str]
) -> None:
    def views(settings: dict[str, Any]) -> list[dict[str, Any]]:
        made = view_rules_of(load_config({**settings, "views": "16"})).draw("a key", 3)
        return [{name: getattr(view, name) for name in view.__slots__} for view in made]

    changed: Counter[str] = Counter()
    for one, other in zip(views(RANDOM), views(RANDOM | {setting: constant}), strict=True):
        changed.update(name for name in one if one[name] != other[name])
    assert set(changed) == fields


def test_what_one_setting_draws_says_nothing_of_what_another_does() -> None:
    ranges = {
        "fps": "uniform:2..8",
        "resolution": "uniform:48..112",
        "random_crop": "uniform:0.3..1",
        "drop": "random:uniform:0.2..0.8",
    }
    views = view_rules_of(load_config(RANDOM | ranges | {"views": 256})).draw("a key", 0)
    columns = [
        (view.value, view.size_value, view.share, view.shift, *view.place, view.drop.rate(1000))
        for view in views
    ]
    correlations = np.corrcoef(np.array(columns, np.float64).T)[np.triu_indices(7, 1)]
    # Four standard deviations of 256 pairs that are independent.
    assert np.abs(correlations).max() < 4 / math.sqrt(256)


# --- inside the distribution -------------------------------------------------------------------

NUM_DRAWS = 256
"""The most views of a clip."""


def assert_follows(values: list[float], share_below: Callable[[float], float]) -> None:
    """Kolmogorov and Smirnov's distance stays below what 1 in 10,000 samples exceed."""
    values, n = sorted(values), len(values)
    distance = max(
        max(abs(share_below(value) - k / n), abs(share_below(value) - (k + 1) / n))
        for k, value in enumerate(values)
    )
    assert distance < 2.23 / math.sqrt(n)


def linear(low: float, high: float) -> Callable[[float], float]:
    return lambda value: min(max((value - low) / (high - low), 0.0), 1.0)


def navit(low: float, high: float, *, power: int = 1) -> Callable[[float], float]:
    """u ~ N(-0.5, 1) given that it lies in [-1, 1], mapped to a side or to its square."""
    normal = NormalDist(-0.5, 1)

    def share(value: float) -> float:
        u = 2 * linear(low**power, high**power)(value**power) - 1
        return (normal.cdf(u) - normal.cdf(-1)) / (normal.cdf(1) - normal.cdf(-1))

    return share


SIDES = {
    "uniform:32..256": linear(32, 256),
    "truncnormal:-0.5,1:32..256": navit(32, 256),
    "truncnormal:-0.5,1:32..256:area": navit(32, 256, power=2),
}


@pytest.mark.parametrize("text", SIDES)
def test_resolutions_are_of_the_distribution_at_native_aspect(
    sample_clips: Path, text: str
) -> None:
    # Patches of one pixel: sizes are rounded no further.
    clips = planned(
        sample_clips / "landscape_640x360.mp4",
        resolution=text,
        num_frames=1,
        patch="1x1x1",
        views=NUM_DRAWS,
    )
    assert len(clips) == NUM_DRAWS
    sides = []
    for clip in clips:
        height, width = clip.size
        side = math.sqrt(height * width)
        # Each side is half a pixel off at most.
        assert abs(height - side * 0.75) <= 1 and abs(width - side / 0.75) <= 1
        assert 31 < side < 257
        sides.append(side)
    assert_follows(sides, SIDES[text])


def test_distributions_that_are_not_the_one_asked_for_would_be_found(sample_clips: Path) -> None:
    clips = planned(
        sample_clips / "square_320x320.mp4",
        resolution="truncnormal:-0.5,1:32..256",
        num_frames=1,
        patch="1x1x1",
        views=NUM_DRAWS,
    )
    sides = [float(clip.size[0]) for clip in clips]
    for other in ("uniform:32..256", "truncnormal:-0.5,1:32..256:area"):
        with pytest.raises(AssertionError):
            assert_follows(sides, SIDES[other])


def test_rates_are_of_the_list_or_the_range(sample_clips: Path) -> None:
    source = sample_clips / "square_320x320.mp4"
    small = {"max_tokens_per_frame": 4, "views": NUM_DRAWS}
    listed = Counter(clip.sampled_fps for clip in planned(source, fps="2,4,8", **small))
    assert set(listed) == {2, 4, 8}
    assert min(listed.values()) > NUM_DRAWS / 3 * 0.7
    clips = planned(source, fps="uniform:2..8", **small)
    assert_follows([float(clip.sampled_fps) for clip in clips], linear(2, 8))
    for clip in clips:
        # 3.003 s of the stream, a sample at k / fps of its own rate.
        assert len(clip.frame_pts) == math.ceil(Fraction(3003, 1000) * clip.sampled_fps)


def test_patches_are_those_of_the_list_each_as_likely(sample_clips: Path) -> None:
    patches = {(2, 16, 16), (1, 32, 32), (4, 8, 8), (1, 8, 16)}
    clips = planned(
        sample_clips / "square_320x320.mp4",
        patch=",".join(f"{t}x{p}x{q}" for t, p, q in patches),
        num_frames=4,
        resolution=64,
        views=NUM_DRAWS,
    )
    found = Counter((clip.tubelet_size, *clip.patch_size) for clip in clips)
    assert set(found) == patches
    assert min(found.values()) > NUM_DRAWS / 4 * 0.7
    for clip in clips:
        assert clip.grid_thw == (4 // clip.tubelet_size, *(64 // side for side in clip.patch_size))


def test_crops_are_a_share_of_the_area_anywhere_in_the_picture(sample_clips: Path) -> None:
    clips = planned(
        sample_clips / "landscape_640x360.mp4",
        random_crop="uniform:0.1..0.9",
        native=True,
        num_frames=1,
        patch="1x1x1",
        views=NUM_DRAWS,
    )
    shares, down, right = [], [], []
    for clip in clips:
        top, left, height, width = clip.fit.crop
        assert clip.fit.scaled == (360, 640)
        assert 0 <= top <= 360 - height and 0 <= left <= 640 - width
        assert abs(width / height - 640 / 360) < 0.02
        shares.append(height * width / (360 * 640))
        down.append(top / (360 - height))
        right.append(left / (640 - width))
    assert_follows(shares, linear(0.1, 0.9))
    assert_follows(down, linear(0, 1))
    assert_follows(right, linear(0, 1))


@pytest.mark.parametrize("setting", [{"fps": "4"}, {"num_frames": 5}])
def test_a_random_offset_is_one_part_of_a_sample_distance_for_a_clip(
    sample_clips: Path, setting: dict[str, Any]
) -> None:
    source = sample_clips / "variable_frame_rate_480x270.mp4"
    small = {"max_tokens_per_frame": 4, **setting}
    clips = planned(source, random_offset=True, views=NUM_DRAWS, **small)
    (plain,) = planned(source, **small)
    start, stop = plain.start_pts, plain.stop_pts
    second = 1 / probe_video(str(source)).time_base
    step = second / 4 if "fps" in setting else Fraction(stop - start, 5)
    offsets = []
    for clip in clips:
        # sample_pts[k] = floor(start + (k + u) step): every sample says where u can lie.
        low = max(Fraction(int(t) - start) / step - k for k, t in enumerate(clip.sample_pts))
        high = min(Fraction(int(t) + 1 - start) / step - k for k, t in enumerate(clip.sample_pts))
        assert low < high
        assert 0 <= low < 1
        assert clip.start_pts == clip.sample_pts[0]
        # As many as there is room for.
        last = start + (len(clip.sample_pts) - 1 + low) * step
        assert last < stop <= last + (1 + high - low) * step
        offsets.append(float(low))
    assert_follows(offsets, linear(0, 1))


# --- as they are stored ------------------------------------------------------------------------


def test_a_view_is_a_segment_of_its_own_that_names_the_clip_it_varies(viewed: Path) -> None:
    stored = rows(viewed, "segments.parquet")
    assert len({row["segment_id"] for row in stored}) == len(stored)
    by_source = defaultdict(list)
    for row in stored:
        by_source[row["source"]].append(row)
    assert len(by_source) == 10
    for views in by_source.values():
        assert sorted(row["view"] for row in views) == [0, 1, 2, 3]
        assert sorted(row["clip"] for row in views) == [0, 1, 2, 3]
        (first,) = (row["clip"] for row in views if row["view"] == 0)
        assert {row["view_of"] for row in views} == {first}
    assert len({row["drop"] for row in stored}) == 40
    for key in ("tubelet_size", "patch_size", "sampled_fps"):
        several = [len({str(row[key]) for row in views}) > 1 for views in by_source.values()]
        assert sum(several) > 5, key


def test_frames_of_a_view_are_those_on_display_at_its_own_times(
    viewed: Path, sample_clips: Path
) -> None:
    for row in rows(viewed, "segments.parquet"):
        if row["sampled_fps"] is None:
            continue  # the still picture
        info = probe_video(str(sample_clips / row["source"]))
        step = 1 / (Fraction(row["sampled_fps"]) * info.time_base)
        origin = int(info.frame_pts[0])
        count = len(row["frame_indices"])
        shift = Fraction(row["clip_start_pts"] - origin) / step
        for k, index in enumerate(row["frame_indices"]):
            # The offset is known to a tick: where a frame begins in that tick, both will do.
            times = [origin + (k + shift) * step, origin + (k + shift) * step + 1]
            shown = [sum(int(pts) <= time for pts in info.frame_pts) - 1 for time in times]
            assert shown[0] <= index <= shown[1]
        assert count == len(row["frame_pts"]) > 0


def test_views_all_takes_each_patch_of_the_list_once(sample_clips: Path, tmp_path: Path) -> None:
    patches = [(1, 32, 32), (1, 16, 16), (2, 8, 8)]
    text = ",".join(f"{t}x{p}x{q}" for t, p, q in patches)
    out = make_dataset(
        [sample_clips / "landscape_640x360.mp4"],
        tmp_path / "out",
        patch=text,
        views="all",
        fps="2",
        resolution=96,
        fit="crop",
    )
    stored = segments_of(out)
    assert verify(out) == []
    found = {
        view: (one.row["tubelet_size"], *one.row["patch_size"])
        for (_, _, view), one in stored.items()
    }
    assert found == dict(enumerate(patches))
    for (t, p, q), one in zip(patches, (stored[key] for key in sorted(stored)), strict=True):
        assert one.tokens.shape[1] == 3 * t * p * q
        assert pictures_of(one).shape == (8, *one.row["size"], 3)
