r"""FlexiViT: one classifier for patches of many sizes.

arXiv 2212.08013, section 3: the weight of the patch embedding is kept at one size and brought to
that of a batch by the pseudo-inverse of bilinear resizing, the table of positions to its grid by
bilinear interpolation. A pack holds tokens of one width, and so does a batch.

    spacepatch tokenize samples/manifest.csv --out shards/flexivit --clip-seconds 0.5 --fps 2 \
        --resolution 48 --upscale --patch 1x6x6,1x8x8,1x12x12,1x16x16 --views all \
        --normalize half --pack-length 256
    python samples/train/flexivit.py shards/flexivit
"""

from __future__ import annotations

import torch
from batches import Batch, batches_of, label_loss, words_of
from layers import Transformer
from torch import nn
from training import arguments, packs_of, parse, train

from spacepatch.masks import block_mask
from spacepatch.pooling import segment_mean
from spacepatch.positions import packed_table
from spacepatch.weights import flatten_conv_weight, resample_patch_weight


class FlexiViT(nn.Module):
    """From packs of patches of one size to the classes of the pictures in them.

    `size` is the side of the weight that is learned, `grid` that of the table of positions. A
    weight that only ever grows loses nothing on its way: `size` is the smallest patch's.
    """

    def __init__(
        self, *, num_classes: int, layout: str, size: int, grid: int = 8, width: int = 64
    ) -> None:
        super().__init__()
        self.layout, self.grid = layout, grid
        self.weight = nn.Parameter(torch.randn(width, 3, size, size) / (3 * size * size) ** 0.5)
        self.table = nn.Parameter(torch.randn(grid * grid, width))
        self.transformer = Transformer(width, depth=2, heads=4)
        self.head = nn.Linear(width, num_classes)

    def embed(self, pixels: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
        """``(.., p * q * 3)`` in the dataset's layout to ``(.., width)``."""
        weight = resample_patch_weight(self.weight, new_size=patch_size)
        return pixels @ flatten_conv_weight(weight, layout=self.layout)

    def positions(self, batch: Batch) -> torch.Tensor:
        """``(B, N, width)``: the table, resized to the grid of each picture."""
        names = ("positions", "segment_ids", "grid_thw")
        packs = zip(*(batch[name] for name in names), strict=True)
        side = (self.grid, self.grid)
        return torch.stack(
            [packed_table(self.table, *pack, grid=side, mode="bilinear") for pack in packs]
        )

    def forward(self, pixels: torch.Tensor, batch: Batch, max_segments: int) -> torch.Tensor:
        """``(B, N, D)`` to ``(B, max_segments, num_classes)``."""
        _, *patch_size = batch["patch"][0][0].tolist()
        ids = batch["segment_ids"]
        x = self.embed(pixels, tuple(patch_size)) + self.positions(batch)
        x = self.transformer(x, block_mask(ids))
        pooled, _ = segment_mean(x, ids, max_segments=max_segments)
        return self.head(pooled)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    parser = arguments(__doc__, steps=300, lr=3e-3)
    parser.add_argument("--label", default="sun", help="the column of the manifest to learn")
    args = parse(parser, argv)
    packs = packs_of(args)
    words, widths = words_of(packs, args.label), packs.document["token_widths"]
    model = FlexiViT(
        num_classes=len(words),
        layout=packs.document["settings"]["layout"],
        size=int((min(widths) // 3) ** 0.5),
    )
    loss_of = label_loss(model, packs, args.label, words)
    return train(
        args,
        packs,
        model,
        loss_of,
        # The loss is measured on batches of all widths, and not on the widest, which are first.
        held=batches_of(args, packs, shuffle=True),
        classes=len(words),
        patch_sizes=len(widths),
    )


if __name__ == "__main__":
    main()
