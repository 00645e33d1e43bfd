"""Parts that the page of a dataset and that of a plan have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from spacepatch.config import RunConfig
from spacepatch.config.settings import EXCLUSIVE
from spacepatch.report.charts import draw_band, draw_bars, draw_spreads
from spacepatch.report.histograms import Rows
from spacepatch.report.records import Cell, Chart, Section, Table, text_of
from spacepatch.wording import bytes_of

SHOWN_TITLES = {
    "tokens": ("Tokens of a segment", "tokens"),
    "duration_seconds": ("Duration of a segment", "seconds"),
    "source_fps": ("Frames a second of the source", "fps"),
    "sampled_fps": ("Frames a second that were sampled", "fps"),
    "aspect_ratio": ("Aspect ratio, width / height", "w / h"),
}
"""What `summarize` counts, as it is shown."""


HOW_TO_OPEN = (
    "each bar is a pack, each part of it a segment, as wide as it has tokens. Click a segment, or "
    "press Enter on it, to see {}; arrow keys go from one to the next."
)


def histogram(
    title: str, rows: Rows, *, unit: str, of: str = "segments", note: str = ""
) -> list[Chart]:
    """A chart of a histogram; none where it counts nothing."""
    if not rows:
        return []
    total = sum(count for _, count in rows)
    table = Table.of(
        (unit, of, "share"), [(name, count, f"{count / total:.1%}") for name, count in rows]
    )
    return [draw_bars(title, rows, columns=(unit, of), table=table, note=note)]


def run_section(
    *,
    settings: dict[str, Any] | None,
    fingerprints: dict[str, str] | None,
    environment: dict[str, str] | None,
    facts: Sequence[tuple[str, str]],
    title: str = "What was run",
) -> Section:
    """Settings that are not the defaults, then all of them, fingerprints, environment."""
    tables = []
    texts: list[str] = []
    if settings is None:
        texts.append(
            "A shard alone does not say its settings: give the folder that it is of to see them."
        )
    else:
        changed = changed_settings(settings)
        if changed:
            columns = ("setting", "value", "default")
            tables.append(Table.of(columns, changed, title="Not as by default"))
        else:
            texts.append("Every setting has its default.")
        rows = sorted((key, _setting(value)) for key, value in settings.items())
        tables.append(Table.of(("setting", "value"), rows, title="All settings", is_folded=True))
    made = [
        *((f"{name} fingerprint", value) for name, value in sorted((fingerprints or {}).items())),
        *sorted((environment or {}).items()),
    ]
    if made:
        title_of_made = "Fingerprints and environment"
        tables.append(Table.of(("what", "value"), made, title=title_of_made, is_folded=True))
    return Section("run", title, tuple(texts), tuple(facts), tables=tuple(tables))


def chosen_settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Of settings that exclude each other, those that hold: which frames, and how large."""
    return [
        (
            key.replace("_", " ").capitalize().replace("Fps", "Frames a second"),
            text_of(settings[key]),
        )
        for group in EXCLUSIVE
        for key in group
        if settings.get(key)
    ]


def changed_settings(settings: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(setting, value, default) of those that differ."""
    defaults = RunConfig().effective()
    return [
        (key, _setting(value), _setting(defaults.get(key)))
        for key, value in sorted(settings.items())
        if key in defaults and value != defaults[key]
    ]


def _setting(value: Any) -> str:
    return "none" if value is None else text_of(value).replace(",", "")


SHARDS_IN_BARS = 16
"""A bar each; of more, a line."""
SHARDS_IN_CHART = 120
"""Points of the chart of shards: with more shards, each stands for several."""


def shards_section(
    shards: Sequence[dict[str, Any]], *, pack_length: int, splits: dict[str, Any]
) -> Section:
    """How full each shard is.

    Args:
        shards, splits: as of `summarize`.
    """
    each = -(-len(shards) // SHARDS_IN_CHART)
    points, rows = [], []
    for first in range(0, len(shards), each):
        group = shards[first : first + each]
        fills = [shard["fill"] for shard in group]
        packs = sum(shard["packs"] for shard in group)
        mean = sum(shard["tokens"] for shard in group) / (packs * pack_length)
        name = group[0]["name"] + (f" to {group[-1]['name']}" if len(group) > 1 else "")
        points.append((name, first, min(fills), mean, max(fills)))
        rows.append(
            (
                name,
                packs,
                sum(shard["segments"] for shard in group),
                sum(shard["tokens"] for shard in group),
                f"{mean:.2%}",
                f"{min(fills):.2%}",
                bytes_of(sum(shard["bytes"] for shard in group)),
            )
        )
    columns = ("shard", "packs", "segments", "tokens", "fill", "lowest fill", "size")
    table = Table.of(columns, rows)
    if len(shards) <= SHARDS_IN_BARS:
        bars = [(name, mean) for name, _, _, mean, _ in points]
        written = [f"{mean:.2%}" for _, mean in bars]
        chart = draw_bars(
            "Fill of shards", bars, columns=("shard", "fill"), numbers=written, most=1, table=table
        )
    else:
        note = f"Each point stands for {each} shards; the band is from the lowest to the highest."
        chart = draw_band(
            "Fill of shards",
            points,
            columns=("shard", "fill"),
            table=table,
            note=note if each > 1 else "",
        )
    tables = []
    if len(splits) > 1:
        names = "sources_with_segments segments tokens packs shards".split()
        tables.append(
            Table.of(
                ("split", "sources", *names[1:], "fill"),
                [
                    (split, *(entry[name] for name in names), f"{entry['fill']:.2%}")
                    for split, entry in splits.items()
                ],
                title="Splits",
            )
        )
    return Section("shards", "Shards", charts=(chart,), tables=tuple(tables))


def losses_section(losses: Sequence[dict[str, Any]], *, hint: str) -> Section:
    """By reason, how much was lost, and examples.

    Args:
        losses: rows of `summarize`.
        hint: where all of them are.
    """
    if not losses:
        return Section("losses", "Losses", ("Nothing was lost.",))
    rows = [(entry["reason"], entry["rows"]) for entry in losses]
    table = Table.of(
        ("reason", "losses", "frames", "tokens", "can be retried"),
        [
            (row["reason"], row["rows"], row["frames"], row["tokens"], row["retryable"])
            for row in losses
        ],
    )
    examples = Table.of(
        ("reason", "source", "clip", "stage", "what happened"),
        [
            (row["reason"], one["source"], one["clip"], one["stage"], one["message"])
            for row in losses
            for one in row["examples"]
        ],
        title="Examples",
    )
    texts = [hint]
    if any(row["retryable"] for row in losses):
        texts.append("Some can be tried again: spacepatch tokenize with --retry-lost.")
    chart = draw_bars("Losses by reason", rows, columns=("reason", "losses"), table=table)
    return Section("losses", "Losses", tuple(texts), charts=(chart,), tables=(examples,))


def packers_chart(
    packs: dict[str, int], *, tokens: int, pack_length: int, chosen: str, note: str
) -> Chart:
    """Fill by packer, the best first."""
    fills = {name: tokens / (count * pack_length) if count else 0 for name, count in packs.items()}
    order = sorted(packs, key=lambda name: (packs[name], name != chosen, name))
    least = packs.get(chosen, 0)
    table = Table.of(
        ("packer", "packs", "fill", "packs more than now"),
        [(name, packs[name], f"{fills[name]:.2%}", packs[name] - least) for name in order],
    )
    return draw_bars(
        "Fill by packer",
        [(name, fills[name]) for name in order],
        columns=("packer", "fill"),
        numbers=[f"{fills[name]:.2%}" for name in order],
        marked=chosen,
        most=1,
        table=table,
        note=note,
    )


def lengths_chart(found: Iterable[tuple[int, int, float]], *, pack_length: int, note: str) -> Chart:
    """Fill by pack length."""
    rows = list(found)
    return draw_bars(
        "Fill by pack length",
        [(f"{length:,}", fill) for length, _, fill in rows],
        columns=("pack length", "fill"),
        numbers=[f"{fill:.2%}" for _, _, fill in rows],
        marked=f"{pack_length:,}",
        most=1,
        table=Table.of(
            ("pack length", "packs", "fill"),
            [(length, packs, f"{fill:.2%}") for length, packs, fill in rows],
        ),
        note=note,
    )


MOST_CHANNELS = 64


def channels_section(encoder: dict[str, Any]) -> Section | None:
    """Mean and deviation of each channel of what was written; None: nothing was measured."""
    means, deviations = encoder.get("mean"), encoder.get("std")
    if not means or not deviations:
        return None
    rows = [
        (f"channel {place}", mean, std)
        for place, (mean, std) in enumerate(zip(means, deviations, strict=True))
    ]
    columns = ("channel", "mean", "deviation")
    chart = draw_spreads(
        "Mean ± standard deviation", rows[:MOST_CHANNELS], columns=columns, note="as stored, raw"
    )
    constants: list[tuple[str, Cell]] = [
        (str(key), ", ".join(map(text_of, value)) if isinstance(value, list) else text_of(value))
        for key, value in sorted((encoder.get("constants") or {}).items())
        if value is not None
    ]
    texts = [
        "Latents are stored as the model gives them. The loader brings them to the model's own "
        "scale with the constants of its config."
    ]
    if len(rows) > MOST_CHANNELS:
        texts.append(f"The chart has the first {MOST_CHANNELS} of {len(rows)} channels.")
    tables = [Table.of(("constant of the model", "value"), constants)] if constants else []
    if len(rows) > MOST_CHANNELS:
        tables.append(Table.of(columns, rows, title="All channels", is_folded=True))
    return Section(
        "channels", "Channels of latents", tuple(texts), charts=(chart,), tables=tuple(tables)
    )
