"""What packing gains: images a sequence, and images a second beside padded batches; `make bench`.

NaViT (arXiv 2307.06304) reports 4.9 images in a sequence of 256 tokens (B/16) and 5.4 in one of 64
(B/32), with less than 2 % of padding. Here an image has R * R pixels at native aspect ratio, with R
from 64 to 256, half of its tokens are dropped, and first-fit packs it with 64 open sequences. Sides
that are rounded down to whole patches give 5.0 and 5.6 with less than 1 % of padding (so 4.9 and
5.5 with 2 %); rounded to the nearest, as spacepatch does, 4.5 and 4.6: images are larger by that.

Then the same small model, forwards and backwards on one core, takes the same images:
- `packed`: the packs as they are stored, images kept apart by a mask.
- `longest`: an image a row, filled up to the longest of its batch, in the order of the packs.
- `full`: an image a row, filled up to the length of a pack.
A batch has as many rows as packs; they take turns, and ratios are medians of those in one round.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import nn

from spacepatch.config import load_config
from spacepatch.distributions import parse_distribution
from spacepatch.drop import parse_drop
from spacepatch.loader import PackDataset
from spacepatch.masks import block_mask
from spacepatch.packing import PACKERS
from spacepatch.pipeline import tokenize
from spacepatch.pooling import segment_mean
from spacepatch.randomness import Draws
from spacepatch.resize.sizes import fit_resolution

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "samples" / "train"))
from layers import Transformer, sines

SIZES = ((480, 640), (640, 480), (500, 375), (333, 500), (427, 640), (500, 500), (720, 1280))
"""Of pictures as collections hold them, (h, w)."""
RESOLUTION, DROP = "uniform:64..256", "random:0.5"
PACKER, WINDOW = "first-fit", 64
PUBLISHED = {16: (256, 4.9), 32: (64, 5.4)}
"""From the patch size: tokens of a sequence, images in it."""
WIDTH, DEPTH, HEADS = 192, 4, 3


# --- images a sequence -------------------------------------------------------------------------


def round_down(size: tuple[int, int], patch: int, resolution: float) -> tuple[int, int]:
    """As `fit_resolution`, but that sides are rounded down to patches."""
    scale = resolution / math.sqrt(size[0] * size[1])
    return max(int(size[0] * scale / patch), 1), max(int(size[1] * scale / patch), 1)


def round_nearest(size: tuple[int, int], patch: int, resolution: float) -> tuple[int, int]:
    h, w = fit_resolution(size, patch=(patch, patch), value=resolution, upscale=True)
    return h // patch, w // patch


def draw_lengths(num_images: int, patch: int, grid_of: Callable[..., tuple[int, int]]) -> list[int]:
    """Kept tokens of each image, by the settings' own distributions."""
    resolution, drop = parse_distribution(RESOLUTION), parse_drop(DROP)
    lengths = []
    for image in range(num_images):
        drawn = resolution.draw(Draws("bench", image, "resolution"))
        h, w = grid_of(SIZES[image % len(SIZES)], patch, drawn)
        lengths.append(drop.draw(Draws("bench", image, "drop")).num_kept(h * w))
    return lengths


def images_and_padding(lengths: Sequence[int], pack_length: int) -> tuple[float, float]:
    """Images a sequence, and the share of padding."""
    packs = PACKERS[PACKER](lengths, pack_length=pack_length, window=WINDOW)
    return len(lengths) / len(packs), 1 - sum(lengths) / (len(packs) * pack_length)


def make_dataset(folder: Path, *, num_images: int, patch: int) -> Path:
    """Pictures, and what `spacepatch tokenize` makes of them."""
    pictures = folder / f"pictures-{patch}"
    pictures.mkdir()
    drawn = np.random.default_rng(0)
    for number in range(num_images):
        h, w = SIZES[number % len(SIZES)]
        coarse = drawn.integers(0, 256, (h // 20, w // 20, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((w, h)).save(pictures / f"{number:05d}.jpg")
    settings = {
        "resolution": RESOLUTION,
        "upscale": True,
        "patch": f"1x{patch}x{patch}",
        "drop": DROP,
        "pack_length": PUBLISHED[patch][0],
        "packer": PACKER,
        "window": WINDOW,
    }
    shards = folder / f"shards-{patch}"
    tokenize([str(pictures)], out=shards, config=load_config(settings))
    return shards


# --- packed against padded ---------------------------------------------------------------------


class SmallViT(nn.Module):
    """Patches to one vector an image."""

    def __init__(self, token_width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(token_width, WIDTH)
        self.transformer = Transformer(WIDTH, depth=DEPTH, heads=HEADS)

    def forward(
        self, tokens: torch.Tensor, segment_ids: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """``(B, N, D)``, ``(B, N)``, ``(B, N, 3)`` to (images, WIDTH), in order."""
        x = self.embed(tokens) + sines(positions, WIDTH)
        x = self.transformer(x, block_mask(segment_ids))
        pooled, real = segment_mean(x, segment_ids, max_segments=int(segment_ids.max()))
        return pooled[real]


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch: what `SmallViT` takes."""

    tokens: torch.Tensor
    segment_ids: torch.Tensor
    positions: torch.Tensor

    @property
    def num_tokens(self) -> int:
        return int(torch.count_nonzero(self.segment_ids))


def as_stored(packs: PackDataset, rows: int, most_packs: int) -> list[Rows]:
    """The first packs, `rows` to a batch."""
    loaded = [packs[index] for index in range(min(most_packs, len(packs)))]
    made = []
    for chunk in chunks_of(loaded, rows):
        tokens, ids, positions = (
            torch.stack([pack[name] for pack in chunk])
            for name in ("tokens", "segment_ids", "positions")
        )
        made.append(Rows(packs.normalize(tokens), ids, positions))
    return made


def one_a_row(packed: Sequence[Rows], rows: int, length: int | None) -> list[Rows]:
    """The same images in the same order, each in a row of its own.

    Args:
        length: to fill rows up to; None: the longest of a batch.
    """
    images = [
        (batch.tokens[row][own], batch.positions[row][own])
        for batch in packed
        for row, ids in enumerate(batch.segment_ids)
        for segment in range(1, int(ids.max()) + 1)
        for own in [ids == segment]
    ]
    made = []
    for chunk in chunks_of(images, rows):
        most = length or max(len(tokens) for tokens, _ in chunk)
        batch = Rows(
            torch.zeros(len(chunk), most, images[0][0].shape[-1]),
            torch.zeros(len(chunk), most, dtype=torch.int32),
            torch.zeros(len(chunk), most, 3, dtype=torch.int32),
        )
        for row, (tokens, positions) in enumerate(chunk):
            batch.tokens[row, : len(tokens)] = tokens
            batch.segment_ids[row, : len(tokens)] = 1
            batch.positions[row, : len(tokens)] = positions
        made.append(batch)
    return made


def chunks_of(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def train_pass(model: SmallViT, batches: Sequence[Rows]) -> float:
    """Seconds of a forward and a backward pass over all batches."""
    begin = time.perf_counter()
    for batch in batches:
        model.zero_grad()
        model(batch.tokens, batch.segment_ids, batch.positions).square().mean().backward()
    return time.perf_counter() - begin


def write_speeds(folder: Path, *, rows: int, rounds: int, most_packs: int) -> None:
    torch.manual_seed(0)
    packs = PackDataset(folder)
    packed = as_stored(packs, rows, most_packs)
    contenders = {
        "packed": packed,
        "longest": one_a_row(packed, rows, None),
        "full": one_a_row(packed, rows, packs.pack_length),
    }
    model = SmallViT(packed[0].tokens.shape[-1])
    for batches in contenders.values():  # not measured
        train_pass(model, batches[:1])
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _, (name, batches) in itertools.product(range(rounds), contenders.items()):
        seconds[name].append(train_pass(model, batches))

    tokens = sum(batch.num_tokens for batch in packed)
    images = sum(len(batch.tokens) for batch in contenders["full"])
    print(f"\n{'':10}{'padding':>9}{'images/s':>10}{'tokens/s':>10}{'seconds':>9}{'packed is':>11}")
    for name, batches in contenders.items():
        slots = sum(batch.segment_ids.numel() for batch in batches)
        spent = median(seconds[name])
        pairs = zip(seconds[name], seconds["packed"], strict=True)
        faster = median(padded / ours for padded, ours in pairs)
        print(
            f"{name:10}{1 - tokens / slots:>9.1%}{images / spent:>10.0f}{tokens / spent:>10.0f}"
            f"{spent:>9.2f}{faster:>9.2f} x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, default=20_000, help="images that are only counted")
    parser.add_argument("--images", type=int, default=2_000, help="images that are tokenized")
    parser.add_argument("--packs", type=int, default=32, help="that a model takes")
    parser.add_argument("--rows", type=int, default=16, help="of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packs-") as name:
        folder = Path(name)
        for patch, (pack_length, published) in PUBLISHED.items():
            shards = make_dataset(folder, num_images=options.images, patch=patch)
            totals = PackDataset(shards).document["totals"]
            print(f"\nB/{patch}, {pack_length} tokens; NaViT: {published} images a sequence")
            for what, grid_of in (("down", round_down), ("to the nearest", round_nearest)):
                lengths = draw_lengths(options.lengths, patch, grid_of)
                images, padding = images_and_padding(lengths, pack_length)
                print(f"  sides rounded {what:16}{images:.2f}, {padding:.1%} padding")
            images = totals["segments"] / totals["packs"]
            print(f"  spacepatch tokenize           {images:.2f}, {1 - totals['fill']:.1%} padding")
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        for patch in PUBLISHED:
            print(f"\nB/{patch}: width {WIDTH}, {DEPTH} layers, forwards and backwards", end="")
            shards = folder / f"shards-{patch}"
            write_speeds(shards, rows=options.rows, rounds=options.rounds, most_packs=options.packs)


if __name__ == "__main__":
    main()
