r"""Image Transformer: a picture as pixels, each value predicted from all before it.

arXiv 1802.05751: pixels in raster order, attention to a local 2-D neighbourhood (section 3.2), 256
ways for each channel, where green is given red and blue is given both. The loss is in bits a
dimension, 8 where nothing is known.

    spacepatch tokenize samples/manifest.csv --out shards/pixels --preset image-transformer \
        --short-side 16 --crop 16x16 --pack-length 512
    python samples/train/image_transformer.py shards/pixels
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from batches import Batch
from layers import Transformer, rotations, sines
from torch import nn
from training import arguments, packs_of, parse, train

from spacepatch.masks import block_mask

WIDTH, HEADS, VALUES = 64, 4, 256


class ImageTransformer(nn.Module):
    """From pixels to the logits of each of their values."""

    def __init__(self, channels: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        # Shared by what is seen of earlier pixels and of earlier channels of the same pixel.
        self.embed = nn.ModuleList(nn.Embedding(VALUES, WIDTH) for _ in range(channels))
        self.begin = nn.Parameter(torch.zeros(WIDTH))
        self.transformer = Transformer(WIDTH, depth=2, heads=HEADS)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, VALUES) for _ in range(channels))

    def forward(self, pixels: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``(B, N, channels)`` int64 to ``(B, N, channels, 256)``."""
        ids, positions = batch["segment_ids"], batch["positions"]
        values = [embed(pixels[..., c]) for c, embed in enumerate(self.embed)]
        begins = ids.diff(dim=1, prepend=torch.zeros_like(ids[:, :1])) != 0
        before = torch.stack(values).sum(0).roll(1, dims=1)
        before = torch.where(begins[..., None], self.begin, before)
        mask = block_mask(ids, positions, causal="token") & self.near(positions)
        hidden = self.transformer(
            before + sines(positions, WIDTH), mask, angles=rotations(positions, WIDTH // HEADS)
        )
        logits = []
        for head, value in zip(self.heads, values, strict=True):
            logits.append(head(hidden))
            hidden = hidden + value  # the next channel is given this one
        return torch.stack(logits, dim=-2)

    def near(self, positions: torch.Tensor) -> torch.Tensor:
        """``(B, N, N)``: no more than `reach` rows and columns apart."""
        apart = (positions[:, :, None] - positions[:, None]).abs()
        return (apart[..., 1:] <= self.reach).all(dim=-1)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    parser = arguments(__doc__, steps=200, lr=3e-3)
    parser.add_argument("--reach", type=int, default=4, help="rows and columns that a pixel sees")
    args = parse(parser, argv)
    packs = packs_of(args)
    model = ImageTransformer(packs.document["token_width"], args.reach)

    def loss_of(batch: Batch) -> torch.Tensor:
        pixels, real = batch["tokens"].long(), batch["segment_ids"] > 0
        logits = model(pixels, batch)[real]
        return F.cross_entropy(logits.flatten(0, 1), pixels[real].flatten()) / math.log(2)

    return train(args, packs, model, loss_of)


if __name__ == "__main__":
    main()
