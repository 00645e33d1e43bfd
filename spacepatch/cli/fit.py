"""`spacepatch fit`: learn an encoder from the videos themselves."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spacepatch.cli.options import Json, Overwrite, Root, Sources, with_settings
from spacepatch.config import RunConfig
from spacepatch.config.frames import DecodeFields, SamplingFields, SizeFields
from spacepatch.storage import local_file
from spacepatch.wording import counted

if TYPE_CHECKING:
    from spacepatch.pipeline.fitting import FitSummary

EXAMPLE = "Example:  spacepatch fit videos/ --out codec.safetensors --codebook 1024"

LOST_SOURCES = 3
"""Exit code: done, with losses of whole sources."""
OPTIONS = {
    *SamplingFields.model_fields,
    *(DecodeFields.model_fields.keys() - {"alpha"}),
    *SizeFields.model_fields,
    *"tail seed sample limit workers timeout worker_memory".split(),
}
"""Settings that change what blocks are taken; the others would be without effect."""


def _command(
    sources: Sources,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            parser=local_file,
            help="File for the codec: tokenize --encoder linear:FILE.",
        ),
    ],
    block: Annotated[
        str, typer.Option("--block", help="Frames x height x width of pixels in a latent.")
    ] = "4x8x8",
    channels: Annotated[
        int, typer.Option("--channels", help="Of a latent. More are closer to the pixels.", min=1)
    ] = 16,
    codebook: Annotated[
        int | None,
        typer.Option("--codebook", help="Give codes of so many, instead of latents.", min=2),
    ] = None,
    residual: Annotated[
        int,
        typer.Option(
            "--residual", help="Stages of codes, each of what the one before leaves.", min=1
        ),
    ] = 1,
    sample_blocks: Annotated[
        int,
        typer.Option(
            "--sample-blocks",
            help="Blocks to learn from, about; of every clip its share.",
            min=1,
        ),
    ] = 100_000,
    root: Root = None,
    overwrite: Overwrite = False,
    json: Json = False,
    config: RunConfig,
) -> None:
    """Learn the best linear encoder of these videos, with a codebook if asked for.

    Principal components of spacetime blocks; k-means for the codes. The same videos, settings and
    seed give the same file. Frames are chosen, scaled and decoded as by tokenize.
    """
    from spacepatch.cli.progress import RunProgress
    from spacepatch.cli.saying import say
    from spacepatch.pipeline.fitting import fit

    with RunProgress(resumes=False) as progress:
        summary = fit(
            sources,
            out=out,
            config=config,
            block=block,
            channels=channels,
            codebook=codebook,
            residual=residual,
            sample_blocks=sample_blocks,
            root=root,
            overwrite=overwrite,
            on_probed=progress.watch().on_probed,
            on_stage=lambda text: say(text, err=True),
        )
    _show(out, summary, as_json=json)
    if summary.lost_sources:
        raise typer.Exit(LOST_SOURCES)


def _show(out: Path, summary: FitSummary, *, as_json: bool) -> None:
    from spacepatch.cli import display
    from spacepatch.cli.saying import say

    report = summary.report
    if as_json:
        stages = [{**asdict(stage), "perplexity": stage.perplexity} for stage in report.stages]
        display.print_json({**asdict(summary), "report": {**asdict(report), "stages": stages}})
        return
    for loss in summary.losses[: display.SOURCES_SHOWN]:
        what = loss.source if loss.clip is None else f"{loss.source} clip {loss.clip}"
        say(f"lost: {what}: {loss.reason}: {loss.message}", err=True)
    if len(summary.losses) > display.SOURCES_SHOWN:
        say(f"lost: and {len(summary.losses) - display.SOURCES_SHOWN} more, see --json", err=True)
    say(
        f"{out}: {counted(report.channels, 'channel')} for "
        f"{counted(report.block_values, 'value')}, learned from "
        f"{counted(report.num_blocks, 'block')} of {counted(summary.num_sources, 'source')}; "
        f"PSNR on {counted(report.num_held_out, 'other')}"
    )
    say("")
    say("channels  variance   PSNR dB")
    for count, decibels in report.psnr_of_channels.items():
        chosen = "  <- chosen" * (count == report.channels)
        say(f"{count:8}  {report.variance_of_channels[count]:8.2%}  {decibels:8.2f}{chosen}")
    for number, stage in enumerate(report.stages, 1):
        if number == 1:
            say("")
            say("stage   PSNR dB    codes     dead  perplexity  entropy bits")
        say(
            f"{number:5}  {stage.psnr:8.2f}  {stage.used + stage.dead:7,}  {stage.dead:7,}  "
            f"{stage.perplexity:10,.1f}  {stage.entropy_bits:12.3f}"
        )
    if summary.lost_sources:
        say(f"{counted(len(summary.lost_sources), 'source')} lost entirely: exit code 3", err=True)


_with_all_settings = with_settings(_command)
_ALL = inspect.signature(_with_all_settings).parameters
_NO_OPTIONS = dict.fromkeys((RunConfig.model_fields.keys() & _ALL.keys()) - OPTIONS)


@wraps(_command)
def command(**given: Any) -> None:
    from spacepatch.pipeline.fitting import BLOCK_SETTINGS, parse_block

    # Sizes are held against blocks, and not against the patches of tokens.
    parse_block(given["block"])
    hidden = _NO_OPTIONS | BLOCK_SETTINGS | {"patch": given["block"]}
    _with_all_settings(**given, **hidden)


_parameters = [parameter for name, parameter in _ALL.items() if name not in _NO_OPTIONS]
command.__signature__ = inspect.Signature(_parameters)  # type: ignore[attr-defined]
command.__annotations__ = {entry.name: entry.annotation for entry in _parameters}
