r"""A GAN whose discriminator takes the patch grids of a pack, as ViTGAN and TransGAN do.

ViTGAN (arXiv 2107.04589): overlapping patches, which the shards hold (`--halo`). A small generator
draws as many pictures as a pack has, cut in the same way, and a transformer scores each segment.

- `wasserstein` (arXiv 1701.07875), and `hinge` (arXiv 1705.02894), which takes longer
- each with a gradient penalty of 10 (arXiv 1704.00028) at mixtures of both kinds of pictures

The losses of a GAN need not fall. What is measured is how far the pictures made are from those of
the shards: the sliced Wasserstein distance, which neither network is trained for.

    spacepatch tokenize samples/manifest.csv --out shards/gan --preset vitgan --clip-seconds 0.1 \
        --short-side 16 --crop 16x16 --patch 1x4x4 --halo 2 --pack-length 64
    python samples/train/gan.py shards/gan
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from batches import Batch
from layers import Transformer, sines
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training import arguments, packs_of, parse, train

from spacepatch.masks import block_mask
from spacepatch.pooling import segment_mean

WIDTH, NOISE, DIRECTIONS = 48, 32, 256
JUDGMENTS, PENALTY, AVERAGE = 3, 10.0, 0.98
"""Steps of the discriminator for one of the generator; of the generator, what is kept of the mean
of its weights at each step."""


class Discriminator(nn.Module):
    """A score for each segment."""

    def __init__(self, token_width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(token_width, WIDTH)
        self.transformer = Transformer(WIDTH, depth=1, heads=4)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``(B, N, D)`` to (segments,)."""
        ids = batch["segment_ids"]
        x = self.embed(tokens) + sines(batch["positions"], WIDTH)
        # The penalty takes the gradient of a gradient, which only this kernel has.
        with sdpa_kernel(SDPBackend.MATH):
            x = self.transformer(x, block_mask(ids))
        pooled, real = segment_mean(x, ids, max_segments=int(ids.max()))
        return self.head(pooled[real])[:, 0]


class Generator(nn.Module):
    """Pictures of one size from noise, cut as those of the shards are."""

    def __init__(self, grid: list[int], patch: int, halo: int) -> None:
        super().__init__()
        self.patch, self.halo = patch, halo
        self.size = grid[1] * patch, grid[2] * patch
        self.layers = nn.Sequential(
            nn.Linear(NOISE, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, 256),
            nn.LeakyReLU(0.2),
            nn.Linear(256, 3 * self.size[0] * self.size[1]),
            nn.Tanh(),
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        """A picture for each segment of the batch, ``(B, N, D)``; padding is 0."""
        real = batch["segment_ids"] > 0
        pictures = self.layers(torch.randn(sum(map(len, batch["segments"])), NOISE))
        cut = cut_overlapping(pictures.view(-1, 3, *self.size), self.patch, self.halo)
        return torch.zeros(*real.shape, cut.shape[-1]).masked_scatter(real[..., None], cut)


def cut_overlapping(pictures: torch.Tensor, patch: int, halo: int) -> torch.Tensor:
    """``(n, c, H, W)`` of -1 to 1 to ``(n, tokens, c p q)``; beyond the frame shards have black."""
    framed = F.pad(pictures, [halo] * 4, value=-1.0)
    return F.unfold(framed, patch + 2 * halo, stride=patch).transpose(1, 2)


def sliced_distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Between two sets of n pictures, ``(n, values)``: along each of some random directions both
    are sorted, and the mean difference is taken (arXiv 1804.01947, section 2)."""
    directions = F.normalize(torch.randn(one.shape[1], DIRECTIONS), dim=0)
    return ((one @ directions).sort(0).values - (other @ directions).sort(0).values).abs().mean()


def penalty(
    discriminator: Discriminator, one: torch.Tensor, other: torch.Tensor, batch: Batch
) -> torch.Tensor:
    """How far from 1 the slope of a segment's score is, somewhere between the two."""
    ids = batch["segment_ids"].long()
    shares = torch.rand(len(ids), int(ids.max()) + 1).gather(1, ids)[..., None]
    between = torch.lerp(one, other, shares).requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(between, batch).sum(), between, create_graph=True)
    squares = torch.zeros(len(ids), int(ids.max()) + 1)
    squares = squares.scatter_add(1, ids, slope.square().sum(-1))[:, 1:]
    return (squares[squares > 0].sqrt() - 1).square().mean()


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    parser = arguments(__doc__, steps=300)
    parser.add_argument("--loss", choices=("wasserstein", "hinge"), default="wasserstein")
    parser.set_defaults(batch_size=8)
    args = parse(parser, argv)
    packs = packs_of(args)
    first, halo = packs[0], packs.document["settings"]["halo"]
    generator = Generator(first["grid_thw"][0].tolist(), int(first["patch"][0, 1]), halo)
    averaged = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    discriminator = Discriminator(packs.document["token_width"])
    # The discriminator learns faster, so that it is right about what it is asked (1706.08500).
    makers = torch.optim.Adam(generator.parameters(), args.lr, (0.5, 0.99))
    judges = torch.optim.Adam(discriminator.parameters(), 3 * args.lr, (0.5, 0.99))

    def update(batch: Batch) -> None:
        real = packs.normalize(batch["tokens"])
        for _ in range(JUDGMENTS):
            made = generator(batch).detach()
            right, wrong = discriminator(real, batch), discriminator(made, batch)
            if args.loss == "hinge":
                right, wrong = right.clamp(max=1), wrong.clamp(min=-1)
            slope = PENALTY * penalty(discriminator, real, made, batch)
            judges.zero_grad()
            (wrong.mean() - right.mean() + slope).backward()
            judges.step()
        makers.zero_grad()
        (-discriminator(generator(batch), batch).mean()).backward()
        makers.step()
        averaged.update_parameters(generator)

    def distance(batch: Batch) -> torch.Tensor:
        there, count = batch["segment_ids"] > 0, sum(map(len, batch["segments"]))
        real, made = packs.normalize(batch["tokens"]), averaged(batch)
        return sliced_distance(real[there].view(count, -1), made[there].view(count, -1))

    return train(args, packs, averaged, distance, update=update, loss=args.loss)


if __name__ == "__main__":
    main()
