"""Options of the commands that decode a dataset again: its encoder, its sources, workers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from spacepatch.cli.options import with_settings

SETTINGS = (
    "encoder device encoder_dtype encode_batch allow_download trust_encoder allow_pickle_weights "
    "expect_sha256 allow_network workers timeout worker_memory"
).split()
"""Of a run, those that a dataset does not say, or that may be other ones."""

SourceRoot = Annotated[
    list[str] | None,
    typer.Option(
        "--source-root",
        metavar="N=DIR",
        help="Where the sources of the N-th SOURCE argument lie, from 0: a folder, or the URL of "
        "one; DIR alone: of all.",
    ),
]

OnePack = Annotated[
    str | None,
    typer.Option(
        "--pack",
        metavar="K",
        help="Only this pack: its number, from 0 (as of PackDataset), or its key.",
    ),
]
OneSegment = Annotated[
    str | None,
    typer.Option("--segment", metavar="ID", help="Only this segment: its id, or how that begins."),
]


def with_encoder(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these settings as options; it gets them as one `config`."""
    whole = with_settings(command)
    own = inspect.signature(command).parameters.keys() - {"config"}
    offered = inspect.signature(whole).parameters
    hidden = dict.fromkeys(offered.keys() - own - set(SETTINGS))

    @wraps(command)
    def run(**given: Any) -> None:
        whole(**given, **hidden)

    parameters = [parameter for name, parameter in offered.items() if name not in hidden]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {entry.name: entry.annotation for entry in parameters}
    return run
