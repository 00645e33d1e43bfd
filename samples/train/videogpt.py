r"""VideoGPT: a video as codes, each predicted from those before it.

arXiv 2104.10157, section 3.2: a causal transformer over the codes of a VQ encoder in raster order
(t, then h, then w), trained by likelihood. The codebook is learned from the samples themselves.

    spacepatch fit samples/manifest.csv --out codec.safetensors \
        --block 2x8x8 --channels 12 --codebook 64 --resolution 48 --fps 8
    spacepatch tokenize samples/manifest.csv --out shards/videogpt --resolution 48 --fps 8 \
        --encoder linear:codec.safetensors --pack-length 512
    python samples/train/videogpt.py shards/videogpt
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from batches import Batch
from layers import Transformer, rotations, sines
from torch import nn
from training import arguments, packs_of, parse, train

from spacepatch.loader import PackDataset
from spacepatch.masks import block_mask

WIDTH, HEADS = 64, 4


class VideoGPT(nn.Module):
    """From codes to the logits of each, given those before it in its segment."""

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.start = codebook_size
        self.embed = nn.Embedding(codebook_size + 1, WIDTH)
        self.transformer = Transformer(WIDTH, depth=2, heads=HEADS)
        self.head = nn.Linear(WIDTH, codebook_size)

    def forward(self, codes: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``(B, N)`` int64 to ``(B, N, codebook_size)``: what is seen at i is the code at i - 1."""
        ids, positions = batch["segment_ids"], batch["positions"]
        # Tokens lie in raster order, so the one before is its neighbour; a segment begins anew.
        begins = ids.diff(dim=1, prepend=torch.zeros_like(ids[:, :1])) != 0
        before = codes.roll(1, dims=1).masked_fill(begins, self.start)
        x = self.embed(before) + sines(positions, WIDTH)
        mask = block_mask(ids, positions, causal="token")
        return self.head(self.transformer(x, mask, angles=rotations(positions, WIDTH // HEADS)))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    args = parse(arguments(__doc__, steps=200, lr=3e-3), argv)
    packs = packs_of(args)
    codebook_size = packs.document["encoder"]["codebook_size"]
    model = VideoGPT(codebook_size)

    def loss_of(batch: Batch) -> torch.Tensor:
        codes = batch["tokens"][..., 0].long()
        real = batch["segment_ids"] > 0
        return F.cross_entropy(model(codes, batch)[real], codes[real])

    return train(args, packs, model, loss_of, entropy=round(entropy(packs, codebook_size), 4))


def entropy(packs: PackDataset, codebook_size: int) -> float:
    """Of a code by itself, in nats: the loss of who knows how often each comes, and no more."""
    counts = torch.zeros(codebook_size)
    for index in range(len(packs)):
        pack = packs[index]
        codes = pack["tokens"][: pack["num_tokens"], 0].long()
        counts += torch.bincount(codes, minlength=codebook_size)
    return float(torch.distributions.Categorical(counts).entropy())


if __name__ == "__main__":
    main()
