"""Datasets of several shards in every store, and back to tokens of their sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_runs import run

from spacepatch.config import load_config
from spacepatch.pipeline import Restoring, RunSummary, convert
from spacepatch.source_roots import ANY

SEVERAL = {"shard_size": "1MB", "pack_length": 512}
"""Shards, with several packs each."""
CHECKED = {"store": "refs", "checked": True}


def made(sources: Path | list[Path], out: Path, **settings: Any) -> Path:
    run(sources if isinstance(sources, list) else [sources], out, **(SEVERAL | settings))
    return out


def restored(
    folder: Path, out: Path, root: Path, store: str = "tokens", **options: Any
) -> RunSummary:
    config = load_config({"workers": 2})
    overwrite = options.pop("overwrite", False)
    restoring = Restoring(roots={ANY: str(root)}, config=config, **options)
    return convert(folder, out=out, store=store, restoring=restoring, overwrite=overwrite)
