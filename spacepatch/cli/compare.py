"""`spacepatch compare`: what differs between two datasets."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from spacepatch.cli.options import Dataset, Json
from spacepatch.cli.saying import say
from spacepatch.storage import open_folder
from spacepatch.wording import counted

EXAMPLE = "Example:  spacepatch compare shards-a/ shards-b/"

CHANNELS_SHOWN = 8
VALUE_SHOWN = 60
"""Characters of a setting."""

Other = Annotated[
    Path,
    typer.Argument(metavar="OTHER", parser=open_folder, help="Another one.", show_default=False),
]


def command(first: Dataset, second: Other, *, json: Json = False) -> None:
    """Show what differs: settings, environment, sources, segments, tokens, losses, distributions.

    Segments are matched by source, time and view. Distances are Wasserstein's, in the unit of the
    quantity; those of latent channels are of sampled packs. Needs scipy where the two differ.

    Exit codes, as of diff: 0 the same, 1 different, 2 they cannot be compared.
    """
    from spacepatch.cli import display
    from spacepatch.errors import ConfigError, SpacepatchError
    from spacepatch.inspection import compare

    try:
        found = compare(first, second)
    except SpacepatchError as error:
        # 1 would say that they were compared.
        raise ConfigError(str(error)) from None
    if json:
        display.print_json(found)
    elif found["same"]:
        say(f"{first} and {second} are the same: settings, environment, sources, packs and tokens")
    else:
        _show(first, second, found)
    if not found["same"]:
        raise typer.Exit(1)


def _show(first: Path, second: Path, found: dict[str, Any]) -> None:
    say(f"{first} and {second} differ")
    for section, fields in found["fields"].items():
        if section == "tables":  # what differs in them comes below
            continue
        for key, value in fields.items():
            name = key if section == "other" else f"{section}.{key}"
            say(f"  {name}: {_brief(value['first'])} | {_brief(value['second'])}")
    _show_matched("sources", "other content", found["sources"])
    _show_matched("segments", "other tokens", found["segments"])
    _show_numbers(found)
    _show_distances(found["distributions"])
    if found["channels"] is not None:
        _show_channels(found["channels"])


def _show_matched(what: str, changed: str, found: dict[str, Any]) -> None:
    say("")
    say(
        f"{what}: {found['both']:,} in both, {found['changed']:,} of them with {changed}; "
        f"{found['only_in_first']:,} only in the first, {found['only_in_second']:,} only in the "
        "second"
    )
    if found.get("unchecked"):
        say(f"  not compared: {found['unchecked']:,} without a checksum (references)")
    words = {
        "only_in_first": "only in the first",
        "only_in_second": "only in the second",
        "changed": changed,
    }
    named = {
        kind: [_name(example) for example in examples]
        for kind, examples in found["examples"].items()
    }
    # Not one clip that is gone and one that is new.
    moved = [name for name in named["only_in_first"] if name in named["only_in_second"]]
    for name in moved:
        say(f"  with another stretch of time: {name}")
    for kind, examples in named.items():
        for name in examples:
            if name not in moved:
                say(f"  {words[kind]}: {name}")
        rest = found[kind] - len(examples)
        if rest:
            say(f"  {words[kind]}: and {rest:,} more")


def _name(example: str | dict[str, Any]) -> str:
    """Of a source, or of a segment."""
    if isinstance(example, str):
        return example
    return f"{example['source']} clip {example['clip']} view {example['view']}"


def _show_numbers(found: dict[str, Any]) -> None:
    from spacepatch.cli import display

    rows = [
        [key, _number(value["first"]), _number(value["second"])]
        for key, value in found["totals"].items()
    ]
    for reason, sides in found["losses"].items():
        shown = [
            f"{side['rows']:,} ({counted(side['frames'], 'frame')})" for side in sides.values()
        ]
        rows.append([f"lost: {reason}", *shown])
    say("")
    display.show_table(["", "first", "second"], rows, right={1, 2})


def _show_distances(distributions: dict[str, Any]) -> None:
    from spacepatch.cli import display

    rows = []
    for name, entry in distributions.items():
        means = [_number(entry[side]["mean"]) for side in ("first", "second")]
        rows.append([name.replace("_", " "), *means, _number(entry["distance"])])
    say("")
    display.show_table(
        ["segments by", "mean of first", "of second", "distance"], rows, right={1, 2, 3}
    )


def _show_channels(found: dict[str, Any]) -> None:
    from spacepatch.cli import display

    channels = found["channels"]
    furthest = sorted(channels, key=lambda row: (-row["distance"], row["channel"]))[:CHANNELS_SHOWN]
    rows = [
        [
            row["channel"],
            *(f"{row[side]['mean']:.4f} {row[side]['std']:.4f}" for side in ("first", "second")),
            _number(row["distance"]),
        ]
        for row in sorted(furthest, key=lambda row: row["channel"])
    ]
    packs = " and ".join(f"{found['packs'][side]:,}" for side in ("first", "second"))
    rest = "" if len(rows) == len(channels) else f"; the {len(rows)} furthest apart"
    say("")
    say(f"latents: mean and std of all, distance of {packs} packs sampled{rest}")
    display.show_table(["channel", "first", "second", "distance"], rows, right={0, 1, 2, 3})


def _brief(value: Any) -> str:
    text = json_text.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_SHOWN else f"{text[: VALUE_SHOWN - 3]}..."


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
