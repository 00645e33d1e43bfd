"""Packs of store refs: their segments' tokens are made of the sources as they are loaded."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from spacepatch.data import ClipSpec
from spacepatch.errors import SegmentError, ShardError
from spacepatch.loader.decoding import Decoding, MadeTokens, Wanted
from spacepatch.loader.token_maker import TokenMaker
from spacepatch.loader.variation import Variation, Varying
from spacepatch.loader.varied_clips import varied_segment
from spacepatch.pipeline.job_settings import token_settings
from spacepatch.pipeline.plan import PlannedSource
from spacepatch.pipeline.planfile import StoredPlan, open_plan
from spacepatch.pipeline.segments import clip_id, clip_of_segment, visible_of
from spacepatch.shards import PackMembers, PackReferences
from spacepatch.shards.writing import positions_in
from spacepatch.source_roots import SourceRoots
from spacepatch.tubelets import cells_of_rows, merge_of

TASKS_REMEMBERED = 16
"""Whose clips are kept in memory: a pack is often followed by others of its shard."""


ClipKey = tuple[str, int, int]
"""Source id, clip and view."""
PlannedClip = tuple[ClipSpec, PlannedSource, str]
"""And what its draws are keyed by."""


@dataclass(frozen=True, slots=True)
class ReferredPack:
    """A pack of references, and the shard that it lies in."""

    shard: str
    references: PackReferences
    epoch: int = 0
    """Whose draws they are made with, where they vary."""


@dataclass(frozen=True, slots=True)
class MadePack:
    """A pack with its tokens."""

    members: PackMembers
    num_bad: int
    """Segments that it lacks, as their sources do not give them."""


class References:
    """Makes packs of their references. Each process opens the plan, and decodes, by itself."""

    def __init__(
        self,
        folder: Path,
        document: dict[str, Any],
        decoding: Decoding,
        *,
        varying: Varying | None = None,
    ) -> None:
        """Raises a ConfigError where a source_root is not there."""
        self._folder, self._decoding, self._varying = folder, decoding, varying
        self._roots: SourceRoots | None = decoding.find_roots()
        self._settings = document["settings"]
        self._generations = len(document["plans"])
        self._process: int | None = None

    def expect(self, packs: Iterable[ReferredPack]) -> None:
        """These will be asked for: what one source has in them is decoded in one pass."""
        self._open()
        wanted: list[Wanted] = []
        for pack in packs:
            try:
                wanted += self._wanted(pack)
            except ShardError:
                continue  # who asks for it is told
        self._maker.expect(wanted)

    def make(self, pack: ReferredPack) -> MadePack:
        """The pack as it would be stored with its tokens.

        Raises:
            SegmentError: a source does not give them, and must not be skipped; or none does.
            ShardError: the plan has no such clip.
        """
        self._open()
        wanted = self._wanted(pack)
        self._maker.expect(wanted)
        segments, made = [], []
        errors: list[SegmentError] = []
        for segment, one in zip(pack.references.document["segments"], wanted, strict=True):
            try:
                made.append(self._checked(segment, one))
                segments.append(self._described(segment, one, made[-1]))
            except SegmentError as error:
                if self._decoding.on_bad_source == "error" or error.reason == "other_tokens":
                    self._maker.forget_errors()
                    raise
                errors.append(error)
        if not made:
            raise errors[0]
        return MadePack(self._joined(pack.references, segments, made), len(errors))

    def close(self) -> None:
        """End the processes that decode."""
        if self._process == os.getpid():
            self._maker.close()
        self._process = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_folder", "_decoding", "_varying", "_settings", "_generations")
        return {name: self.__dict__[name] for name in own} | {"_process": None, "_roots": None}

    def _open(self) -> None:
        if self._process == os.getpid():
            return
        self._plan: StoredPlan = open_plan(self._folder, generations=self._generations)
        self._roots = self._roots or self._decoding.find_roots()
        settings = token_settings(self._settings, token_dtype="uint8")
        self._maker = TokenMaker(self._decoding, settings, self._roots)
        self._tasks: OrderedDict[int, dict[ClipKey, PlannedClip]] = OrderedDict()
        self._process = os.getpid()

    def _wanted(self, pack: ReferredPack) -> list[Wanted]:
        """What is to be made of each segment."""
        clips = self._clips_of(int(pack.shard.rpartition("-")[2]))  # NAME-000000
        wanted = []
        varying, patch, epoch = self._varying, None, pack.epoch
        if varying is not None:
            number = int(pack.references.key.rpartition("-")[2])  # NAME-000000-000000
            patch = varying.patch_of(pack.shard, number, epoch)
        for segment in pack.references.document["segments"]:
            key = segment["source_id"], segment["clip"], segment["view"]
            if key not in clips:
                raise ShardError(
                    f"{self._folder}: {pack.references.key}: the plan has no clip "
                    f"{segment['clip']} of {segment['source']}; run spacepatch verify"
                )
            clip, source, identity = clips[key]
            clip = clip_of_segment(clip, segment)
            drawn: tuple[str, ...] = (segment["segment_id"],)
            if varying is not None and source.info is not None:
                clip = varying.clip(clip, segment, source.info, epoch=epoch, patch=patch)
                identity = varying.clip_id(identity, segment, epoch)
                drawn = (*drawn, str(epoch))
            wanted.append(Wanted(key=drawn, clip=clip, clip_id=identity, planned=source))
        return wanted

    def _clips_of(self, task: int) -> dict[ClipKey, PlannedClip]:
        found = self._tasks.pop(task, None)
        if found is None:
            if not 0 <= task < len(self._plan.tasks):
                raise ShardError(f"{self._folder}: the plan has no task {task}")
            plan = self._plan.part(self._plan.tasks[task])
            (own,) = plan.tasks
            found = {}
            for clip in own.clips:
                source = plan.sources[clip.source]
                key = source.source.source_id, clip.clip, clip.view
                found[key] = clip, source, clip_id(plan, clip)
        self._tasks[task] = found
        if len(self._tasks) > TASKS_REMEMBERED:
            self._tasks.popitem(last=False)
        return found

    def _checked(self, segment: dict[str, Any], one: Wanted) -> MadeTokens:
        """Raises a SegmentError where it is not what was packed."""
        outcome = self._maker.make(one)
        if isinstance(outcome, SegmentError):
            raise outcome
        if self._varying is not None:
            return outcome  # of its own length, which its clip bounds
        made, planned = outcome.clip.num_kept, segment["num_kept"]
        if made != planned or outcome.clip.grid_t != segment["grid_thw"][0]:
            losses = [f"{loss.reason}: {loss.message}" for loss in outcome.clip.losses]
            why = f" ({'; '.join(losses)})" if losses else ""
            raise one.error(
                "fewer_tokens",
                f"gives {made} tokens of the {planned} that it was packed with{why}: tokenize "
                'with --checked, or load with on_bad_source="skip"',
            )
        checksum = segment["tokens_crc32c"]
        if checksum is not None and crc32c(outcome.tokens.data.cast("B")) != checksum:
            self._mismatch(one)
        return outcome

    def _described(self, segment: dict[str, Any], one: Wanted, made: MadeTokens) -> dict[str, Any]:
        if self._varying is None or one.planned.info is None:
            return segment
        return varied_segment(segment, one.clip, made.clip, one.planned.info.time_base)

    def _mismatch(self, one: Wanted) -> None:
        error = one.error(
            "other_tokens",
            "gives other tokens than tokens_crc32c says: with other libraries (see environment in "
            'dataset.json and spacepatch doctor) the last bits may differ; on_mismatch="warn" '
            "takes them",
        )
        if self._decoding.on_mismatch == "error":
            raise error
        warnings.warn(str(error), stacklevel=2)

    def _joined(
        self, pack: PackReferences, segments: list[dict[str, Any]], made: list[MadeTokens]
    ) -> PackMembers:
        """As `ShardReader.read` gives a stored pack."""
        merge = merge_of(pack.document["order"])
        kept, visible, lengths, described, offset = [], [], [], [], 0
        table = np.zeros((len(segments), 8), np.int32)
        ids = [segment["segment_id"] for segment in pack.document["segments"]]
        for place, (segment, own) in enumerate(zip(segments, made, strict=True)):
            grid = segment["grid_thw"]
            cells = own.clip.kept
            if cells is None:
                cells = cells_of_rows(own.clip.rows, *grid[1:], merge=merge)
            kept.append(positions_in(cells, grid))
            mask = visible_of(self._settings, segment, cells)
            if mask is not None:
                visible.append(mask)
            if own.clip.run_lengths is not None:
                lengths.append(own.clip.run_lengths)
            table[place] = pack.segments[ids.index(segment["segment_id"])]
            table[place, :5] = offset, len(own.tokens), *grid
            if "varied" in segment:
                table[place, 5:] = segment["varied"]["patch"]
            described.append(segment | {"offset": offset})
            offset += len(own.tokens)
        return PackMembers(
            key=pack.key,
            tokens=np.concatenate([own.tokens for own in made]),
            token_dtype="uint8",
            segments=table,
            segment_ids=np.repeat(np.arange(1, len(table) + 1, dtype=np.int32), table[:, 1]),
            positions=np.concatenate(kept),
            run_lengths=np.concatenate(lengths) if lengths else None,
            visible=np.concatenate(visible) if visible else None,
            pixels=None,
            pixel_segments=None,
            document=pack.document | {"segments": described},
        )


def varying_of(document: dict[str, Any], decoding: Decoding, *, seed: int) -> Varying | None:
    """What varies, of packs of references; None: nothing.

    Raises:
        ValueError: it cannot, in this dataset.
    """
    if not isinstance(decoding.vary, Variation):
        return None
    if document["store"] != "refs":
        raise ValueError(
            f"vary: tokens are made anew of references alone, and this dataset has store "
            f"{document['store']}: tokenize again with --store refs, or spacepatch convert it"
        )
    return Varying(decoding.vary, document["settings"], seed=seed)
