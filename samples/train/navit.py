r"""NaViT: one classifier for pictures of all sizes and shapes, several in each sequence.

Patch n' Pack (arXiv 2307.06304): a sampled resolution at native aspect ratio, tokens dropped at a
rate that differs from picture to picture, attention that is masked to each picture, learned
embeddings of h and of w that are summed, and pooling per picture.

    spacepatch tokenize samples/manifest.csv --out shards/navit --preset navit \
        --clip-seconds 0.5 --resolution uniform:64..128 --views 2 --pack-length 256
    python samples/train/navit.py shards/navit
"""

from __future__ import annotations

import torch
from batches import Batch, label_loss, words_of
from layers import Transformer
from torch import nn
from training import arguments, packs_of, parse, train

from spacepatch.masks import block_mask
from spacepatch.pooling import segment_mean
from spacepatch.positions import factorized_embedding

LONGEST_SIDE = 64
"""Rows of the tables: patches that the longest side of a picture may have."""


class NaViT(nn.Module):
    """From packs of patches to the classes of the pictures in them."""

    def __init__(self, token_width: int, *, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(token_width, width)
        self.tables = nn.ParameterList(nn.Parameter(torch.randn(LONGEST_SIDE, width)) for _ in "hw")
        self.transformer = Transformer(width, depth=2, heads=4)
        self.head = nn.Linear(width, num_classes)

    def forward(self, pixels: torch.Tensor, batch: Batch, max_segments: int) -> torch.Tensor:
        """``(B, N, D)`` to ``(B, max_segments, num_classes)``."""
        ids, positions = batch["segment_ids"], batch["positions"]
        places = factorized_embedding(positions[..., 1:].flatten(0, 1), list(self.tables))
        x = self.embed(pixels) + places.view(*ids.shape, -1)
        x = self.transformer(x, block_mask(ids))
        pooled, _ = segment_mean(x, ids, max_segments=max_segments)
        return self.head(pooled)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    parser = arguments(__doc__, steps=300, lr=3e-3)
    parser.add_argument("--label", default="sun", help="the column of the manifest to learn")
    args = parse(parser, argv)
    packs = packs_of(args)
    words = words_of(packs, args.label)
    model = NaViT(packs.document["token_width"], num_classes=len(words))
    loss_of = label_loss(model, packs, args.label, words)
    return train(args, packs, model, loss_of, classes=len(words))


if __name__ == "__main__":
    main()
