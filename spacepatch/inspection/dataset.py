"""Check dataset.json against the plan, the receipts and the merged tables."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from spacepatch.data import EncoderFacts
from spacepatch.inspection.encoders import measure
from spacepatch.inspection.findings import Report
from spacepatch.inspection.folders import listed_generations
from spacepatch.inspection.shard import FoundShard
from spacepatch.packing import lower_bound
from spacepatch.pipeline.finishing import constants_of, pixels_of, widths_of
from spacepatch.pipeline.plan import Plan
from spacepatch.shards import ShardReceipt

LAYOUT = "store members token_dtype token_width position_dtype pack_length".split()
"""Of the plan's layout, in dataset.json as it is."""

MEASURED = ("mean", "std")
"""What dataset.json says of an encoder, and the plan cannot know."""

Found = dict[str, FoundShard | None]
"""By stem, in task order; None where there is no receipt to go by."""


def check_dataset(
    dataset: dict[str, Any],
    document: dict[str, Any] | None,
    plan: Plan | None,
    found: Found,
    losses: list[dict[str, Any]] | None,
    sources: list[dict[str, Any]] | None,
    report: Report,
) -> None:
    """dataset.json says what plan.json says, lists the shards, and adds up."""
    for key in ("plan_id", "name", "settings", "fingerprints", "environment"):
        if document is not None and dataset.get(key) != document.get(key):
            report(f"{key} is not that of plan.json")
    if not listed_generations(dataset):
        report(f"plans is {dataset.get('plans')!r}")
    encoder = (document or dataset).get("encoder")
    derived = _derived(dataset.get("settings"), encoder)
    if not derived:
        report("its settings lack some that it needs")
    for key, value in derived.items():
        if dataset.get(key) != value:
            report(f"{key} is {dataset.get(key)!r}, the settings say {value!r}")
    _check_encoder(dataset.get("encoder"), encoder, report)
    if plan is not None:
        expected = {key: getattr(plan.layout, key) for key in LAYOUT}
        expected["token_widths"] = list(plan.layout.token_widths)
        for key, value in expected.items():
            if dataset.get(key) != value:
                report(f"{key} is {dataset.get(key)!r}, the plan says {value!r}")
    shards = [(stem, shard.receipt) for stem, shard in found.items() if shard is not None]
    if len(shards) < len(found):
        return  # totals without a shard are not those of the dataset
    listed: list[dict[str, Any]] = [
        {
            "name": stem,
            "split": receipt.split,
            "packs": receipt.packs,
            "segments": receipt.segments,
            "tokens": receipt.tokens,
            "bytes": receipt.num_bytes,
            "token_widths": widths_of(receipt),
        }
        for stem, receipt in shards
        if receipt.packs
    ]
    if dataset.get("shards") != listed:
        report(f"shards is not what the {len(listed)} receipts say")
    _check_receipts(dataset, plan, [receipt for _, receipt in shards], report)
    keys = ("packs", "segments", "tokens", "bytes")
    totals: dict[str, Any] = {key: sum(entry[key] for entry in listed) for key in keys}
    totals["shards"] = len(listed)
    if plan is not None:
        capacity = totals["packs"] * plan.layout.pack_length
        totals |= {
            "lower_bound": lower_bound(totals["tokens"], pack_length=plan.layout.pack_length),
            "fill": totals["tokens"] / capacity if capacity else 0.0,
            "sources": len(plan.sources),
            "ignored": plan.num_ignored,
            "clips": plan.num_clips,
            "planned_tokens": plan.num_tokens,
        }
    if sources is not None:
        totals["declined"] = sum(1 for row in sources if row["declined"])
        totals["sources_with_segments"] = sum(1 for row in sources if row["num_segments"])
        for key in ("frames_selected", "frames_written", "frames_lost"):
            totals[key] = sum(row[key] for row in sources)
    if losses is not None:
        totals["losses"] = dict(sorted(Counter(row["reason"] for row in losses).items()))
    found_totals = dataset.get("totals")
    found_totals = found_totals if isinstance(found_totals, dict) else {}
    for key, value in totals.items():
        if found_totals.get(key) != value:
            report(f"totals: {key} is {json.dumps(found_totals.get(key))}, recomputed {value}")


def _check_encoder(found: Any, planned: Any, report: Report) -> None:
    """dataset.json says of the encoder what the plan does, and what was measured."""
    if not isinstance(found, dict) or not isinstance(planned, dict):
        if found is not None or planned is not None:
            words = {True: "missing", False: "given"}
            report(f"encoder is {words[found is None]}, in the plan it is {words[planned is None]}")
        return
    for key in sorted({*planned, *found, *MEASURED}):
        if key not in found:
            report(f"encoder: {key} is missing")
        elif key not in MEASURED and found[key] != planned.get(key):
            report(f"encoder: {key} is not that of the plan")


def _check_receipts(
    dataset: dict[str, Any], plan: Plan | None, receipts: list[ShardReceipt], report: Report
) -> None:
    """What the receipts of an encoder's tokens come to together."""
    encoder = dataset.get("encoder")
    if isinstance(encoder, dict):
        expected = measure([receipt.channel_sums for receipt in receipts])
        for key, value in expected.items():
            if encoder.get(key) != value:
                report(f"encoder: {key} is {json.dumps(encoder.get(key))}, recomputed {value}")
    if plan is not None:
        pixels = json.loads(json.dumps(_pixels_of(plan, receipts)))
        if dataset.get("pixels") != pixels:
            report(f"pixels is {json.dumps(dataset.get('pixels'))}, recomputed {pixels}")


def _pixels_of(plan: Plan, receipts: list[ShardReceipt]) -> dict[str, Any] | None:
    tokens = sum(receipt.pixel_tokens for receipt in receipts)
    return pixels_of(plan, tokens, max((x.pack_pixel_tokens for x in receipts), default=0))


def _derived(settings: Any, encoder: Any) -> dict[str, Any]:
    """What dataset.json has of its settings; nothing where those are damaged."""
    try:
        facts = None if encoder is None else EncoderFacts.from_json(encoder)
        # As JSON has it: tuples are lists.
        constants = json.loads(json.dumps(constants_of(settings, facts)))
        return {"kind": settings["kind"], "constants": constants}
    except (KeyError, TypeError, ValueError):
        return {}
