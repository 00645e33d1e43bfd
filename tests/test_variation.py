"""What a segment of references is made of in an epoch: drawn by key, within its planned tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned_clips import planned

from spacepatch.config import load_config
from spacepatch.data import ClipSpec, VideoInfo
from spacepatch.jobs import planned_tokens
from spacepatch.loader.variation import Variation, Varying
from spacepatch.loader.varied_clips import on_display, planned_drop
from spacepatch.pipeline import make_plan
from spacepatch.pipeline.job_settings import token_settings
from spacepatch.rowdrops import dropper_of

DATASETS: dict[str, dict[str, Any]] = {
    "default": {},
    "rate": {"fps": "29.97", "patch": "1x16x16", "random_offset": True, "clip_seconds": "1.3"},
    "number": {"num_frames": 7, "tail": "pad"},
    "every-frame": {"every_frame": True, "max_tokens_per_frame": 40},
    "stride": {"stride": 3, "short_side": 96, "crop": "96x96"},
    "keyframes": {"keyframes": True, "patch": "1x8x32"},
    "nearest": {"sampler": "nearest", "fps": "5", "tail": "drop", "patch": "3x16x16"},
    "dropped": {"drop": "random:0.7", "random_crop": "0.5", "resolution": "uniform:64..200"},
    "by-length": {"drop": "random:length:0.2..0.6:64..1024", "views": "3", "patch": "1x16x16"},
    "tokens": {"drop": "tokens:100", "fit": "pad", "buckets": "16:9,1:1", "resolution": "160"},
    "merged": {"order": "merge 2 x 2", "multiple": 2, "pixels": "10000..60000", "upscale": True},
    "cut": {"cut_to_fit": True, "pack_length": 512, "patch": "1x16x16"},
    "pieces": {"pack_length": 600, "video_pixels": "100000..2000000", "fit": "crop"},
}
"""Every way to sample, size, drop and cut."""

Planned = tuple[ClipSpec, VideoInfo]


@pytest.fixture(scope="module", params=DATASETS)
def dataset(request: pytest.FixtureRequest, sample_clips: Path) -> tuple[dict, list[Planned]]:
    """Effective settings, and some clips of every sample that is planned with them."""
    config = load_config({"pack_length": 4096, "workers": 2} | DATASETS[request.param])
    plan = make_plan([str(sample_clips)], config=config).whole()
    clips = [(clip, plan.sources[clip.source].info) for task in plan.tasks for clip in task.clips]
    return plan.settings, clips[:: max(1, len(clips) // 40)]


def distributions(least: float, most: float) -> st.SearchStrategy[str]:
    number = st.integers(int(least * 100), int(most * 100)).map(lambda value: value / 100)
    pair = st.tuples(number, number).filter(lambda pair: pair[0] < pair[1])
    return number.map(str) | pair.map(lambda pair: f"uniform:{pair[0]}..{pair[1]}")


VARIATIONS = st.fixed_dictionaries(
    {},
    optional={
        "random_crop": distributions(0.01, 1),
        "resolution": distributions(1, 600),
        "fps": distributions(0.01, 60),
        "patch": st.sampled_from(["1x16x16", "2x32x8", "1x8x8,3x16x16", "2x48x48,1x14x14"]),
        "drop": st.sampled_from(["random:uniform:0..0.95", "tokens:50", "random:0"]),
    },
)


def vary(variation: dict, dataset: dict, clip: Planned, epoch: int, budget: int, name="a"):
    """What is made of a clip; `name` is the id of its segment."""
    varying = Varying(Variation(**variation), dataset, seed=3)
    segment = {"segment_id": name, "num_kept": budget}
    patch = varying.patch_of("shard-000000", 5, epoch)
    return varying.clip(clip[0], segment, clip[1], epoch=epoch, patch=patch), varying


def fields_of(clip: ClipSpec) -> list[Any]:
    values = [getattr(clip, name) for name in clip.__dataclass_fields__]
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


@given(variation=VARIATIONS, data=st.data(), epoch=st.integers(0, 9))
def test_a_varied_clip_has_tokens_within_its_budget_of_planned_frames_alone(
    dataset, variation, data, epoch
) -> None:
    settings, clips = dataset
    clip, info = data.draw(st.sampled_from(clips))
    budget = data.draw(st.just(clip.num_kept) | st.integers(1, clip.num_kept))
    try:
        varied, varying = vary(variation, settings, (clip, info), epoch, budget)
    except ValueError as error:
        assert "patch" in variation, error
        assert settings["tail"] == "drop" or settings["crop"] or settings["video_pixels"]
        return
    assert 1 <= varied.num_kept <= budget
    # The writer, which counts rows and tokens by itself, has as many.
    asked = token_settings(settings, token_dtype="uint8")
    (made,) = planned_tokens([varied], ["id"], asked).clips
    assert made.num_kept == varied.num_kept
    assert made.grid_t == varied.grid_thw[0]
    samples = list(zip(clip.sample_pts, clip.frame_pts, clip.frame_indices, strict=True))
    taken = zip(varied.sample_pts, varied.frame_pts, varied.frame_indices, strict=True)
    rest = iter(samples)
    assert all(sample in rest for sample in taken), "planned samples, each once, in order"
    assert varied.start_pts == clip.start_pts < varied.stop_pts <= clip.stop_pts
    frames, (height, width) = varied.tubelet_size, varied.patch_size
    if varying.patches is None:
        assert (frames, height, width) == (clip.tubelet_size, *clip.patch_size)
    else:
        assert (frames, height, width) in varying.patches.patches
    fit, multiple = varied.fit, settings["multiple"]
    assert fit.size[0] % (height * multiple) == fit.size[1] % (width * multiple) == 0
    assert varied.grid_thw[1:] == (fit.size[0] // height, fit.size[1] // width)
    assert all(o + min(n, s) <= s for o, n, s in zip(fit.offset, fit.size, fit.scaled, strict=True))
    if not variation.keys() & {"random_crop", "resolution", "patch"}:
        assert fit == clip.fit
    if not variation.keys() - {"drop"}:
        assert len(varied.frame_pts) == len(clip.frame_pts) or budget < clip.num_kept
    again, _ = vary(variation, settings, (clip, info), epoch, budget)
    assert fields_of(again) == fields_of(varied)


def test_nothing_varied_that_matters_is_the_clip_as_it_was_planned(dataset) -> None:
    settings, clips = dataset
    for clip, info in clips:
        varied, _ = vary({"fps": "1000"}, settings, (clip, info), 0, clip.num_kept)
        assert fields_of(varied) == fields_of(clip)


RANDOM = {
    "random_crop": "uniform:0.3..1",
    "resolution": "uniform:64..160",
    "fps": "uniform:2..8",
    "patch": "1x16x16,2x16x16",
    "drop": "random:uniform:0..0.5",
}


@pytest.fixture(scope="module")
def clip(sample_clips: Path) -> tuple[dict, Planned]:
    config = load_config({"pack_length": 4096, "workers": 1})
    plan = make_plan([str(sample_clips / "landscape_640x360.mp4")], config=config).whole()
    return plan.settings, (plan.tasks[0].clips[0], plan.sources[0].info)


@pytest.mark.parametrize("key", [*RANDOM, "all"])
def test_each_epoch_and_each_segment_has_draws_of_its_own(clip, key) -> None:
    settings, one = clip
    variation = RANDOM if key == "all" else {key: RANDOM[key]}
    made = [
        fields_of(vary(variation, settings, one, epoch, one[0].num_kept, name)[0])
        for epoch in range(12)
        for name in "ab"
    ]
    different = sum(value not in made[:place] for place, value in enumerate(made))
    # Patches are those of packs; sides are whole patches, so that few of them differ.
    assert different >= {"patch": 2, "resolution": 6}.get(key, 20)


def test_one_setting_does_not_shift_what_another_draws(clip) -> None:
    settings, one = clip
    alone, _ = vary({"drop": RANDOM["drop"]}, settings, one, 4, 10**6)
    beside, _ = vary(RANDOM, settings, one, 4, 10**6)
    assert alone.drop == beside.drop is not None


def test_a_frame_that_would_have_too_many_tokens_gets_smaller_and_keeps_its_window(clip) -> None:
    settings, (own, info) = clip
    free = {"random_crop": "0.5", "resolution": "300"}
    large, _ = vary(free, settings, (own, info), 0, 10**6)
    budget = own.num_kept // 2
    small, _ = vary(free, settings, (own, info), 0, budget)
    assert len(small.frame_pts) == len(own.frame_pts), "no frame goes"
    assert 0.8 * budget < small.num_kept <= budget < large.num_kept
    for side in (0, 1):
        for of in (lambda fit, n: fit.offset[n], lambda fit, n: fit.offset[n] + fit.size[n]):
            where = [of(fit, side) / fit.scaled[side] for fit in (large.fit, small.fit)]
            assert abs(where[0] - where[1]) < 0.02


def test_the_last_rows_go_where_the_planned_frame_has_too_many_tokens(clip) -> None:
    settings, (own, info) = clip
    budget = 3 * own.cells + 1
    varied, _ = vary({"fps": "1000"}, settings, (own, info), 0, budget)
    assert varied.grid_thw == (3, *own.grid_thw[1:])
    assert varied.frame_pts.tolist() == own.frame_pts[:6].tolist()
    assert varied.stop_pts == own.sample_pts[6]
    fewest, _ = vary({"fps": "1000"}, settings, (own, info), 0, 5)
    assert (fewest.num_kept, fewest.drop, len(fewest.frame_pts)) == (5, "tokens 5", 2)


@pytest.mark.parametrize("rate", ["4", "2", "1", "8/3"])
@pytest.mark.parametrize(
    "name",
    ["landscape_640x360.mp4", "variable_frame_rate_480x270.mp4", "odd_size_321x179_vp9.webm"],
)
def test_a_rate_that_divides_the_planned_one_takes_the_frames_that_tokenize_would_take(
    sample_clips, name, rate
) -> None:
    source, config = sample_clips / name, load_config({"fps": "8", "pack_length": 2**16})
    plan = make_plan([str(source)], config=config).whole()
    (own,), info = plan.tasks[0].clips, plan.sources[0].info
    (theirs,) = planned(source, fps=rate, pack_length=2**16)
    varied, _ = vary({"fps": rate}, plan.settings, (own, info), 0, own.num_kept)
    assert varied.frame_indices.tolist() == theirs.frame_indices.tolist()
    assert varied.frame_pts.tolist() == theirs.frame_pts.tolist()
    assert varied.sampled_fps == theirs.sampled_fps


def test_windows_whose_starts_the_clock_rounds_take_every_second_sample_at_half_the_rate(
    sample_clips,
) -> None:
    config = load_config({"fps": "29.97", "clip_seconds": "0.7", "pack_length": 2**16})
    plan = make_plan([str(sample_clips)], config=config).whole()
    clips = [clip for task in plan.tasks for clip in task.clips]
    assert any(clip.start_pts for clip in clips)
    for own in clips:
        info = plan.sources[own.source].info
        varied, _ = vary({"fps": "14.985"}, plan.settings, (own, info), 0, own.num_kept)
        assert varied.sample_pts.tolist() == own.sample_pts[::2].tolist()


@given(
    times=st.lists(st.integers(0, 60), min_size=1, max_size=12).map(sorted),
    more=st.integers(0, 20),
    step=st.fractions(Fraction(1, 7), 30, max_denominator=30),
)
def test_what_is_on_display_is_the_last_sample_that_is_not_after_each_time(
    times, more, step
) -> None:
    stop = times[-1] + more
    shown, time = set(), Fraction(times[0])
    while time < stop:
        shown.add(max(place for place, start in enumerate(times) if start <= time))
        time += step
    assert on_display(times, stop, step).tolist() == (sorted(shown) or [0])


def test_the_shares_and_rates_that_are_drawn_cover_their_range(clip) -> None:
    settings, one = clip
    made = [vary(RANDOM, settings, one, epoch, 10**6, str(epoch))[0] for epoch in range(300)]
    rates = [float(clip.sampled_fps) for clip in made]
    assert min(rates) < 2.3 and max(rates) == 8
    shares = [
        math.prod(min(a, b) / b for a, b in zip(clip.fit.size, clip.fit.scaled, strict=True))
        for clip in made
    ]
    assert min(shares) < 0.4 and max(shares) > 0.9
    assert abs(np.mean([clip.tubelet_size == 1 for clip in made]) - 0.5) < 0.1
    kept = [clip.num_kept / clip.num_tokens for clip in made]
    assert abs(np.mean(kept) - 0.75) < 0.03


def test_a_planned_drop_is_read_as_it_was_drawn(sample_clips: Path) -> None:
    for drop in ("random:uniform:0.1..0.9", "random:length:0.2..0.6:64..1024", "tokens:77"):
        for clip in planned(sample_clips, drop=drop, views="3"):
            drawn = planned_drop(clip.drop)
            assert drawn.num_kept(clip.num_tokens) == clip.num_kept
            assert str(drawn.at(clip.num_tokens)) == clip.drop
    assert planned_drop(None) is None


def test_a_planned_drop_keeps_the_very_tokens_in_every_epoch_unless_drop_is_varied(clip) -> None:
    settings, (own, info) = clip
    settings = settings | {"drop": "random:0.5"}
    own = replace(own, drop="random 0.5", num_kept=own.num_tokens // 2)
    varied, varying = vary({"fps": "100"}, settings, (own, info), 3, own.num_kept)
    identity = varying.clip_id("planned", {"segment_id": "a"}, 3)
    nothing = np.empty(0)
    kept = [dropper_of(one, None, identity).keep(0, nothing, nothing) for one in (own, varied)]
    assert np.array_equal(*kept)
    other = Varying(Variation(drop="random:0.5"), settings, seed=3)
    ids = {other.clip_id("planned", {"segment_id": name}, e) for name in "ab" for e in (0, 1)}
    assert len(ids | {"planned"}) == 5


@pytest.mark.parametrize(
    ("variation", "message"),
    [
        ({"zoom": "1"}, "vary: zoom: it takes random_crop, resolution, fps, patch, drop"),
        ({"resolution": "0"}, "resolution.*above 0"),
        ({"resolution": "uniform:9..1"}, "resolution 'uniform:9..1'.*LO is below HI"),
        ({"random_crop": "uniform:0.001..1"}, "random_crop.*0.01 at least"),
        ({"fps": "quick"}, "fps 'quick'.*none of"),
        ({"patch": "16x16"}, "patch '16x16'.*frames x height x width"),
        ({"patch": "1x8x8,1x8x8"}, "names a patch twice"),
        ({"drop": "random:1"}, "drop 'random:1'.*below 1"),
        ({"drop": "static:0.1"}, "drop 'static:0.1': how many tokens stand still"),
    ],
)
def test_what_cannot_be_varied_is_refused_by_name(variation, message) -> None:
    with pytest.raises(ValueError, match=message):
        Variation.of(variation)


@pytest.mark.parametrize(
    ("settings", "variation", "message"),
    [
        ({"layout": "c p q", "patch": "1x16x16"}, {"patch": "2x16x16"}, "has no t"),
        ({"tail": "drop"}, {"patch": "2x8x8,4x16x16"}, "tail drop .* 2 frames .* 4 would leave"),
        ({"short_side": 224, "crop": "224x224"}, {"patch": "1x48x48"}, "crop 224x224 is no multip"),
        ({"video_pixels": "1..1000000"}, {"patch": "1x16x8"}, "square patches"),
        ({"drop": "static", "store": "refs", "checked": True}, {"fps": "1"}, "static tubelets"),
    ],
)
def test_what_contradicts_the_settings_of_the_dataset_is_refused(
    settings, variation, message
) -> None:
    effective = load_config(settings).effective()
    with pytest.raises(ValueError, match=message):
        Varying(Variation(**variation), effective, seed=0)


def test_nothing_to_vary_is_no_variation() -> None:
    assert Variation.of({}) is None is Variation.of(None)
    assert Variation.of(Variation()) is None
    assert Variation.of({"fps": 4, "resolution": None}).settings == {"fps": "4"}
