"""What people see of a result: on stdout, losses and warnings on stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from spacepatch.bounds import LowerBound
from spacepatch.cli.saying import printable, say
from spacepatch.config import RunConfig, to_toml
from spacepatch.data import Loss, Source
from spacepatch.hints import LOOK
from spacepatch.pipeline import RunSummary
from spacepatch.probes import Probed, describe_cut
from spacepatch.wording import bytes_of, counted

SOURCES_SHOWN = 40
"""Rows of a table for people; --json has them all."""


def print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, default=str))


def show_config(config: RunConfig) -> None:
    typer.echo(to_toml(config.effective()), nl=False)


def show_summary(out: Path, summary: RunSummary, *, as_json: bool) -> None:
    """The result of `tokenize`; losses as warnings on stderr."""
    totals = summary.totals
    show_losses(summary.losses, out / "losses.parquet")
    if as_json:
        losses = [asdict(loss) for loss in summary.losses]
        document: dict[str, Any] = {"totals": totals, "losses": losses}
        document["lost_sources"] = summary.lost_sources
        if summary.other_tokens is not None:
            document["other_tokens"] = summary.other_tokens
        print_json(document)
        return
    show_totals(out, totals)
    if totals["declined"]:
        typer.echo(
            f"read by pyav, because the decoder declined: {counted(totals['declined'], 'source')}, "
            f"see `declined` in {out / 'sources.parquet'}",
            err=True,
        )
    if summary.lost_sources:
        typer.echo(
            f"{counted(len(summary.lost_sources), 'source')} lost entirely: exit code 3", err=True
        )
    if not totals["segments"]:
        typer.echo(f"nothing was written: {LOOK}", err=True)


def show_losses(losses: Sequence[Loss], table: Path) -> None:
    """On stderr; those beyond a screen are in `table`."""
    for loss in losses[:SOURCES_SHOWN]:
        what = loss.source if loss.clip is None else f"{loss.source} clip {loss.clip}"
        frames = f" ({counted(loss.num_frames, 'frame')})" if loss.num_frames else ""
        say(f"lost: {what}: {loss.reason}: {loss.message}{frames}", err=True)
    if len(losses) > SOURCES_SHOWN:
        typer.echo(f"lost: and {len(losses) - SOURCES_SHOWN} more, see {table}", err=True)


def show_totals(out: Path, totals: dict[str, Any], *, bound: str | None = None) -> None:
    """One line: what a dataset holds; `bound` is a better lower bound of its packs, if known."""
    plain = LowerBound(totals["lower_bound"], "tokens").describe(totals["packs"])
    typer.echo(
        f"{out}: {counted(totals['segments'], 'segment')} of "
        f"{counted(totals['sources_with_segments'], 'source')}, "
        f"{counted(totals['tokens'], 'token')} in {counted(totals['packs'], 'pack')} "
        f"(fill {totals['fill']:.1%}, {bound or plain}), "
        f"{counted(totals['shards'], 'shard')}, {bytes_of(totals['bytes'])}"
    )


def packs_bound(summary: dict[str, Any]) -> str:
    """The lower bound of what `summarize` found, and how it was had."""
    return LowerBound(**summary["lower_bound"]).describe(summary["totals"]["packs"])


def attention_spread(spread: dict[str, Any]) -> str:
    """How evenly the cost of attention is spread over packs."""
    shown = _spread(spread)
    before = spread["unbalanced"]
    return shown if before is None else f"{shown}; without balance {_spread(before)}"


def _spread(spread: dict[str, Any]) -> str:
    return f"cost max/mean {spread['max_over_mean']:.3f}, variation {spread['variation']:.1%}"


def show_forecast(figures: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(figures)
        return
    totals = figures["totals"]
    # Static tubelets are known when they are seen: until then, the most that there can be.
    most = "<= " if totals["is_bound"] else ""
    rows = []
    listed = figures["sources"] or []
    for row in listed[:SOURCES_SHOWN]:
        lost = ", ".join(sorted({loss["reason"] for loss in row["losses"]}))
        rows.append(
            [
                row["source"],
                _size(row["display_size"]),
                _size(row["size"]),
                f"{row['seconds']:.2f}",
                _rates(row["source_fps"], row["sampled_fps"]),
                f"{row['source_frames']:,} -> {row['frames']:,}",
                row["clips"],
                f"{most}{row['tokens']:,}",
                lost,
            ]
        )
    header = "source shown resized seconds fps frames clips tokens lost".split()
    if listed:
        show_table(header, rows, right={3, 4, 5, 6, 7})
        if len(listed) > SOURCES_SHOWN:
            typer.echo(f"... and {counted(len(listed) - SOURCES_SHOWN, 'more source')} (--json)")
        typer.echo("")
    typer.echo(
        f"{counted(totals['sources'], 'source')} ({counted(totals['ignored'], 'file')} ignored), "
        f"{counted(totals['clips'], 'clip')}, {counted(totals['frames'], 'frame')}, "
        f"{most}{counted(totals['tokens'], 'token')}"
    )
    if figures["encoder"] is not None:
        encoder = figures["encoder"]
        size = encoder["codebook_size"]
        typer.echo(
            f"{encoder['kind']} of {encoder['name']}: frames {encoder['rule']}, stride "
            f"{'x'.join(map(str, encoder['stride']))}, {counted(encoder['channels'], 'channel')}"
            + (f", codebook of {size:,}" if size else "")
            + f", {figures['token_dtype']}"
            + (
                f"; beside them pixels {'x'.join(map(str, figures['pixel_tubelet']))}"
                if figures["pixel_tubelet"]
                else ""
            )
        )
    bound = LowerBound(**figures["lower_bound"]).describe(totals["packs"])
    is_bound = most or figures["store"].startswith("compressed")
    typer.echo(
        f"{most}{counted(totals['packs'], 'pack')} of {totals['pack_length']:,}, {bound}, fill "
        f"{totals['fill']:.2%}, {counted(totals['shards'], 'shard')}, "
        f"{'at most' if is_bound else 'about'} {bytes_of(totals['bytes'])}"
    )
    typer.echo("")
    packers = [
        [name, entry["packs"], f"{entry['fill']:.2%}", "<- chosen" * (name == totals["packer"])]
        for name, entry in figures["packers"].items()
    ]
    show_table(["packer", "packs", "fill", ""], packers, right={1, 2})
    if figures["better_pack_lengths"]:
        near = ", ".join(
            f"{entry['pack_length']} ({entry['fill']:.2%})"
            for entry in figures["better_pack_lengths"]
        )
        typer.echo(f"\nbetter pack lengths nearby: {near}")
    for row in listed[:SOURCES_SHOWN]:
        for loss in row["losses"]:
            say(f"lost: {row['source']}: {loss['reason']}: {loss['message']}", err=True)
    if figures["sources"] is None:  # too many to be listed; plan.parquet has them
        for reason, count in totals["losses"].items():
            typer.echo(f"lost: {counted(count, 'time')} {reason}", err=True)
    if not totals["clips"]:
        say(f"warning: there would be no shard: {LOOK}", err=True)
    for names in figures["duplicates"]:
        say(f"warning: the same file: {', '.join(names)}", err=True)
    for warning in figures["warnings"]:
        say(f"warning: {warning}", err=True)


def show_probes(found: list[tuple[Source, Probed]], *, as_json: bool) -> None:
    documents = [_probe_document(source, probed) for source, probed in found]
    if as_json:
        print_json(documents)
        return
    for document in documents:
        say(document.pop("source"))
        for key, value in document.items():
            if key == "parts":
                value = ", ".join(
                    f"{part['size']} from frame {part['first_frame']}" for part in value
                )
            say(f"  {key:20} {value}")


def _probe_document(source: Source, probed: Probed) -> dict[str, Any]:
    info = probed.info
    if info is None:
        return {"source": source.name, "reason": probed.reason, "message": probed.message}
    steps = info.frame_pts[1:] - info.frame_pts[:-1]
    seconds = (info.stop_pts - int(info.frame_pts[0])) * info.time_base
    return {
        "source": source.name,
        "container": info.container,
        "codec": info.codec,
        "stream": info.stream_index,
        "coded_size": _size(info.coded_size),
        "display_size": _size(info.display_size),
        "rotation": info.rotation,
        "pixel_aspect_ratio": str(info.pixel_aspect_ratio),
        "pixel_format": info.pixel_format,
        "bit_depth": info.bit_depth,
        "colour": " ".join(f"{key}={value}" for key, value in info.colour.items() if value),
        "hdr": info.hdr or "no",
        "interlaced": info.interlaced,
        "alpha": info.alpha,
        "time_base": str(info.time_base),
        "frames": len(info.frame_pts),
        "packets": info.num_packets,
        "start_seconds": float(int(info.frame_pts[0]) * info.time_base),
        "seconds": 0.0 if info.still else float(seconds),
        "frame_rate": "variable" if len(set(steps.tolist())) > 1 else "constant",
        "pts_repaired": info.pts_repaired or "no",
        "cut_off": describe_cut(info) if info.cut_off else "no",
        "parts": [
            {"first_frame": part.first, "size": _size(part.display_size)} for part in info.parts
        ],
        "content_id": probed.content_id,
    }


def _rates(source: float | None, sampled: float | None) -> str:
    """Frames a second, of the video and of the samples; only the first where all are taken."""
    if source is None:
        return "-"
    return f"{source:.2f}" + ("" if sampled is None else f" -> {sampled:g}")


def _size(size: Sequence[int] | None) -> str:
    """(h, w) as people write it."""
    return f"{size[1]}x{size[0]}" if size else "-"


def show_table(header: list[str], rows: list[list[Any]], *, right: set[int]) -> None:
    cells = [header, *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        line = "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        say(line.rstrip())
