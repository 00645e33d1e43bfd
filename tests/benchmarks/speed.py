"""How fast `spacepatch tokenize` is, beside decoding alone and beside what one writes by hand.

All are whole processes, from start to end, that take turns; a ratio is of two runs of one round.

- `decode-only`: every frame is decoded and thrown away. The floor of who decodes every frame.
- `hand-written`: decord, torch, einops and webdataset; fewer rounds, because it is slow.
- `spacepatch ...`: `python -m spacepatch tokenize`, with nothing but the settings that are named.
- `write-and-hash`: as many bytes as spacepatch wrote, hashed and written. No part of any target.

First, unmeasured, each work of spacepatch is done by one worker and by two; every byte is compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import clips as making
from tests.benchmarks.children import Run, Runs, ratios, take_turns
from tests.benchmarks.contenders import (
    Digest,
    add_options,
    decode_only,
    digests,
    hand_written,
    prepared,
    spacepatch,
    tokens_said,
    write_floor,
)
from tests.benchmarks.results import RESULTS, Figure, conclude

AREA = ("--resampler", "area")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Settings of spacepatch, and what is wanted of them."""

    name: str
    settings: Sequence[str]
    most_of_floor: float
    """Seconds, decode-only being 1."""
    least_by_hand: float
    """How many times as fast as the stack by hand."""


@dataclass(frozen=True, kw_only=True)
class Work:
    name: str
    clips: Callable[[making.Clips], Path]
    fps: float
    """What the stack by hand is told."""
    variants: Sequence[Variant]


WORKS = (
    Work(
        name="12 clips, 8 fps",
        clips=making.Clips.yardstick,
        fps=8,
        variants=(
            Variant(name="bicubic", settings=(), most_of_floor=1.0, least_by_hand=2.6),
            Variant(name="area", settings=AREA, most_of_floor=0.9, least_by_hand=2.6),
        ),
    ),
    Work(
        name="12 clips, 2 fps",
        clips=making.Clips.yardstick,
        fps=2,
        variants=(
            Variant(name="bicubic", settings=("--fps", "2"), most_of_floor=0.85, least_by_hand=2.1),
        ),
    ),
    Work(
        name="12 clips, every frame",
        clips=making.Clips.yardstick,
        fps=making.FPS,
        variants=(
            Variant(
                name="bicubic", settings=("--every-frame",), most_of_floor=1.8, least_by_hand=3
            ),
            Variant(
                name="area", settings=("--every-frame", *AREA), most_of_floor=1.5, least_by_hand=3
            ),
        ),
    ),
    Work(
        name="500 short clips",
        clips=making.Clips.short,
        fps=8,
        variants=(Variant(name="bicubic", settings=(), most_of_floor=1.6, least_by_hand=2),),
    ),
)


@dataclass(frozen=True)
class Measured:
    """One work, done by all contenders."""

    runs: Runs
    figures: list[Figure]
    tokens: dict[str, int]
    """By contender."""
    num_bytes: int
    """Of all files of the first variant."""
    differing: dict[str, list[str]]
    """By variant: files that one worker and two do not write alike."""


def measure(work: Work, clips: Path, out: Path, *, rounds: int, rounds_by_hand: int) -> Measured:
    differing, num_bytes = {}, 0
    for variant in work.variants:
        found = [
            digests([clips], out, settings=[*variant.settings, "--workers", str(workers)])
            for workers in (1, 2)
        ]
        differing[variant.name] = differing_files(*found)
        num_bytes = num_bytes or sum(size for size, _ in found[0].values())
    contenders: dict[str, Callable[[], Run]] = {
        "decode-only": partial(decode_only, [clips]),
        "hand-written": partial(hand_written, clips, out, fps=work.fps),
        **{
            f"spacepatch {variant.name}": partial(
                spacepatch, [clips], out, settings=variant.settings
            )
            for variant in work.variants
        },
        "write-and-hash": partial(write_floor, out, num_bytes=num_bytes),
    }
    runs = take_turns(contenders, rounds=rounds, most_rounds={"hand-written": rounds_by_hand})
    tokens = {
        name: tokens_said(made[0])
        for name, made in runs.items()
        if made and name not in ("decode-only", "write-and-hash")
    }
    return Measured(runs, list(figures_of(work, runs)), tokens, num_bytes, differing)


def differing_files(one: Mapping[str, Digest], other: Mapping[str, Digest]) -> list[str]:
    """Files that are not in both, or not with the same bytes."""
    return sorted(name for name in one | other if one.get(name) != other.get(name))


def figures_of(work: Work, runs: Runs) -> list[Figure]:
    figures = []
    for variant in work.variants:
        name, ours = f"{work.name}, {variant.name}", f"spacepatch {variant.name}"
        of_floor = ratios(runs, ours, "decode-only")
        figures.append(
            Figure(name, "time, decode-only = 1", of_floor, at_most=variant.most_of_floor)
        )
        if by_hand := ratios(runs, "hand-written", ours):
            measure = "times as fast as hand-written"
            figures.append(Figure(name, measure, by_hand, at_least=variant.least_by_hand))
    writing = ratios(runs, "write-and-hash", "decode-only")
    return [*figures, Figure(work.name, "write-and-hash, decode-only = 1", writing)]


def run_works(
    works: Sequence[Work],
    clips: making.Clips,
    out: Path,
    *,
    rounds: int,
    rounds_by_hand: int,
    path: Path,
) -> int:
    """Measure the works, write the results to `path`, and return the exit code."""
    measured: dict[str, Measured] = {}
    for work in works:
        folder = work.clips(clips)
        making.read_once([folder])
        print(work.name, file=sys.stderr)
        measured[work.name] = one = measure(
            work, folder, out, rounds=rounds, rounds_by_hand=rounds_by_hand
        )
        for variant, files in one.differing.items():
            verdict = f"NOT the same: {', '.join(files)}" if files else "the same"
            print(f"{work.name}, {variant}: bytes written by 1 worker and by 2 are {verdict}")
    settings: dict[str, Any] = {
        "source": clips.name,
        "rounds": rounds,
        "works": {
            name: {
                "bytes": one.num_bytes,
                "tokens": one.tokens,
                "differ_by_workers": one.differing,
            }
            for name, one in measured.items()
        },
    }
    code = conclude(
        [figure for one in measured.values() for figure in one.figures],
        path=path,
        settings=settings,
        runs={name: one.runs for name, one in measured.items()},
    )
    is_same = not any(files for one in measured.values() for files in one.differing.values())
    return code if is_same else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    making.add_options(parser)
    add_options(parser)
    parser.add_argument("--rounds-hand-written", type=int, default=3, help="of these rounds")
    parser.add_argument(
        "--only", metavar="WORDS", default="", help="works with these in their name"
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "speed.json")
    options = parser.parse_args()
    works = [work for work in WORKS if options.only in work.name]
    if not works:
        parser.error(f"--only {options.only!r}: none of {', '.join(w.name for w in WORKS)}")
    with prepared(options) as folder:
        return run_works(
            works,
            making.open_clips(options),
            folder / "out",
            rounds=options.rounds,
            rounds_by_hand=options.rounds_hand_written,
            path=options.json,
        )


if __name__ == "__main__":
    sys.exit(main())
