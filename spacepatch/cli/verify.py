"""`spacepatch verify`: prove that a dataset is whole."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spacepatch.cli.decode_options import SETTINGS, SourceRoot, with_encoder
from spacepatch.cli.options import DatasetOrShard, Json
from spacepatch.cli.saying import say
from spacepatch.config import RunConfig
from spacepatch.errors import ConfigError, ShardError

if TYPE_CHECKING:
    from spacepatch.inspection.decoded import Decoded, DecodedSegment

EXAMPLE = "Example:  spacepatch verify shards/ --decode 8 --source-root videos/"


@with_encoder
def command(
    path: DatasetOrShard,
    *,
    decode: Annotated[
        int | None,
        typer.Option(
            "--decode",
            metavar="N",
            help="Also decode N segments and hold them against their sources: --source-root, and "
            "--encoder if the dataset has one.",
            min=1,
        ),
    ] = None,
    source_root: SourceRoot = None,
    json: Json = False,
    config: RunConfig,
) -> None:
    """Check structure, checksums, counts, conservation of frames, times and positions.

    With --decode, N segments spread over the dataset are made again from their sources and
    compared, and decoded: PSNR and SSIM. References are made again too, and held to their
    checksums, or without these to their numbers of tokens. Exit code 1 if anything is wrong, each
    problem on a line.
    """
    from spacepatch.cli import display
    from spacepatch.inspection import Problem, verify

    if decode is None:
        unused = sorted(config.model_fields_set.intersection(SETTINGS))
        unused += ["source_root"] if source_root else []
        if unused:
            raise ConfigError(f"{unused[0]} is for --decode N: give it too")
    decoded, stopped = None, None
    if decode is not None:
        from spacepatch.inspection.decoding import decode_segments
        from spacepatch.source_roots import parse_roots

        roots = parse_roots(source_root or [])
        # First, for what is missing of its options is soon known; a check of all may take hours.
        try:
            decoded = decode_segments(path, num_segments=decode, config=config, roots=roots)
        except ShardError as error:
            stopped = error
    problems = verify(path)
    # What a shard lacks is mended by making it again; a source that is elsewhere is not.
    can_mend = any("not finished" not in problem.what for problem in problems)
    if decoded is not None:
        problems = [*problems, *decoded.problems]
    if stopped is not None:
        if not problems:
            raise stopped
        problems.append(Problem(str(path), f"not decoded: {stopped}"))
    if json:
        document: dict[str, Any] = {"problems": [asdict(problem) for problem in problems]}
        if decoded is not None:
            document["decoded"] = _document(decoded)
        display.print_json(document)
    else:
        if decoded is not None:
            _show(decoded)
        for problem in problems:
            say(f"{problem.where}: {problem.what}")
        typer.echo(f"{path}: {len(problems)} problems" if problems else f"{path}: verified, clean")
    if can_mend:
        typer.echo(
            "to mend: delete the files named, and run the same spacepatch tokenize again", err=True
        )
    if problems:
        raise typer.Exit(1)


# --- for people --------------------------------------------------------------------------------


def _show(decoded: Decoded) -> None:
    for note in decoded.notes:
        say(f"note: {note}", err=True)
    say("PSNR dB    SSIM  frames  made again     segment")
    for segment in decoded.segments:
        found = segment.found
        say(
            f"{_decibels(segment.psnr)}  {_share(found.ssim)}  {found.num_frames:6}  "
            f"{_state(segment):13}  {segment.source} clip {segment.clip} view {segment.view}, "
            f"{segment.start_seconds:.2f}-{segment.stop_seconds:.2f} s"
        )
    maker = "" if decoded.encoder is None else f"{decoded.encoder} makes of "
    total = len(decoded.segments)
    say(
        f"{_decibels(decoded.psnr)}  {_share(decoded.ssim)}  overall: {decoded.num_sound} of "
        f"{total} segments are what {maker}{'' if maker else 'is in '}their sources, "
        f"{decoded.num_same} to the bit"
    )
    _show_channels(decoded)


def _decibels(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.2f}':>7}"


def _share(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.4f}':>6}"


def _state(segment: DecodedSegment) -> str:
    if segment.found.is_counted and not segment.problem:
        return "as many"
    if segment.problem or segment.found.is_same is None:
        return "no"
    return "same" if segment.found.is_same else f"{segment.found.apart:.2g} off"


CHANNELS_SHOWN = 8


def _show_channels(decoded: Decoded) -> None:
    """The channels whose mean or deviation is the furthest from the dataset's."""
    if decoded.mean is None or decoded.std is None:
        return
    means, deviations = decoded.dataset_mean, decoded.dataset_std
    if means is None or deviations is None:
        return
    channels = list(zip(decoded.mean, decoded.std, means, deviations, strict=True))

    def distance(number: int) -> float:
        mean, std, of_all, deviation = channels[number]
        scale = deviation or math.inf
        return abs(mean - of_all) / scale + abs(std - deviation) / scale

    order = sorted(range(len(channels)), key=lambda number: (-distance(number), number))
    shown = sorted(order[:CHANNELS_SHOWN])
    rest = "" if len(shown) == len(channels) else f" (the {len(shown)} furthest apart)"
    say(f"channel: mean and std of these latents | of the whole dataset{rest}")
    for number in shown:
        mean, std, of_all, deviation = channels[number]
        say(f"{number:7}: {mean:9.4f} {std:9.4f} | {of_all:9.4f} {deviation:9.4f}")


# --- for programs ------------------------------------------------------------------------------


def _document(decoded: Decoded) -> dict[str, Any]:
    """What --json says; a PSNR that is infinite is null, and `equal` true."""
    return {
        "kind": decoded.kind,
        "encoder": decoded.encoder,
        "notes": list(decoded.notes),
        "psnr": _finite(decoded.psnr),
        "equal": decoded.psnr == math.inf,
        "ssim": decoded.ssim,
        "num_segments": len(decoded.segments),
        "num_sound": decoded.num_sound,
        "num_same": decoded.num_same,
        "mean": decoded.mean,
        "std": decoded.std,
        "dataset_mean": decoded.dataset_mean,
        "dataset_std": decoded.dataset_std,
        "segments": [
            {
                "segment_id": segment.segment_id,
                "source": segment.source,
                "clip": segment.clip,
                "view": segment.view,
                "where": segment.where,
                "start_seconds": segment.start_seconds,
                "stop_seconds": segment.stop_seconds,
                "num_frames": segment.found.num_frames,
                "is_same": segment.found.is_same,
                "apart": _finite(segment.found.apart),
                "max_difference": _finite(segment.found.max_difference),
                "psnr": _finite(segment.psnr),
                "equal": segment.psnr == math.inf,
                "ssim": segment.found.ssim,
                "problem": segment.problem,
            }
            for segment in decoded.segments
        ],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
