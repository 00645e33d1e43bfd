r"""MAE and VideoMAE: see a quarter or a tenth of a clip, paint the rest.

arXiv 2111.06377 (section 3, --mask random:0.75) and 2203.12602 (--mask tube:0.9). The encoder gets
the visible tokens alone, of several packs in one sequence without holes; a small decoder gets all
places, a learned token where nothing was seen, and predicts each hidden token's pixels, normalized
by its own mean and deviation.

    spacepatch tokenize samples/manifest.csv --out shards/mae --clip-seconds 1 --fps 8 \
        --resolution 48 --upscale --patch 2x8x8 --normalize half --pack-length 320
    python samples/train/mae.py shards/mae --mask random:0.75
"""

from __future__ import annotations

import torch
from batches import Batch, shuffled
from layers import Transformer, sines
from torch import nn
from training import arguments, packs_of, parse, train

from spacepatch.loader import PackLoader, visible_packs
from spacepatch.masks import block_mask


def spoiled(batch: Batch) -> Batch:
    """The batch with the tokens of its packs dealt out anew, and with them those of the encoder."""
    packs, tokens = shuffled(batch["packs"]), batch["tokens"].clone()
    tokens[: batch["num_tokens"]] = packs["tokens"][packs["visible"]]
    return batch | {"tokens": tokens, "packs": packs}


class MAE(nn.Module):
    """An encoder for what is seen and a lighter decoder for all places."""

    def __init__(self, token_width: int, *, width: int = 96, decoder_width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(token_width, width)
        self.encoder = Transformer(width, depth=2, heads=4)
        self.narrow = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, decoder_width))
        self.decoder = Transformer(decoder_width, depth=1, heads=4)
        self.paint = nn.Linear(decoder_width, token_width)

    def forward(self, pixels: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``(E, D)`` visible tokens to ``(g, N, D)``, all that there are."""
        x = self.embed(pixels) + sines(batch["positions"], self.embed.out_features)
        x = self.encoder(x[None], block_mask(batch["segment_ids"])[None])[0]
        packs = batch["packs"]
        y = torch.cat([self.narrow(x), self.mask_token])[batch["restore"]]
        y = y + sines(packs["positions"], self.narrow.out_features)
        return self.paint(self.decoder(y, block_mask(packs["segment_ids"])))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, print what was measured, return it."""
    parser = arguments(__doc__, steps=300, lr=3e-3)
    parser.set_defaults(batch_size=None)  # as many packs as fill a sequence of the encoder
    parser.add_argument("--mask", default="random:0.75", help="random:RATE or tube:RATE")
    args = parse(parser, argv)
    packs = packs_of(args)
    model = MAE(packs.document["token_width"])
    kind, rate = args.mask.split(":")

    def batches(*, shuffle: bool) -> PackLoader:
        return visible_packs(
            packs, float(rate), kind=kind, packs_per_step=args.batch_size, shuffle=shuffle
        )

    def loss_of(batch: Batch) -> torch.Tensor:
        stored = batch["packs"]
        painted = model(packs.normalize(batch["tokens"]), batch)
        hidden = (stored["segment_ids"] > 0) & ~stored["visible"]
        target = packs.normalize(stored["tokens"][hidden])
        deviation, mean = torch.std_mean(target, dim=-1, keepdim=True)
        # Where a token is of one colour nothing is to be painted; 1e-6 as in MAE's own code.
        target = (target - mean) / (deviation**2 + 1e-6) ** 0.5
        return ((painted[hidden] - target) ** 2).mean()

    return train(
        args,
        packs,
        model,
        loss_of,
        batches=batches(shuffle=True),
        held=batches(shuffle=False),
        count=lambda batch: (batch["num_tokens"], len(batch["tokens"])),
        spoil=spoiled,
        mask=args.mask,
    )


if __name__ == "__main__":
    main()
