"""Whether a later start may go on with a plan: the same settings, libraries and inputs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from spacepatch.config import RunConfig
from spacepatch.data import EncoderFacts, Source
from spacepatch.errors import ResumeError
from spacepatch.listings import Listing, key_of
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.planhead import environment_of
from spacepatch.sources import content_id


def check_plan(
    document: dict[str, Any], config: RunConfig, facts: EncoderFacts | None = None
) -> None:
    """Refuse to go on with other settings, libraries or weights than those of the plan.

    Args:
        facts: of the encoder, with which `config` was settled.

    Raises:
        ResumeError: naming each difference.
    """
    differences = []
    now = config.part("token", "layout", "selection", "seed")
    if facts is not None and document.get("encoder"):
        # Its name may change, what it does may not.
        before, after = document["encoder"], facts.to_json()
        now.pop("encoder")
        for key in ("identity", "constants"):
            if before[key] != after[key]:
                changed = [name for name in after[key] if before[key].get(name) != after[key][name]]
                differences.append(
                    f"the encoder was {before['name']}, is {after['name']} with other "
                    f"{', '.join(changed)}"
                )
    for key, value in now.items():
        if document["settings"].get(key) != value:
            differences.append(f"{key} was {document['settings'].get(key)!r}, is {value!r}")
    for name, value in environment_of(config).items():
        if document["environment"].get(name) != value:
            differences.append(f"{name} was {document['environment'].get(name)}, is {value}")
    if differences:
        raise ResumeError(
            "this folder was begun differently: "
            + "; ".join(differences)
            + ". Use the same, another --out, or --overwrite to begin anew"
        )


NAMES_SHOWN = 5
MOST_LOOKED_AT = 100_000
"""Sources whose contents are compared before a run goes on. Of those beyond, the sizes are; and the
job that reads one sees whether it is the one that was planned (reason `source_changed`)."""

Row = dict[str, Any]


def check_inputs(plan: StoredPlan, listing: Listing) -> None:
    """Refuse to go on with other inputs than those of the plan.

    Args:
        plan: all of it, or a rank's part: of all sources the names are compared, and the contents
            of those of its own tasks.

    Raises:
        ResumeError: naming what was added, removed or changed.
    """
    has_same_names = plan.head.inputs == listing.inputs()
    parts = [] if has_same_names else _differing_names(plan, listing)
    changed = _changed(plan)
    if changed:
        parts.append(_some(changed, "changed"))
    if not parts and not has_same_names:
        parts = ["ranges, columns of the manifest or what a tar says of its videos changed"]
        if len(plan.generations) > 1:
            parts = ["names, ranges or columns are not those of the last --append"]
    if parts:
        raise ResumeError(
            "the inputs are not those of the plan: "
            + ", ".join(parts)
            + ". Restore them, give --append to add what is new, another --out, or --overwrite to "
            "begin anew"
        )


def _differing_names(plan: StoredPlan, listing: Listing) -> list[str]:
    """What was added and what was removed, in words."""
    planned: dict[int, str] = {}
    keys = np.concatenate([listing.sources.keys, listing.missing.keys])
    there = np.zeros(len(keys), bool)
    order = np.argsort(keys)
    for rows in plan.tables(["source_id", "source"]):
        for row in rows.to_pylist():
            for identity in plan.identities.names(row["source_id"]):
                key = key_of(identity)
                place = int(np.searchsorted(keys, np.uint64(key), sorter=order))
                if place < len(keys) and keys[order[place]] == key:
                    there[order[place]] = True
                    break
            else:
                planned.setdefault(key, row["source"])
    new = np.flatnonzero(~there)
    border = len(listing.sources)
    added = [
        (listing.sources[place] if place < border else listing.missing[place - border]).name
        for place in new.tolist()
    ]
    # What a former --append found to be removed is no news.
    removed = list(planned.values()) if len(plan.generations) == 1 else []
    words = ((added, "added"), (removed, "removed"))
    return [_some(names, word) for names, word in words if names]


def _some(names: list[str], word: str) -> str:
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} {word} ({', '.join(names[:NAMES_SHOWN])}{more})"


def _changed(plan: StoredPlan) -> list[str]:
    """Names of sources whose files are not those that were planned."""

    def is_changed(asked: tuple[Row, Source, bool]) -> bool:
        row, source, is_looked_at = asked
        has_same_size = bool(row["bytes"] == source.num_bytes)
        if not has_same_size or not row["content_id"] or not is_looked_at:
            # Without an id its probe was lost: what it held then is not known.
            return not has_same_size
        try:
            now = content_id(source.uri, offset=source.member_offset, num_bytes=source.num_bytes)
        except OSError:
            return True
        return bool(row["content_id"] != now)

    changed = []
    with ThreadPoolExecutor(THREADS) as threads:
        asked = _planned(plan)
        while group := list(islice(asked, GROUP)):
            differs = threads.map(is_changed, group)
            changed += [row["source"] for (row, *_), x in zip(group, differs, strict=True) if x]
    return changed


THREADS, GROUP = 8, 1024


def _planned(plan: StoredPlan) -> Iterator[tuple[Row, Source, bool]]:
    """Of each source that is there still: what the plan says, itself, and whether to look into it.

    A source of several tasks may come more than once.
    """
    columns = ["source_id", "source", "content_id", "bytes"]
    tables = plan.tables(columns) if plan.is_whole else map(plan.rows, plan.tasks)
    seen: set[str] = set()
    before = ""
    for rows in tables:
        for row in rows.select(columns).to_pylist():
            if row["source_id"] == before or row["source_id"] in seen:
                continue
            before = row["source_id"]
            if len(seen) < MOST_LOOKED_AT:
                seen.add(before)
            source = plan.find(before)
            # Of what was planned once more the last one is what is there.
            if source is not None and before not in plan.identities.superseded:
                yield row, source, before in seen
