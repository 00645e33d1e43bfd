"""The report of a dataset, an unfinished run or one shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spacepatch.bounds import LowerBound
from spacepatch.config import RunConfig
from spacepatch.errors import ConfigError
from spacepatch.inspection.folders import locate
from spacepatch.pipeline.placement import Placement
from spacepatch.report.decoded_films import decode_films
from spacepatch.report.histograms import SegmentCounts, rows_of, source_sides
from spacepatch.report.otherwise import choose_shards, read_shard, try_lengths, try_packers
from spacepatch.report.records import (
    Chart,
    Page,
    Section,
    Table,
    Tile,
    short_of,
    size_of,
    text_of,
)
from spacepatch.report.samples import Sampled, choose_packs, read_packs, read_sources, show_packs
from spacepatch.report.sections import (
    HOW_TO_OPEN,
    SHOWN_TITLES,
    channels_section,
    chosen_settings,
    histogram,
    lengths_chart,
    losses_section,
    packers_chart,
    run_section,
    shards_section,
)
from spacepatch.report.thumbnails import Film
from spacepatch.storage import open_folder
from spacepatch.wording import bytes_of

SHARDS_LISTED = 200
"""In the figures for programs; `inspect --json` has them all."""


def report_dataset(
    path: str | Path, summary: dict[str, Any], *, config: RunConfig | None = None
) -> Page:
    """Describe what lies at `path` as a page.

    Args:
        summary: of `summarize`.
        config: where the encoder is that decodes latents or codes, for frames of them.

    Raises:
        ShardError: a file is missing or damaged.
        ConfigError: the encoder cannot decode, or is given for pixels.
        EncodeError: it is not that of the dataset.
    """
    config = config or RunConfig()
    _check_encoder(summary, config)
    folder, shards = locate(open_folder(path)).folder, summary["shards"]
    is_whole = summary["kind"] == "dataset" and summary["finished"]
    counts = SegmentCounts(summary["tokens"]["pack_length"])
    merged = [folder / "segments.parquet"]
    parts = [folder / f"{shard['name']}.segments.parquet" for shard in shards]
    for table in merged if is_whole else parts:
        counts.add_table(table)
    sections: list[Section | None] = [_run(summary)]
    if shards:
        sections += [
            shards_section(
                shards, pack_length=summary["tokens"]["pack_length"], splits=summary["splits"]
            ),
            _packs(folder, summary, counts, config, is_whole=is_whole),
            _segments(folder, summary, counts, is_whole=is_whole),
            channels_section(summary["encoder"] or {}),
            _otherwise(folder, summary),
        ]
    where = "losses.parquet" if is_whole else "the receipts of the shards"
    sections.append(
        losses_section(
            summary["losses"],
            hint=f"A reason each, with the first few examples. All of them are in {where}.",
        )
    )
    figures = dict(summary)
    figures["shards"] = shards[:SHARDS_LISTED]
    return Page(
        what=f"{summary['kind']} report",
        title=summary["name"],
        lead=_lead(summary),
        tiles=tuple(_tiles(summary)),
        sections=tuple(section for section in sections if section is not None),
        notes=tuple(_notes(summary)),
        footer=f"Plan {summary['plan_id']}, format version {summary['format_version']}. "
        "This page holds all that it shows and asks no network.",
        figures=figures,
    )


def _check_encoder(summary: dict[str, Any], config: RunConfig) -> None:
    if config.encoder is None:
        return
    if summary["encoder"] is None:
        raise ConfigError(f"--encoder {config.encoder}: these are pixels: leave it out")
    if not (summary["kind"] == "dataset" and summary["finished"]):
        raise ConfigError(
            f"--encoder {config.encoder}: frames are decoded of a finished dataset: leave it out"
        )


def _lead(summary: dict[str, Any]) -> str:
    totals, tokens = summary["totals"], summary["tokens"]
    if not summary["shards"]:
        return f"No segment of {totals['sources']:,} sources is here."
    kind = tokens["kind"] or "pixels"
    encoder = summary["encoder"]
    of = f" of {encoder['name']}" if encoder else ""
    return (
        f"{totals['segments']:,} segments of {totals['sources_with_segments']:,} sources, as "
        f"{kind}{of}, in packs of {tokens['pack_length']:,} tokens."
    )


def _notes(summary: dict[str, Any]) -> Iterator[str]:
    totals, tasks = summary["totals"], summary["tasks"]
    if not summary["finished"]:
        yield (
            f"This run is not finished: {tasks['done']:,} of {tasks['planned']:,} tasks are done, "
            "and the page shows those. The same spacepatch tokenize command goes on from here; "
            "make the page again then."
        )
    if not summary["shards"] and summary["finished"]:
        yield (
            f"Everything was lost: none of {totals['sources']:,} sources gave a segment. The "
            "reasons are below; mend the sources or the settings, and tokenize again with "
            "--overwrite."
        )


def _tiles(summary: dict[str, Any]) -> Iterator[Tile]:
    totals = summary["totals"]
    lost = totals["sources"] - totals["sources_with_segments"]
    yield Tile("Sources", f"{totals['sources_with_segments']:,}", f"{lost:,} without a segment")
    yield Tile("Segments", f"{totals['segments']:,}", f"{summary['sizes']['distinct']:,} sizes")
    yield Tile("Tokens", short_of(totals["tokens"]), _width(summary))
    bound = LowerBound(**summary["lower_bound"])
    yield Tile("Packs", f"{totals['packs']:,}", f"at least {bound.packs:,} needed")
    yield Tile("Fill", f"{totals['fill']:.2%}", f"of packs of {summary['tokens']['pack_length']:,}")
    yield Tile("Shards", f"{totals['shards']:,}", bytes_of(totals["bytes"]))
    written, selected = totals["frames_written"], totals["frames_selected"]
    note = "" if selected is None else f"of {selected:,} selected, {totals['frames_lost']:,} lost"
    yield Tile("Frames", f"{written:,}", note)
    error = summary["aspect_error"]
    yield Tile("Aspect error", f"{error['mean'] or 0:.2%}", f"{error['max'] or 0:.2%} at most")


def _width(summary: dict[str, Any]) -> str:
    tokens = summary["tokens"]
    if not tokens["token_widths"]:
        return ""
    return f"{', '.join(map(str, tokens['token_widths']))} × {tokens['token_dtype']} each"


# --- what was run ------------------------------------------------------------------------------


def _run(summary: dict[str, Any]) -> Section:
    tokens, encoder = summary["tokens"], summary["encoder"]
    patches = [
        " × ".join(map(str, (entry["tubelet_size"], *entry["patch_size"])))
        for entry in summary["patches"]
    ]
    facts = [("Kind", tokens["kind"] or "pixels"), ("Tubelet t × h × w", ", ".join(patches) or "–")]
    if tokens["layout"]:
        facts += [("Layout of a token", tokens["layout"]), ("Order of tokens", tokens["order"])]
    if encoder:
        facts += [
            ("Encoder", encoder["name"]),
            ("Frames of a latent", str(encoder["rule"])),
            ("Stride t × h × w", " × ".join(map(str, encoder["stride"]))),
            ("Channels", text_of(encoder["channels"])),
        ]
        if encoder["codebook_size"]:
            facts.append(("Codebook", text_of(encoder["codebook_size"])))
    drop = summary["drop"]
    if drop["policy"]:
        whole = drop["kept_tokens"] + drop["dropped_tokens"]
        share = drop["dropped_tokens"] / whole if whole else 0
        facts.append(("Dropped", f"{share:.1%} of tokens by {drop['policy']}"))
    if summary["views"] > 1:
        facts.append(("Views", text_of(summary["views"])))
    for entry in summary["decoders"]:
        facts.append((f"Read by {entry['decoder']}", f"{entry['segments']:,} segments"))
    return run_section(
        settings=summary["settings"],
        fingerprints=summary["fingerprints"],
        environment=summary["environment"],
        facts=chosen_settings(summary["settings"] or {}) + facts,
    )


# --- shards and packs --------------------------------------------------------------------------


def _packs(
    folder: Path,
    summary: dict[str, Any],
    counts: SegmentCounts,
    config: RunConfig,
    *,
    is_whole: bool,
) -> Section:
    pack_length = summary["tokens"]["pack_length"]
    chosen = choose_packs(summary["shards"], key=summary["plan_id"])
    packs = read_packs(folder, chosen)
    sources = read_sources(folder / "sources.parquet", packs) if is_whole else {}
    films: dict[str, Film] | None = None
    without = ""
    if summary["tokens"]["store"] == "refs":
        films, without = (
            {},
            (
                "No frames: the shards hold references, and no tokens. To see them, say where the "
                "sources lie: spacepatch preview --source-root DIR"
            ),
        )
    elif summary["encoder"]:
        films, without = _decoded(folder, packs, summary["encoder"], config)
    shown = show_packs(
        folder, packs, sources, pack_length=pack_length, films=films, without=without
    )
    total = summary["totals"]["packs"]
    drawn = "All packs"
    if len(shown) < total:
        drawn = f"{len(shown)} of {total:,} packs, drawn by the plan's id"
    texts = (f"{drawn}: {HOW_TO_OPEN.format('its frames and where it is from')}",)
    charts = [
        *histogram("Fill of packs", counts.fills, unit="fill", of="packs"),
        *histogram("Segments in a pack", counts.in_packs, unit="segments", of="packs"),
    ]
    return Section("packs", "How packs fill", texts, charts=tuple(charts), packs=shown)


def _decoded(
    folder: Path, packs: Sequence[Sampled], encoder: dict[str, Any], config: RunConfig
) -> tuple[dict[str, Film], str]:
    """Frames of an encoder's tokens by segment_id, and why others have none."""
    if config.encoder is None:
        kind = encoder["name"].partition(":")[0]
        return {}, (
            f"No frames: these are {encoder['kind']} of {encoder['name']}, which an encoder has to "
            f"decode. To see them, say where it lies: --encoder {kind}:WHERE"
        )
    return decode_films(folder, packs, config), (
        "No frames of this one: a few segments of each pack are decoded, none with tokens missing."
    )


# --- segments ----------------------------------------------------------------------------------


def _segments(
    folder: Path, summary: dict[str, Any], counts: SegmentCounts, *, is_whole: bool
) -> Section:
    charts: list[Chart] = []
    for key, (title, unit) in SHOWN_TITLES.items():
        charts += histogram(title, rows_of(summary["histograms"][key]), unit=unit)
    if is_whole:
        charts += histogram(
            "Shorter side before",
            source_sides(folder / "sources.parquet"),
            unit="pixels",
            of="sources",
            note="of sources, upright and with square pixels",
        )
    charts += histogram(
        "Shorter side after", counts.sides, unit="pixels", note="of the frames of segments"
    )
    charts += histogram(
        "Aspect error",
        counts.errors,
        unit="error",
        note="how far the ratio of a frame's sides is from its source's",
    )
    sizes = Table.of(
        ("size in pixels", "segments"),
        [(size_of(row["size"]), row["segments"]) for row in summary["sizes"]["most_common"]],
        title="The most common sizes",
        is_folded=True,
    )
    return Section("segments", "Segments", charts=tuple(charts), tables=(sizes,))


# --- other packs -------------------------------------------------------------------------------


def _otherwise(folder: Path, summary: dict[str, Any]) -> Section:
    settings, pack_length = summary["settings"] or {}, summary["tokens"]["pack_length"]
    shards = choose_shards(summary["shards"])
    rule = str((summary["encoder"] or {}).get("rule", ""))
    # Where the first latent covers one frame, what is cut off has no such latent.
    is_cut = not rule.startswith("1+")
    read = [
        read_shard(folder / f"{shard['name']}.segments.parquet", is_cut=is_cut) for shard in shards
    ]
    max_segments = settings.get("max_segments")
    placement = Placement(pack_length, "best-fit-decreasing", None, max_segments, False)
    packs = {"as it is": sum(shard["packs"] for shard in shards)}
    packs |= try_packers(read, placement)
    tokens = sum(shard.tokens for shard in read)
    texts = [
        "From the real lengths of the segments, each shard packed by itself. Whole segments only; "
        "for shorter packs, long ones are cut between rows of their grid.",
    ]
    if len(shards) < len(summary["shards"]):
        texts.append(
            f"Of {len(summary['shards']):,} shards, {len(shards):,} were looked at, evenly spread: "
            "numbers of packs are theirs."
        )
    lengths = try_lengths(read, pack_length=pack_length, max_segments=max_segments)
    charts = [
        packers_chart(
            packs,
            tokens=tokens,
            pack_length=pack_length,
            chosen="as it is",
            note="spacepatch repack --packer writes other packs of the same segments",
        ),
        lengths_chart(
            lengths,
            pack_length=pack_length,
            note="packed by best-fit-decreasing; spacepatch repack --pack-length",
        ),
    ]
    return Section("otherwise", "Packed otherwise", tuple(texts), charts=tuple(charts))
