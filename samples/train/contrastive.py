r"""CLIP and SigLIP: pictures and captions, each near its own and far from the others'.

Pictures of all sizes share packs; masked pooling makes one vector of each segment, which meets the
caption that the manifest gave it (`extra` of the segment). Text is read byte by byte.

- `clip` (arXiv 2103.00020, figure 3): which caption of the batch, which picture; symmetric
- `siglip` (arXiv 2303.15343, equation 1): each pair by itself, yes or no

Pictures that have the same caption are each right for it, not each other's negatives.

    spacepatch tokenize samples/manifest.csv --out shards/captions --num-frames 2 \
        --resolution uniform:64..112 --views 4 --patch 2x16x16 --normalize half --pack-length 192
    python samples/train/contrastive.py shards/captions
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from batches import Batch
from layers import Transformer, sines
from torch import nn
from training import arguments, packs_of, parse, train

from spacepatch.masks import block_mask
from spacepatch.pooling import segment_mean

WIDTH, HEADS = 64, 4


class Pictures(nn.Module):
    """From packs of patches to a vector of length 1 for each segment."""

    def __init__(self, token_width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(token_width, WIDTH)
        self.transformer = Transformer(WIDTH, depth=2, heads=HEADS)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, pixels: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``(B, N, D)`` to (segments, WIDTH), in the order of the packs."""
        ids = batch["segment_ids"]
        x = self.embed(pixels) + sines(batch["positions"], WIDTH)
        x = self.transformer(x, block_mask(ids))
        pooled, real = segment_mean(x, ids, max_segments=int(ids.max()))
        return F.normalize(self.head(pooled[real]), dim=-1)


class Captions(nn.Module):
    """From texts to a vector of length 1 for each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.transformer = Transformer(WIDTH, depth=2, heads=HEADS)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, texts: list[str]) -> torch.Tensor:
        """A text a row, filled up with padding, which is no byte of UTF-8: 0."""
        rows = [torch.tensor(list(text.encode())) for text in texts]
        read = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        ids = (read > 0).int()
        places = torch.arange(read.shape[1])[:, None] * torch.tensor([1, 0, 0])
        x = self.embed(read) + sines(places, WIDTH)
        pooled, _ = segment_mean(self.transformer(x, block_mask(ids)), ids, max_segments=1)
        return F.normalize(self.head(pooled[:, 0]), dim=-1)


def clip_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Cross entropy along both axes; where several captions are right, each is as likely."""
    right = same.float()
    by_picture = F.cross_entropy(logits, right / right.sum(1, keepdim=True))
    by_caption = F.cross_entropy(logits.T, right.T / right.T.sum(1, keepdim=True))
    return (by_picture + by_caption) / 2


def siglip_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    signs = same * 2.0 - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


LOSSES = {
    # The loss, and the logarithm of the scale and the bias that it begins with: the papers', but
    # that -10 is for batches of thousands, where so few pairs are right; here one in ten is.
    "clip": (clip_loss, math.log(1 / 0.07), 0.0),
    "siglip": (siglip_loss, math.log(10), -3.0),
}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    parser = arguments(__doc__, steps=200, lr=2e-3)
    parser.add_argument("--loss", choices=tuple(LOSSES), default="clip")
    args = parse(parser, argv)
    packs = packs_of(args)
    pair_loss, scale, bias = LOSSES[args.loss]
    model = nn.ModuleDict(
        {"pictures": Pictures(packs.document["token_width"]), "captions": Captions()}
    )
    model.scale, model.bias = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(bias))

    def loss_of(batch: Batch) -> torch.Tensor:
        texts = [one["extra"]["caption"] for pack in batch["segments"] for one in pack]
        # Each text is read once, and stands in a column for each picture that has it.
        known = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        places = torch.tensor([known[text] for text in texts])
        pictures = model["pictures"](packs.normalize(batch["tokens"]), batch)
        captions = model["captions"](list(known))[places]
        logits = model.scale.exp() * pictures @ captions.T + model.bias
        return pair_loss(logits, places[:, None] == places)

    return train(args, packs, model, loss_of, loss=args.loss)


if __name__ == "__main__":
    main()
