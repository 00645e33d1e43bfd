"""Recipes train on references as on the tokens that they refer to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import recipes
import torch
from conftest import SpacepatchCli
from recipes import ShardsOf

SOURCES = recipes.SAMPLES / "manifest.csv"


def losses_of(recipe: str, shards: Path, patch: pytest.MonkeyPatch, *more: str) -> list[float]:
    """Of each batch that the recipe trains on or measures, in its order."""
    module = recipes.load(recipe)
    make, found = module.label_loss, []

    def noting(*arguments: Any) -> Any:
        loss_of = make(*arguments)

        def noted(batch: dict[str, Any]) -> torch.Tensor:
            loss = loss_of(batch)
            found.append(loss.item())
            return loss

        return noted

    with patch.context() as own:
        own.setattr(module, "label_loss", noting)
        module.main([str(shards), "--json", "--steps", "12", *more])
    return found


@pytest.fixture(scope="module", params=["", "--checked"])
def refs(
    request: pytest.FixtureRequest,
    spacepatch_cli: SpacepatchCli,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """By the line of the recipe."""
    ((_, _, _, *line),) = recipes.commands_of("navit")
    out = tmp_path_factory.mktemp("navit") / "refs"
    line[line.index("--out") + 1] = str(out)
    more = ["--store", "refs", *request.param.split()]
    done = spacepatch_cli("tokenize", SOURCES, *line, *more)
    assert done.returncode == 0, done.stderr
    return out


def test_navit_has_the_same_loss_at_every_step(
    refs: Path, shards_of: ShardsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = losses_of("navit", shards_of("navit"), monkeypatch)
    assert len(stored) >= 12 + 8
    assert losses_of("navit", refs, monkeypatch, "--source-root", str(SOURCES)) == stored
    root = f"0={SOURCES.parent}"
    assert losses_of("navit", refs, monkeypatch, "--source-root", root) == stored
