"""Options of the commands that decode a dataset again: its encoder, its sources, workers."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from spacepatch.cli.options import with_settings

SETTINGS = (
    "encoder device encoder_dtype encode_batch allow_download trust_encoder allow_pickle_weights "
    "expect_sha256 allow_network workers timeout worker_memory"
).split()
"""Of a run, those that a dataset does not say, or that may be other ones."""
WORKERS = "allow_network cache_dir cache_bytes workers timeout worker_memory".split()
"""Likewise, where sources are decoded and no encoder is asked."""

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


with_encoder = partial(with_settings, names=SETTINGS)
"""Gives a command these settings as options; it gets them as one `config`."""
with_workers = partial(with_settings, names=WORKERS)
