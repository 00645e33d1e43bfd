r"""A diffusion transformer over latents of videos of many sizes, as Sora and DiT have it.

DiT's blocks (arXiv 2212.09748), a 3-D RoPE from positions in place of its table, and for each
segment of a pack a noise level of its own. What is learned, with x the latents, e noise of N(0, 1):

- `flow` (rectified flow, arXiv 2209.03003; levels of arXiv 2403.03206): e - x from (1 - t) x + t e
- `ddpm` (arXiv 2006.11239): e from sqrt(a) x + sqrt(1 - a) e, where a falls over 1,000 steps
- `edm` (arXiv 2206.00364, table 1): x from x + sigma e, scaled by the deviation of the latents

    spacepatch fit samples/manifest.csv --out codec.safetensors \
        --block 2x8x8 --channels 8 --resolution 64 --fps 8
    spacepatch tokenize samples/manifest.csv --out shards/latents --fps 8 \
        --resolution uniform:48..96 --encoder linear:codec.safetensors --pack-length 256
    python samples/train/diffusion.py shards/latents
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from batches import Batch
from layers import Transformer, rotations
from torch import nn
from training import arguments, packs_of, parse, train

from spacepatch.loader import PackDataset
from spacepatch.masks import block_mask

WIDTH, HEADS, FREQUENCIES = 96, 4, 32
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From noisy latents (B, N, D) and the level of each token (B, N, 1) to (B, N, D)."""


class DiT(nn.Module):
    """Blocks that the noise level of each token modulates; it begins as a network of zeros."""

    def __init__(self, token_width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(token_width, WIDTH)
        self.level = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)
        )
        self.transformer = Transformer(WIDTH, depth=3, heads=HEADS, condition_width=WIDTH)
        self.head = nn.Linear(WIDTH, token_width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, noisy: torch.Tensor, level: torch.Tensor, batch: Batch) -> torch.Tensor:
        angles = level * torch.linspace(0, math.log(100), FREQUENCIES).exp()
        condition = self.level(torch.cat([angles.sin(), angles.cos()], dim=-1))
        ids, places = batch["segment_ids"], rotations(batch["positions"], WIDTH // HEADS)
        x = self.transformer(self.embed(noisy), block_mask(ids), angles=places, condition=condition)
        return self.head(x)


def of_segments(drawn: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """(B, S + 1) numbers, the first of padding, to ``(B, N, 1)``: that of each token's segment."""
    return drawn.gather(1, segment_ids.long())[..., None]


def flow(x: torch.Tensor, ids: torch.Tensor, network: Network) -> torch.Tensor:
    t = of_segments(torch.randn(len(ids), int(ids.max()) + 1).sigmoid(), ids)
    noise = torch.randn_like(x)
    return (network((1 - t) * x + t * noise, t) - (noise - x)).square()


def ddpm(x: torch.Tensor, ids: torch.Tensor, network: Network) -> torch.Tensor:
    shares = torch.linspace(1e-4, 0.02, 1000).neg().log1p().cumsum(0).exp()
    steps = of_segments(torch.randint(1000, (len(ids), int(ids.max()) + 1)), ids)
    a, noise = shares[steps], torch.randn_like(x)
    return (network(a.sqrt() * x + (1 - a).sqrt() * noise, steps / 1000) - noise).square()


def edm(x: torch.Tensor, ids: torch.Tensor, network: Network, *, data: float) -> torch.Tensor:
    """`data` is sigma_data; the levels are those of its training, exp(N(-1.2, 1.2^2))."""
    sigma = of_segments(torch.randn(len(ids), int(ids.max()) + 1).mul(1.2).sub(1.2).exp(), ids)
    total = (sigma**2 + data**2).sqrt()
    noisy = x + sigma * torch.randn_like(x)
    made = network(noisy / total, sigma.log() / 4)
    denoised = data**2 / total**2 * noisy + sigma * data / total * made
    return (total / (sigma * data)) ** 2 * (denoised - x).square()


def sigma_data(packs: PackDataset) -> float:
    """The standard deviation of all values of all latents, from that of each channel."""
    mean, std = (torch.tensor(packs.document["encoder"][name]) for name in ("mean", "std"))
    return float((std.square().mean() + mean.var(correction=0)).sqrt())


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    parser = arguments(__doc__, steps=300, lr=3e-3)
    parser.add_argument("--objective", choices=("flow", "ddpm", "edm"), default="flow")
    args = parse(parser, argv)
    packs = packs_of(args)
    model, data = DiT(packs.document["token_width"]), sigma_data(packs)

    def loss_of(batch: Batch) -> torch.Tensor:
        ids = batch["segment_ids"]

        def network(noisy: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            return model(noisy, level, batch)

        if args.objective == "edm":  # it scales latents itself
            errors = edm(batch["tokens"].float(), ids, network, data=data)
        else:
            objective = {"flow": flow, "ddpm": ddpm}[args.objective]
            errors = objective(packs.standardize(batch["tokens"]), ids, network)
        return errors[ids > 0].mean()

    return train(args, packs, model, loss_of, objective=args.objective, sigma_data=round(data, 4))


if __name__ == "__main__":
    main()
