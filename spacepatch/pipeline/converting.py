"""Convert a dataset to another layout, order or patch size without decoding, or to another
store."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from spacepatch.config import RunConfig, load_config
from spacepatch.config.stores import floor_of
from spacepatch.data import ClipSpec, Task
from spacepatch.errors import ConfigError
from spacepatch.pipeline.finishing import RunSummary
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.recutting import (
    check_divides,
    new_grid,
    recut_segment,
    relay_segment,
)
from spacepatch.pipeline.restoring import Restoring
from spacepatch.pipeline.rewriting import (
    Progress,
    account_of,
    changed_plan,
    read_finished,
    receipt_of,
    rewrite,
    write_again,
)
from spacepatch.pipeline.segments import make_segment_id
from spacepatch.pipeline.stored import read_packs
from spacepatch.pipeline.storing import change_store
from spacepatch.shards import SegmentContent, ShardReceipt, shard_stem
from spacepatch.shards.tables import read_table
from spacepatch.storage import open_folder


def convert(
    folder: str | Path,
    *,
    out: str | Path,
    layout: str | None = None,
    order: str | None = None,
    patch: str | None = None,
    pack_length: int | None = None,
    store: str | None = None,
    restoring: Restoring | None = None,
    overwrite: bool = False,
    on_shard: Progress = lambda done, total: None,
) -> RunSummary:
    """Write the tokens of a dataset anew; what is not given stays as it is.

    Packs keep their segments and their order. With another layout or order the result is, byte by
    byte, what tokenizing with it would have written, and converting back gives the first one. With
    another patch the frames are joined and cut again, and `pack_length` changes in proportion, so
    that packs keep their pixels.

    Args:
        folder, out: on local disk, or URLs on an object store.
        layout: a word of `LAYOUTS`. order: ``raster`` or ``merge n x n``.
        patch: one (frames x height x width); of undropped pixels only.
        pack_length: with `patch`, instead of that in proportion.
        store: of the settings; by itself. See `change_store`.
        restoring: with `store`, how tokens are made again that the dataset does not hold.

    Raises:
        ShardError: `folder` is no finished dataset, or damaged.
        ConfigError: it cannot be had in that form.
        ResumeError: `out` holds something else.
        SegmentError: see `restore`.
    """
    folder, out = open_folder(folder), open_folder(out, writes=True)
    before = read_finished(folder)
    restoring = restoring or Restoring()
    if store is not None:
        if (layout, order, patch, pack_length) != (None, None, None, None):
            raise ConfigError("--store: is converted by itself; --to, --order or --patch after it")
        return change_store(
            folder,
            out,
            before,
            store,
            restoring=restoring,
            overwrite=overwrite,
            on_shard=on_shard,
        )
    if restoring.roots or restoring.retry_lost or restoring.on_mismatch != "error":
        raise ConfigError("--source-root, --on-mismatch, --retry-lost: are for --store")
    config = _settings(before, layout=layout, order=order, patch=patch)
    if patch is not None:
        length = _pack_length(folder, before, config, pack_length)
        config = config.model_copy(update={"pack_length": length})
    elif pack_length is not None:
        raise ConfigError("pack_length is for patch: other layouts leave packs as they are")
    recut = patch is not None
    old_of = {task.number: task for task in before.tasks}

    def is_outdated(plan: Plan, new: Task) -> bool:
        return _is_outdated(folder, before, out, plan, old_of[new.number], new)

    def write_tasks(_: StoredPlan, plan: Plan, tasks: Sequence[Task]) -> Iterator[Task]:
        for new in tasks:
            _convert_task(folder, out, before, plan, old_of[new.number], new, config, recut=recut)
            yield new

    return rewrite(
        folder,
        out,
        _plan(before, config, recut=recut),
        overwrite=overwrite,
        is_outdated=is_outdated,
        write_tasks=write_tasks,
        on_shard=on_shard,
    )


def _settings(plan: Plan, *, layout: str | None, order: str | None, patch: str | None) -> RunConfig:
    given = {"layout": layout, "order": order, "patch": patch}
    changed: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if not changed:
        raise ConfigError("nothing to convert to: give --to, --order, --patch or --store")
    store = plan.settings.get("store", "tokens")
    if store == "refs":
        raise ConfigError(
            "store refs has no tokens to be laid out anew: convert --store tokens first, or "
            "tokenize --store refs again with these settings"
        )
    if floor_of(store) is not None:
        raise ConfigError(
            f"store {store}: its tokens are not exact, and stored once more they would be less so: "
            "convert --store tokens --source-root DIR first"
        )
    if plan.layout.pixel_tubelet is not None:
        raise ConfigError("pixel tokens lie beside the others (--also pixels): tokenize again")
    if patch is not None:
        if plan.settings["drop"] is not None:
            raise ConfigError(
                f"patch {patch}: tokens were dropped ({plan.settings['drop']}), so frames cannot "
                "be joined to be cut again: tokenize again"
            )
        if plan.settings["kind"] != "pixels":
            raise ConfigError(f"patch {patch}: the tokens are {plan.settings['kind']}, not pixels")
        before = plan.settings["patch"]
        origin = plan.settings["recut"] or f"{before}@{plan.settings['pack_length']}"
        changed["recut"] = None if origin.split("@")[0] == patch else origin
        if plan.settings["views"] == "all":
            changed["views"] = len(before.split(","))
    settings = {key: value for key, value in (plan.settings | changed).items() if value is not None}
    config = load_config(settings)
    if len(config.patches) > 1 and patch is not None:
        raise ConfigError(f"patch {patch}: give one; a dataset is cut into one size")
    for task in plan.tasks if patch is not None else ():
        for clip in task.clips:
            name = plan.sources[clip.source].source.name
            check_divides(name, clip.size, config)
            if config.tail == "drop" and config.patches[0][0] != clip.tubelet_size:
                raise ConfigError(
                    f"patch {patch}: tail is drop, and {name} has tubelets of {clip.tubelet_size} "
                    "frames: keep the tubelet size, or tokenize again"
                )
    return config


def _pack_length(folder: Path, plan: Plan, config: RunConfig, wish: int | None) -> int:
    """Tokens in a pack of as many pixels, and enough for each pack that there is."""
    longest = _longest_pack(folder, config)
    origin = plan.settings["recut"]
    if wish is None and origin and origin.split("@")[0] == config.patch:
        wish = int(origin.split("@")[1])  # back to what was tokenized
    if wish is not None:
        if longest > wish:
            raise ConfigError(
                f"pack_length {wish}: a pack has {longest} tokens of {config.patch}: give "
                f"--pack-length {longest} or more"
            )
        return wish
    ratios = {
        Fraction(math.prod(clip.patch_size) * clip.tubelet_size, math.prod(config.patches[0]))
        for task in plan.tasks
        for clip in task.clips
    }
    scaled = math.floor(plan.layout.pack_length * max(ratios, default=Fraction(1)))
    return max(scaled, longest, 1)


def _longest_pack(folder: Path, config: RunConfig) -> int:
    """Tokens in the longest pack, once it is cut into the new patches; a `ConfigError` where rows
    that were lost cannot be cut."""
    tubelet_size, height, width = config.patches[0]
    lengths: Counter[tuple[int, int]] = Counter()
    columns = "source clip shard pack num_kept grid_thw size tubelet_size".split()
    columns += ["valid_frames", "corrupt_frames"]
    for row in read_table(folder / "segments.parquet", columns):
        rows = row["num_kept"] // (row["grid_thw"][1] * row["grid_thw"][2])
        if row["tubelet_size"] != tubelet_size:
            if rows != row["grid_thw"][0]:
                raise ConfigError(
                    f"{row['source']} clip {row['clip']}: has lost rows of {row['tubelet_size']} "
                    f"frames, which cannot be cut into rows of {tubelet_size}: keep the tubelet "
                    "size, or tokenize again"
                )
            rows = -(-(row["valid_frames"] + row["corrupt_frames"]) // tubelet_size)
        cells = (row["size"][0] // height) * (row["size"][1] // width)
        lengths[row["shard"], row["pack"]] += rows * cells
    return max(lengths.values(), default=0)


def _plan(before: Plan, config: RunConfig, *, recut: bool) -> Plan:
    """The plan of the converted dataset: the same clips in the same tasks."""
    tasks = before.tasks
    if recut:
        tasks = tuple(
            replace(task, clips=tuple(_recut_clip(before, clip, config) for clip in task.clips))
            for task in tasks
        )
    return changed_plan(before, config, tasks, before.environment)


def _recut_clip(plan: Plan, clip: ClipSpec, config: RunConfig) -> ClipSpec:
    tubelet_size, height, width = config.patches[0]
    was_cut = plan.placement.cut_to_fit or "cut_to_fit" in (plan.settings.get("repacked") or "")
    if was_cut and tubelet_size != clip.tubelet_size:
        raise ConfigError(
            f"patch {config.patch}: segments were cut to fit packs between rows of "
            f"{clip.tubelet_size} frames: keep the tubelet size, or tokenize again"
        )
    grid = new_grid(len(clip.frame_pts), clip.size, config)
    return replace(
        clip,
        tubelet_size=tubelet_size,
        patch_size=(height, width),
        grid_thw=grid,
        num_kept=math.prod(grid),
    )


def _is_outdated(folder: Path, before: Plan, out: Path, plan: Plan, old: Task, new: Task) -> bool:
    """Whether a task was converted, and its shard mended since (`--retry-lost`)."""
    return account_of(receipt_of(folder, before, old)) != account_of(receipt_of(out, plan, new))


def _convert_task(
    folder: Path,
    out: Path,
    before: Plan,
    plan: Plan,
    old: Task,
    new: Task,
    config: RunConfig,
    *,
    recut: bool,
) -> None:
    """One shard, with its receipt."""
    receipt = receipt_of(folder, before, old)
    clips = {
        (plan.sources[clip.source].source.source_id, clip.clip, clip.view): clip
        for clip in new.clips
    }
    stem = shard_stem(before.name, old.split, old.number)
    packs = [
        [
            _recut(plan, stored, clips, config) if recut else relay_segment(stored, config)
            for stored in pack
        ]
        for pack in read_packs(folder, stem, receipt)
    ]
    if not recut:
        write_again(out, plan, new, receipt, packs)
        return
    rows = [content.row for pack in packs for content in pack]
    losses = _losses(plan, new, receipt, rows)
    write_again(out, plan, new, receipt, packs, losses=losses, unbalanced=None)


def _recut(
    plan: Plan,
    stored: SegmentContent,
    clips: dict[tuple[str, int, int], ClipSpec],
    config: RunConfig,
) -> SegmentContent:
    row = stored.row
    clip, stop = clips[row["source_id"], row["clip"], row["view"]], row["clip_stop_pts"]
    if row["tubelet_size"] != clip.tubelet_size:
        # A clip that turned out shorter than planned ends with its own last row.
        rows = new_grid(len(row["frame_pts"]), clip.size, config)[0]
        stop = clip.stop_pts if rows == clip.grid_thw[0] else int(clip.row_pts[rows])
    identity = make_segment_id(
        plan.fingerprints["token"],
        seed=plan.settings["seed"],
        source_id=row["source_id"],
        start_pts=row["clip_start_pts"],
        stop_pts=stop,
        time_base=row["time_base"],
        view=row["view"],
    )
    changed = replace(stored, row=row | {"segment_id": identity, "clip_stop_pts": stop})
    return recut_segment(changed, config)


def _losses(
    plan: Plan, new: Task, receipt: ShardReceipt, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The losses of a task, their tokens counted in the new patches: what is planned of a clip and
    not there, shared out as before."""
    missing: Counter[tuple[str, int | None]] = Counter()
    for clip in new.clips:
        missing[plan.sources[clip.source].source.source_id, clip.clip] += clip.num_kept
    for row in rows:
        missing[row["source_id"], row["clip"]] -= row["num_kept"]
    by_clip: dict[tuple[str, int | None], list[dict[str, Any]]] = defaultdict(list)
    losses = [dict(loss) for loss in receipt.losses]
    for loss in losses:
        by_clip[loss["source_id"], loss["clip"]].append(loss)
    for key, own in by_clip.items():
        # A frame that was lost of a row that is there had no token; in smaller rows it has.
        column = "num_tokens" if any(loss["num_tokens"] for loss in own) else "num_frames"
        shares = [loss[column] for loss in own]
        for loss, share in zip(own, shares, strict=True):
            loss["num_tokens"] = missing[key] * share // sum(shares) if share else 0
        own[0]["num_tokens"] += missing[key] - sum(loss["num_tokens"] for loss in own)
    return losses
