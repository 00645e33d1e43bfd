"""`spacepatch bench`: where the time goes, and how many workers pay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spacepatch.cli.options import Json, Root, ShowConfig, Sources, with_settings
from spacepatch.cli.saying import say
from spacepatch.config import RunConfig
from spacepatch.storage import local_file
from spacepatch.wording import counted, duration

EXAMPLE = "Example:  spacepatch bench videos/ --out shards/ --fps 4"


@with_settings
def command(
    sources: Sources,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=local_file,
            help="Measure on the disk of this folder, which is not touched: what is written beside "
            "it is removed. Else the folder for temporary files is used.",
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", help="To measure, about; more give a larger sample.", min=1),
    ] = 20,
    root: Root = None,
    show_config: ShowConfig = False,
    json: Json = False,
    config: RunConfig,
) -> None:
    """Measure each stage of tokenize, and the best --workers, on a sample of these sources.

    Settings are those of tokenize. Sources are taken in an order drawn by --seed, of each its
    first clips; --workers is the most that is tried. Nothing is kept.
    """
    from spacepatch.cli import display
    from spacepatch.cli.progress import RunProgress
    from spacepatch.pipeline.benching import bench

    if show_config:
        display.show_config(config)
        return
    with RunProgress(resumes=False) as progress:
        figures = bench(
            sources,
            config=config,
            seconds=seconds,
            out=out,
            root=root,
            watch=progress.watch(),
            on_stage=lambda text: say(f"measuring: {text}", err=True),
        )
    if json:
        display.print_json(figures)
    else:
        _show(figures)
    machine = figures["machine"]
    if machine["is_busy"]:
        taken = machine["taken_by_others"]
        told = "" if taken is None else f" (others took {taken:.1f} of {machine['cores']} cores)"
        say(f"warning: the machine is busy{told}: do not trust these figures", err=True)


def _show(figures: dict[str, Any]) -> None:
    from spacepatch.cli import display

    lost = set(figures["lost_sources"])
    for loss in figures["losses"][: display.SOURCES_SHOWN]:
        word = "skipped" if loss["source"] in lost else "lost in part"
        say(f"{word}: {loss['source']}: {loss['reason']}: {loss['message']}", err=True)
    if len(figures["losses"]) > display.SOURCES_SHOWN:
        say(f"and {len(figures['losses']) - display.SOURCES_SHOWN} more, see --json", err=True)
    sample, planning = figures["sample"], figures["planning"]
    say(
        f"sample: {sample['sources']:,} of {counted(figures['sources'], 'source')}, "
        f"{counted(sample['clips'], 'clip')}, {counted(sample['frames'], 'frame')}, "
        f"{counted(sample['tokens'], 'token')}, "
        f"{sample['seconds_of_video']:,.1f} s of video"
        + ("" if sample["is_all"] else "; a longer --seconds takes more")
    )
    say(
        f"planning: {counted(planning['sources'], 'source')} in {planning['seconds']:.2f} s with "
        f"{counted(planning['workers'], 'worker')}, {planning['sources_per_second']:,.0f} a second"
    )
    say("")
    _show_stages(figures)
    say("")
    _show_workers(figures)


def _show_stages(figures: dict[str, Any]) -> None:
    from spacepatch.cli import display

    def cells(name: str, row: dict[str, Any]) -> list[str]:
        a_second = row["ms_per_second_of_video"]
        return [
            name,
            f"{row['ms_per_frame']:.3f}",
            "-" if a_second is None else f"{a_second:.2f}",
            f"{row['share']:.1%}",
        ]

    rows = [cells(name, row) for name, row in figures["stages"].items()]
    rows += [cells("whole", figures["whole"]), cells("floor", figures["floor"])]
    header = ["one worker", "ms/frame", "ms/s of video", "share"]
    display.show_table(header, rows, right={1, 2, 3})
    pictures = figures["pictures"]
    say(
        f"{counted(pictures['wanted'], 'frame')} wanted, {pictures['decoded']:,} decoded; "
        f"the floor decodes all {pictures['floor']:,} and does nothing else: the whole takes "
        f"{figures['floor']['ratio']:.2f}x as long"
    )
    encoder = figures["encoder"]
    if encoder is not None:
        say(
            f"the encoder is busy for {encoder['busy']:.0%} of a worker's time and waits for "
            f"frames {1 - encoder['busy']:.0%}; the worker waits for it "
            f"{encoder['jobs_wait_for_it']:.0%}"
        )


def _show_workers(figures: dict[str, Any]) -> None:
    from spacepatch.cli import display

    runs = figures["workers"]
    rows = [
        [
            row["workers"],
            f"{row['clips_per_second']:,.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_second'] / runs[0]['tokens_per_second']:.2f}x"
            if runs[0]["tokens"]
            else "-",
            f"{counted(row['lost_tokens'], 'token')} lost" if row["lost_tokens"] else "",
        ]
        for row in runs
    ]
    display.show_table(["workers", "clips/s", "tokens/s", "gain", ""], rows, right={0, 1, 2, 3})
    if figures["not_measured"]:
        skipped = ", ".join(map(str, figures["not_measured"]))
        say(f"the sample has too few sources to show {skipped} workers")
    best, expected = figures["best"], figures["expected"]
    if best is None:
        say("every run lost tokens that one worker had: see --worker-memory")
        return
    say(f"best: --workers {best}")
    about = "about " if expected["is_estimate"] else ""
    say(
        f"all of {counted(figures['sources'], 'source')}: {about}"
        f"{counted(expected['tokens'], 'token')}, expected to take "
        f"{duration(expected['seconds'])} with it, "
        f"{duration(expected['planning_seconds'])} of that for planning"
    )
