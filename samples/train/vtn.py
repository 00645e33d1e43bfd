r"""VTN: a spatial transformer makes a token of each frame, a windowed one reads their long row.

arXiv 2102.00719, section 3: frames are encoded on their own; the temporal encoder is Longformer's
(arXiv 2004.05150, section 3.1): a frame sees its neighbours within a window, and a class token sees
all frames of its clip and is seen by all. The cost grows with the length, not with its square.

    spacepatch tokenize samples/manifest.csv --out shards/vtn --clip-seconds 1 --fps 8 \
        --resolution 64 --upscale --patch 1x16x16 --normalize half --pack-length 512
    python samples/train/vtn.py shards/vtn --window 2
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from batches import Batch, label_loss, words_of
from layers import Transformer, sines
from torch import nn
from training import arguments, packs_of, parse, train

from spacepatch.masks import block_mask
from spacepatch.pooling import segment_mean


def number_rows(segment_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``(B, N)`` int64: 1, 2, .. for each t of each segment as they come, 0 for padding."""
    times = torch.stack([segment_ids, positions[..., 0]], dim=-1)
    begins = (times[:, 1:] != times[:, :-1]).any(dim=-1)
    return (F.pad(begins, (1, 0)).cumsum(dim=1) + 1) * (segment_ids > 0)


def windowed_mask(segment_ids: torch.Tensor, times: torch.Tensor, *, window: int) -> torch.Tensor:
    """Longformer's attention: neighbours in time, and class tokens without bounds.

    Args:
        segment_ids: ``(B, L)``, 0 = padding.
        times: ``(B, L)``, t of a frame, -1 of a class token.
        window: frames to either side.

    Returns:
        ``(B, L, L)`` bool.
    """
    near = (times[:, :, None] - times[:, None, :]).abs() <= window
    everywhere = times == -1
    free = everywhere[:, :, None] | everywhere[:, None, :]
    return block_mask(segment_ids) & (near | free)


class VTN(nn.Module):
    """From packs of patches to the classes of the clips in them."""

    def __init__(self, token_width: int, *, num_classes: int, window: int, width: int = 64) -> None:
        super().__init__()
        self.window = window
        self.embed = nn.Linear(token_width, width)
        self.spatial = Transformer(width, depth=1, heads=4)
        self.class_token = nn.Parameter(torch.randn(width))
        self.temporal = Transformer(width, depth=2, heads=4)
        self.head = nn.Linear(width, num_classes)

    def forward(self, pixels: torch.Tensor, batch: Batch, max_segments: int) -> torch.Tensor:
        """``(B, N, D)`` to ``(B, max_segments, num_classes)``."""
        ids, positions = batch["segment_ids"], batch["positions"]
        x = self.embed(pixels) + sines(positions, self.embed.out_features)
        x = self.spatial(x, block_mask(ids, positions, within="row"))

        rows = number_rows(ids, positions)
        most = int(rows.max())
        frames, _ = segment_mean(x, rows, max_segments=most)
        # Of which segment and t each frame token is, and before them a class token a segment.
        owners, times = (
            torch.zeros(len(ids), most + 1, dtype=torch.int64).scatter(1, rows, values.long())
            for values in (ids, positions[..., 0])
        )
        classes = torch.arange(1, max_segments + 1).expand(len(ids), -1)
        owners = torch.cat([classes, owners[:, 1:]], dim=1)
        times = torch.cat([torch.full_like(classes, -1), times[:, 1:]], dim=1)
        x = torch.cat([self.class_token.expand(*classes.shape, -1), frames], dim=1)

        x = self.temporal(x, windowed_mask(owners, times, window=self.window))
        return self.head(x[:, :max_segments])


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    parser = arguments(__doc__, steps=300, lr=3e-3)
    parser.add_argument("--label", default="sun", help="the column of the manifest to learn")
    parser.add_argument("--window", type=int, default=2, help="frames to either side")
    args = parse(parser, argv)
    packs = packs_of(args)
    words = words_of(packs, args.label)
    model = VTN(packs.document["token_width"], num_classes=len(words), window=args.window)
    loss_of = label_loss(model, packs, args.label, words)
    return train(args, packs, model, loss_of, classes=len(words), window=args.window)


if __name__ == "__main__":
    main()
