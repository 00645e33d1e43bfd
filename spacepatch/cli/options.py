"""Options that commands share; those of a run are made from the fields of `RunConfig`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from spacepatch.cli.completion import preset_words, words_of
from spacepatch.config import RunConfig, load_config
from spacepatch.config.settings import WORDS
from spacepatch.storage import local_file, open_folder

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="Videos: files, folders, globs, @list.txt, manifests (.csv .jsonl .parquet), .tar; "
        "here or at s3://, gs://, hf://, https://.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Settings in a TOML file, keys as the options here.")
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", help="Named settings that come with it.", autocompletion=preset_words),
]
Root = Annotated[
    str | None,
    typer.Option(
        "--root", help="What paths in lists and manifests are relative to: a folder, or its URL."
    ),
]
AllowNetwork = Annotated[
    bool, typer.Option("--allow-network", help="Read http:// and https:// addresses.")
]
Dataset = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        parser=open_folder,
        help="A finished dataset: a folder, or a URL.",
        show_default=False,
    ),
]
DatasetOrShard = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", parser=open_folder, help="An output folder, or one .tar; or a URL of one."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        parser=partial(open_folder, writes=True),
        help="Folder for the shards, or a URL: s3://BUCKET/FOLDER.",
        show_default=False,
    ),
]
NewShards = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="DIR",
        parser=partial(open_folder, writes=True),
        help="Folder for the new shards, or a URL.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        parser=local_file,
        help="Write one page with charts to this file, for any browser; no network is asked.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Begin anew; remove what a former run wrote there.")
]
Append = Annotated[
    bool,
    typer.Option(
        "--append",
        help="Add to what is there: only sources that are new, or have changed, are done.",
    ),
]


def _check_bound(wanted: bool) -> bool:
    """First, before a whole dataset is written or read."""
    if wanted:
        from spacepatch.bounds import check_thorough

        check_thorough()
    return wanted


Bound = Annotated[
    bool,
    typer.Option(
        "--bound",
        callback=_check_bound,
        help="Prove the best lower bound of packs, which may take minutes; needs scipy.",
    ),
]
ShowConfig = Annotated[
    bool, typer.Option("--show-config", help="Print the effective settings and stop.")
]


def with_settings(
    command: Callable[..., None], *, names: Sequence[str] | None = None
) -> Callable[..., None]:
    """Give a command settings of a run as options; it gets them as one `config`.

    Args:
        names: of the settings, and then no file or preset has others; None: all of them.
    """
    own = inspect.signature(command, eval_str=True)
    kept = [parameter for name, parameter in own.parameters.items() if name != "config"]
    layers = []
    if names is None:
        # What convert and repack write is no wish of a user's.
        names = [name for name in RunConfig.model_fields if name not in ("recut", "repacked")]
        layers = [
            _parameter("config_file", ConfigFile, None),
            _parameter("preset", Preset, None),
        ]
    settings = [_option(name) for name in RunConfig.model_fields if name in names]

    @wraps(command)
    def run(config_file: Path | None = None, preset: str | None = None, **given: Any) -> None:
        flags = {name: given.pop(name) for name in names}
        command(config=load_config(flags, file=config_file, preset=preset), **given)

    parameters = [*kept, *layers, *settings]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {entry.name: entry.annotation for entry in parameters}
    return run


def _option(name: str) -> inspect.Parameter:
    field = RunConfig.model_fields[name]
    kind: Any = field.annotation
    if kind in (str, int, float, bool):
        kind = kind | None
    flag = f"--{name.replace('_', '-')}"
    flags = [f"{flag}/--no-{flag[2:]}"] if field.annotation is bool else [flag]
    text = field.description or ""
    if field.default not in (None, False):
        text += f" Default {field.default}."
    complete = words_of(name) if name in WORDS else None
    option = typer.Option(*flags, help=text, autocompletion=complete)
    return _parameter(name, Annotated[kind, option], None)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
