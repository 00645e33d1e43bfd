"""The examples of the pages on training run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import run

from spacepatch.loader import PackDataset, PackLoader, collate
from spacepatch.masks import block_mask

DOCS = Path(__file__).resolve().parents[1] / "docs"


def run_examples(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"torch": torch, "collate": collate}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    return names


@pytest.fixture(scope="module")
def folder(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    run([sample_clips / "square_320x320.mp4"], folder / "shards", patch="1x16x16", pack_length=256)
    (folder / "more").symlink_to(folder / "shards")
    return folder


def test_examples_of_the_page_on_training_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "training.md").read_text().partition("\n## Latents\n")[0]
    names = run_examples(page, folder, monkeypatch)
    assert names["tokens"].shape == (2, 256, 768)
    assert names["state"].count("progress") == 1
    assert sum(names["given"].values()) >= len(PackDataset(folder / "shards")) * 2
    assert names["decoder"].shape[1:] == (256, 768)
    assert isinstance(names["loader"], PackLoader)


def test_examples_of_the_page_on_attention_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run_examples((DOCS / "attention.md").read_text(), folder, monkeypatch)
    assert names["mask"].shape == (1, 1, 256, 256)
    assert torch.equal(names["mask"][0, 0], block_mask(names["pack"]["segment_ids"]))
    assert names["there"].sum() == len(names["pack"]["segments"])
