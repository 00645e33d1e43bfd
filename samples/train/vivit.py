r"""ViViT: attention over the places of one time, then over the times of one place.

arXiv 2103.15691: tubelets embedded by a weight that is inflated from a picture model's (section
3.4, central frame), and factorized self-attention (section 3.3, model 3). Clips differ in length
and shape, and still it is two masks.

    spacepatch tokenize samples/manifest.csv --out shards/vivit --clip-seconds 1 --fps 8 \
        --resolution 64 --upscale --patch 2x16x16 --normalize half --pack-length 256
    python samples/train/vivit.py shards/vivit
"""

from __future__ import annotations

import torch
from batches import Batch, label_loss, words_of
from layers import Attention, sines
from torch import nn
from training import arguments, packs_of, parse, train

from spacepatch.masks import block_mask
from spacepatch.pooling import segment_mean
from spacepatch.positions import frame_index
from spacepatch.weights import flatten_conv_weight, inflate_patch_weight


def spatial_mask(batch: Batch) -> torch.Tensor:
    """``(B, N, N)``: all places of the same segment and time."""
    return block_mask(batch["segment_ids"], batch["positions"], within="row")


def temporal_mask(batch: Batch) -> torch.Tensor:
    """``(B, N, N)``: all times of the same segment and place."""
    names = ("positions", "segment_ids", "grid_thw")
    packs = zip(*(batch[name] for name in names), strict=True)
    # A row is what has one t: with the place for t, it is what has one place.
    places = torch.stack([frame_index(*pack) for pack in packs])
    return block_mask(batch["segment_ids"], places[..., None].expand(-1, -1, 3), within="row")


class FactorizedBlock(nn.Module):
    """Attention over space, attention over time, an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.space, self.time = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor, space: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        x = x + self.space(self.norms[0](x), space)
        x = x + self.time(self.norms[1](x), time)
        return x + self.mlp(self.norms[2](x))


class ViViT(nn.Module):
    """From packs of tubelets to the classes of the clips in them."""

    def __init__(
        self, patch: tuple[int, int, int], *, layout: str, num_classes: int, width: int = 64
    ) -> None:
        super().__init__()
        tubelet_size, height, width_of_patch = patch
        picture = nn.Conv2d(3, width, (height, width_of_patch)).weight.detach()
        inflated = inflate_patch_weight(picture, tubelet_size=tubelet_size)
        self.embed = nn.Parameter(flatten_conv_weight(inflated, layout=layout).contiguous())
        self.blocks = nn.ModuleList(FactorizedBlock(width, heads=4) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def features(self, pixels: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``(B, N, D)`` to ``(B, N, width)``."""
        x = pixels @ self.embed
        x = x + sines(batch["positions"], x.shape[-1])
        space, time = spatial_mask(batch), temporal_mask(batch)
        for block in self.blocks:
            x = block(x, space, time)
        return self.norm(x)

    def forward(self, pixels: torch.Tensor, batch: Batch, max_segments: int) -> torch.Tensor:
        """``(B, N, D)`` to ``(B, max_segments, num_classes)``."""
        x = self.features(pixels, batch)
        pooled, _ = segment_mean(x, batch["segment_ids"], max_segments=max_segments)
        return self.head(pooled)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    parser = arguments(__doc__, steps=300, lr=3e-3)
    parser.add_argument("--label", default="sun", help="the column of the manifest to learn")
    args = parse(parser, argv)
    packs = packs_of(args)
    words = words_of(packs, args.label)
    model = ViViT(
        tuple(packs[0]["patch"][0].tolist()),
        layout=packs.document["settings"]["layout"],
        num_classes=len(words),
    )
    loss_of = label_loss(model, packs, args.label, words)
    return train(args, packs, model, loss_of, classes=len(words))


if __name__ == "__main__":
    main()
