"""Decode a sample of segments, and hold it against the sources that they were made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.config import RunConfig
from spacepatch.config.stores import floor_of
from spacepatch.data import ClipSpec
from spacepatch.environment import environment
from spacepatch.errors import ConfigError, ShardError
from spacepatch.inspection.comparing import Compared, compare_segment
from spacepatch.inspection.decoded import Decoded, DecodedSegment
from spacepatch.inspection.folders import read_batches, read_finished
from spacepatch.inspection.given_encoder import given_encoder
from spacepatch.inspection.segment_tokens import Request
from spacepatch.jobs import Job
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.limits import available_cores
from spacepatch.pipeline.encoded import measured
from spacepatch.pipeline.job_settings import token_settings
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planfile import read_plan
from spacepatch.pipeline.segments import clip_id
from spacepatch.pipeline.whole import make_pool
from spacepatch.randomness import Draws
from spacepatch.remote import shown
from spacepatch.shards import SEGMENTS, shard_stem
from spacepatch.source_roots import SourceRoots
from spacepatch.stored_frames import patch_pixels
from spacepatch.workers import Fault

DRIFT_OF_SUMS = 0.01
"""How far (see `Compared.apart`) what a network makes may be from what is stored, where versions
and settings are the same: another processor sums in another order, by some 1e-6."""
DRIFT = {"pixels": 0.01, "latents": 0.05, "codes": 0.5}
"""The same where versions differ (a decoder rounds some pixels to the next level, which 0.01 of
pixels, 40 dB, is far beyond), or where the encoder computes in bfloat16 or float16. Latents that
are scaled twice are 0.15 apart at least, and those of other frames above 1."""


def decode_segments(
    folder: Path,
    *,
    num_segments: int,
    config: RunConfig,
    roots: Mapping[int, str],
    chosen: Sequence[dict[str, Any]] | None = None,
    make_again: bool = True,
    num_shown: int = 0,
) -> Decoded:
    """Decode some segments, spread over a finished dataset, always the same ones.

    Args:
        num_segments: how many of them.
        chosen: instead of these, the segments of so many rows of segments.parquet.
        config: where the encoder is and how it computes (what is not set is as the dataset says),
            and what workers may take.
        roots: where sources lie, see `SourceRoots`.
        make_again: hold the tokens against those that the sources give now; every source that the
            sample needs must be at hand then. Else sources are for their frames only.
        num_shown: frames of each segment to be sent back. Where pixel tokens
            lie beside those of an encoder, they can be shown without it.

    Raises:
        ShardError: no finished dataset, or a damaged one.
        ConfigError: the sources or the encoder are not said, or the encoder cannot decode.
        EncodeError: the encoder is not that of the dataset.
        MissingDependencyError: a package is missing.
    """
    dataset = read_finished(folder)
    try:
        plan = read_plan(folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShardError(f"{folder}: plan.json or plan.parquet is damaged ({error!r})") from None
    places = SourceRoots(roots, allow_network=config.allow_network)
    rows, notes = chosen, list[str]()
    if rows is None:
        rows, notes = choose_segments(folder, plan, num_segments)
    if not rows:
        raise ShardError(f"{folder}: holds no segments")
    is_reference = plan.layout.store == "refs"
    if make_again or is_reference:
        _check_roots(folder, rows, places, is_reference=is_reference)
    limited = {"workers": min(config.workers or available_cores(), len(rows))}
    with make_pool(config.model_copy(update=limited)) as pool:
        encoder = None
        if num_shown and config.encoder is None and plan.layout.pixel_tubelet is not None:
            notes.append(f"no --encoder: {_kind_of(plan)} are not decoded, only pixels are shown")
        else:
            encoder = given_encoder(plan.encoder, plan.settings, config, pool)
        notes += _differences(plan)
        requests = list(
            _requests(folder, plan, dataset, rows, places, encoder, make_again, num_shown)
        )
        outcomes = dict(pool.map(compare_segment, iter(enumerate(requests))))
    allowances = _allowances(plan)
    segments = tuple(
        _described(plan, request, outcomes[n], places, *allowances)
        for n, request in enumerate(requests)
    )
    sums = [None if s.found.sums is None else s.found.sums.tolist() for s in segments]
    of_sample, of_all = measured(sums), dataset.get("encoder") or {}
    return Decoded(
        kind=_kind_of(plan),
        encoder=None if plan.encoder is None else plan.encoder.name,
        segments=segments,
        notes=tuple(notes),
        mean=of_sample["mean"],
        std=of_sample["std"],
        dataset_mean=of_all.get("mean"),
        dataset_std=of_all.get("std"),
    )


def _kind_of(plan: Plan) -> str:
    return "pixels" if plan.encoder is None else plan.encoder.kind


# --- which segments ----------------------------------------------------------------------------


def choose_segments(
    folder: Path, plan: Plan, wanted: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of segments.parquet, one of each of `wanted` equal parts of the dataset, and notes.

    Where an encoder would have to decode them, segments of which rows were lost or tokens dropped
    are passed over, if there are others.
    """
    table = folder / "segments.parquet"
    flags = [np.empty(0, bool)]
    for batch in read_batches(table, ["num_tokens", "num_kept"]):
        tokens, kept = (batch.column(n).to_numpy() for n in range(2))
        flags.append(tokens == kept)
    is_whole = np.concatenate(flags)
    notes = []
    places = np.flatnonzero(is_whole)
    if plan.encoder is None:
        places = np.arange(len(is_whole))
    elif not len(places):
        places = np.arange(len(is_whole))
        if len(places):
            notes.append("tokens were dropped of every segment: there is no whole one")
    elif len(places) < len(is_whole):
        notes.append(
            f"{len(is_whole) - len(places)} of {len(is_whole)} segments are passed over: rows of "
            "them were lost, or tokens dropped"
        )
    wanted = min(wanted, len(places))
    draws = Draws(plan.settings["seed"], plan.plan_id, "decode", wanted)
    borders = [part * len(places) // wanted for part in range(wanted + 1)] if wanted else []
    chosen = [int(places[first + draws.integer(stop - first)]) for first, stop in pairwise(borders)]
    return list(_rows_at(table, chosen)), notes


def _rows_at(table: Path, chosen: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows of increasing numbers."""
    left = list(reversed(chosen))
    first = 0
    for batch in read_batches(table, list(SEGMENTS)):
        while left and left[-1] < first + len(batch):
            yield batch.slice(left.pop() - first, 1).to_pylist()[0]
        first += len(batch)


# --- by which libraries ------------------------------------------------------------------------


def _differences(plan: Plan) -> list[str]:
    """What of the libraries is not as it was."""
    return [
        f"made with {name} {before}, here is {now}: the last bits may differ"
        for name, before, now in _changed_versions(plan)
    ]


def _changed_versions(plan: Plan) -> list[tuple[str, str, str]]:
    settings, facts = plan.settings, plan.encoder
    kind = "" if facts is None else facts.name.partition(":")[0]
    now = environment(settings["resampler"], settings["decoder"], kind)
    return [
        (name, plan.environment.get(name, "?"), value)
        for name, value in now.items()
        if plan.environment.get(name) != value
    ]


def _allowances(plan: Plan) -> tuple[float, float]:
    """How far from what is stored a segment that is made again may be (see `Compared.apart`), and
    its pixel tokens beside those of an encoder; 0: equal to the bit."""
    facts, kind = plan.encoder, _kind_of(plan)
    floor = floor_of(str(plan.settings.get("store", "")))
    lossy = 0.0 if floor is None else 10 ** (-floor / 20)  # what it may cost to compress them
    if _changed_versions(plan):
        return DRIFT[kind] + lossy, DRIFT["pixels"]
    if facts is None or facts.name.startswith("linear:"):
        return lossy, 0.0  # exact on every machine
    return (DRIFT_OF_SUMS if facts.dtype == "float32" else DRIFT[kind]), 0.0


# --- with which sources ------------------------------------------------------------------------


def _check_roots(
    folder: Path, rows: Sequence[dict[str, Any]], places: SourceRoots, *, is_reference: bool
) -> None:
    """Raise a `ConfigError` where nobody said where the sources lie."""
    why = f"{folder}: holds references, no tokens: " if is_reference else ""
    for row in rows:
        number = row["source_root"]
        if number not in places:
            raise ConfigError(
                f"{why}say where the sources of SOURCE argument {number} lie ({row['source']} is "
                f"one): --source-root {number}=DIR"
            )


def _requests(
    folder: Path,
    plan: Plan,
    dataset: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    places: SourceRoots,
    encoder: EncoderSettings | None,
    make_again: bool,
    num_shown: int,
) -> Iterator[Request]:
    settings = token_settings(
        plan.settings,
        token_dtype=plan.layout.token_dtype,
        encoder=encoder,
        facts=plan.encoder,
        pixel_tubelet=plan.layout.pixel_tubelet,
    )
    std = (dataset.get("encoder") or {}).get("std")
    clips = {
        (plan.sources[clip.source].source.source_id, clip.clip, clip.view): clip
        for task in plan.tasks
        for clip in task.clips
    }
    for row in rows:
        clip = clips.get((row["source_id"], row["clip"], row["view"]))
        if clip is None:
            raise ShardError(
                f"{folder}: plan.parquet has no clip {row['clip']} of {row['source']}, which "
                "segments.parquet names; run spacepatch verify without --decode"
            )
        yield Request(
            tar=folder / f"{shard_stem(plan.name, row['split'], row['shard'])}.tar",
            row=row,
            clip=clip,
            settings=settings,
            job=_job_of(plan, clip, places, settings),
            std=None if std is None else tuple(std),
            make_again=make_again,
            num_shown=num_shown,
            references=plan.settings if plan.layout.store == "refs" else None,
        )


def _job_of(plan: Plan, clip: ClipSpec, places: SourceRoots, settings: Any) -> Job | None:
    """That makes the clip again; None: its source is not where it is said to be."""
    planned = plan.sources[clip.source]
    if planned.source.source_root not in places:
        return None
    source = places.find(planned.source)
    if source is None:
        return None
    assert planned.info is not None, "a clip has a probed source"
    return Job(
        source=source,
        content_id=planned.content_id,
        info=planned.info,
        clips=(clip,),
        clip_ids=(clip_id(plan, clip),),
        offsets=(0,),
        arena="",
        settings=settings,
    )


# --- what was found ----------------------------------------------------------------------------


def _described(
    plan: Plan,
    request: Request,
    outcome: Compared | Fault,
    places: SourceRoots,
    allowance: float,
    of_pixels: float,
) -> DecodedSegment:
    row = request.row
    if isinstance(outcome, Fault):
        outcome = Compared(problem=f"{outcome.reason}: {outcome.message}")
    entry = plan.sources[request.clip.source]
    planned, info = entry.source, entry.info
    assert info is not None, "a clip has a probed source"
    start, stop, *times = (
        float(pts * info.time_base)
        for pts in (row["clip_start_pts"], row["clip_stop_pts"], *row["frame_pts"])
    )
    problem = outcome.problem
    if not problem and request.job is None and planned.source_root in places:
        problem = (
            f"its source is not in {shown(places.place_of(planned))}: restore it, or say where it "
            f"lies with --source-root {planned.source_root}=DIR"
        )
    # Not `>`: of a NaN, which is near to nothing. Where all must be equal, so must signs of zeros.
    if outcome.is_same is False and (not allowance or not outcome.apart <= allowance):
        problem = problem or _mismatch(plan, outcome)
    if outcome.pixels_apart > of_pixels:
        problem = problem or "its pixel tokens are not its source's; tokenize its shard again"
    return DecodedSegment(
        segment_id=row["segment_id"],
        source=row["source"],
        clip=row["clip"],
        view=row["view"],
        where=f"{request.tar.name}: pack {row['pack']}",
        start_seconds=start,
        stop_seconds=stop,
        found=outcome,
        problem=problem,
        seconds=tuple(times[place] for place in outcome.shown),
        row=row,
        patch=patch_pixels(row, plan.encoder),
        row_starts=tuple(request.clip.row_starts.tolist()),
    )


def _mismatch(plan: Plan, found: Compared) -> str:
    """What is wrong with tokens that their source does not give."""
    facts = plan.encoder
    if facts is None:
        what = f"its pixels are not its source's: {found.max_difference:.0f} apart at most"
    elif facts.kind == "codes":
        what = f"{found.apart:.1%} of its codes are not what {facts.name} makes of its source"
    else:
        what = (
            f"its latents are not what {facts.name} makes of its source: they are {found.apart:.3g}"
            f" standard deviations off (root mean square), {found.max_difference:.3g} at most"
        )
    return f"{what}; delete its shard and tokenize again"
