"""Whole runs of small settings, and the rows of the tables that they write."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from spacepatch.config import load_config
from spacepatch.pipeline import tokenize

DATASET = {"pack_length": 2048, "shard_size": "8MB", "workers": 2}
"""Of datasets that are read again: several shards, with several packs each."""

LOADED = {"fps": "4", "shard_size": "12MB"}
"""Beside `DATASET`, of those that are loaded."""

SMALL = {"fps": "2", "max_tokens_per_frame": 64, "pack_length": 1024, "workers": 2}


def run(
    sources: Iterable[str | Path], out: Path, *, overwrite: bool = False, **settings: Any
) -> Any:
    config = load_config(SMALL | settings)
    return tokenize(
        [str(source) for source in sources], out=out, config=config, overwrite=overwrite
    )


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return parquet.read_table(out / name).to_pylist()


def copied(sample_clips: Path, folder: Path, names: Iterable[str]) -> Path:
    """The folder, with copies of some of the sample clips."""
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(sample_clips / name, folder)
    return folder


def make_dataset(sources: Iterable[str | Path], out: Path, **settings: Any) -> Path:
    config = load_config(DATASET | settings)
    tokenize([str(source) for source in sources], out=out, config=config)
    return out
