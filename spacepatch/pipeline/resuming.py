"""Whether a later start may go on with a plan: the same settings, libraries and inputs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from spacepatch.config import RunConfig
from spacepatch.data import EncoderFacts, Source
from spacepatch.errors import ResumeError
from spacepatch.pipeline.planfile import Plan, inputs_fingerprint
from spacepatch.pipeline.planning import environment_of
from spacepatch.sources import Listing, content_id


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


def check_inputs(
    plan: Plan, listing: Listing, *, read_whole: Callable[[], Plan] | None = None
) -> None:
    """Refuse to go on with other inputs than those of the plan.

    Args:
        read_whole: where `plan` is a rank's part, what reads all of it, to name what differs. The
            contents of its own sources are looked at, and of all of them the names.

    Raises:
        ResumeError: naming what was added, removed or changed.
    """
    planned = {entry.source.source_id: entry for entry in plan.sources}
    listed = {source.source_id: source for source in (*listing.sources, *listing.missing)}
    added, removed = [], []
    has_same_names = plan.inputs == inputs_fingerprint(listing)
    if not has_same_names:
        whole = plan if read_whole is None else read_whole()
        names = {entry.source.source_id: entry.source.name for entry in whole.sources}
        added = [listed[key].name for key in listed if key not in names]
        removed = [names[key] for key in names if key not in listed]

    def is_changed(source: Source) -> bool:
        entry = planned[source.source_id]
        before = entry.content_id
        if not before and entry.source.num_bytes == source.num_bytes:
            return False  # its probe was lost: what it held then is not known
        try:
            now = content_id(source.uri, offset=source.member_offset, num_bytes=source.num_bytes)
        except OSError:
            now = ""
        return before != now

    both = [source for key, source in listed.items() if key in planned]
    with ThreadPoolExecutor(8) as threads:
        changes = threads.map(is_changed, both)
        changed = [source.name for source, differs in zip(both, changes, strict=True) if differs]
    parts = [
        f"{len(names)} {word} ({', '.join(names[:NAMES_SHOWN])}"
        f"{', ...' if len(names) > NAMES_SHOWN else ''})"
        for word, names in (("added", added), ("removed", removed), ("changed", changed))
        if names
    ]
    if not parts and not has_same_names:
        parts = ["ranges, columns of the manifest or what a tar says of its videos changed"]
    if parts:
        raise ResumeError(
            "the inputs are not those of the plan: "
            + ", ".join(parts)
            + ". Restore them, use another --out, or --overwrite to begin anew"
        )
