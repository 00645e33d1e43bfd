r"""Captioning: a picture, and then its caption byte by byte, each from what came before.

A picture's tokens are the prefix, which see each other; the bytes of its caption follow in the same
segment and see the prefix and the bytes before them (prefix language model, arXiv 1910.10683,
section 3.2.1). The captions come from the manifest, in `extra` of each segment. Pictures of all
sizes share packs, and so do their captions: a pack is lengthened by those of its segments.

    spacepatch tokenize samples/manifest.csv --out shards/captions --num-frames 2 \
        --resolution uniform:64..112 --views 4 --patch 2x16x16 --normalize half --pack-length 192
    python samples/train/captioning.py shards/captions
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from batches import Batch
from layers import Transformer, sines
from torch import nn
from training import arguments, packs_of, parse, train

from spacepatch.masks import block_mask

WIDTH, HEADS = 64, 4
FRAMES = 1024
"""Where text begins on the axis t: later than any picture."""
START, STOP = 2, 3
"""Bytes of ASCII that no caption has, and what they mean: of text."""


def texts_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The captions of each pack, one after the other, each as START, bytes, STOP.

    Returns:
        ``(B, L)`` int64 bytes, ``(B, L)`` segment ids, 0 = padding, ``(B, L, 3)`` positions.
    """
    columns: tuple[list[torch.Tensor], ...] = ([], [], [])
    for pack in batch["segments"]:
        texts = [[START, *one["extra"]["caption"].encode(), STOP] for one in pack]
        places = [FRAMES + place for text in texts for place in range(len(text))]
        ids = [segment for segment, text in enumerate(texts, 1) for _ in text]
        columns[0].append(torch.tensor([byte for text in texts for byte in text]))
        columns[1].append(torch.tensor(ids, dtype=torch.int32))
        columns[2].append(F.pad(torch.tensor(places, dtype=torch.int32)[:, None], (0, 2)))
    read, ids, positions = (nn.utils.rnn.pad_sequence(c, batch_first=True) for c in columns)
    return read, ids, positions


class Captioner(nn.Module):
    """From packs of patches and their texts to the logits of the byte that follows each byte."""

    def __init__(self, token_width: int) -> None:
        super().__init__()
        self.see = nn.Linear(token_width, WIDTH)
        self.read = nn.Embedding(256, WIDTH)
        self.transformer = Transformer(WIDTH, depth=2, heads=HEADS)
        self.head = nn.Linear(WIDTH, 256)

    def forward(
        self,
        pixels: torch.Tensor,
        batch: Batch,
        read: torch.Tensor,
        ids: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """``(B, N, D)`` and the results of `texts_of` to ``(B, L, 256)``."""
        x = torch.cat([self.see(pixels), self.read(read)], dim=1)
        ids = torch.cat([batch["segment_ids"], ids], dim=1)
        positions = torch.cat([batch["positions"], positions], dim=1)
        mask = block_mask(ids, positions, causal="token", prefix_frames=FRAMES)
        x = self.transformer(x + sines(positions, WIDTH), mask)
        return self.head(x[:, -read.shape[1] :])


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    args = parse(arguments(__doc__, steps=200, lr=3e-3), argv)
    packs = packs_of(args)
    model = Captioner(packs.document["token_width"])

    def loss_of(batch: Batch) -> torch.Tensor:
        read, ids, positions = texts_of(batch)
        logits = model(packs.normalize(batch["tokens"]), batch, read, ids, positions)
        # After the last byte of a segment comes another's first.
        follows = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] > 0)
        return F.cross_entropy(logits[:, :-1][follows], read[:, 1:][follows])

    return train(args, packs, model, loss_of)


if __name__ == "__main__":
    main()
