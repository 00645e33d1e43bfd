"""Check what the tokens of an encoder are, pack by pack, and add up what a receipt says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spacepatch.inspection.encoders import KnownEncoder
from spacepatch.inspection.findings import Report
from spacepatch.inspection.pixels import PIXELS, Tubelet, check_pixels
from spacepatch.inspection.segments import Row
from spacepatch.latents.encoders import MAX_LATENT
from spacepatch.pipeline.encoded import TOKENS_AT_ONCE, by_channel
from spacepatch.shards import ShardReceipt
from spacepatch.token_dtypes import from_stored
from spacepatch.tubelets import LAYOUTS


class PackTotals:
    """What the packs of one shard add up to; of pixels alone there is nothing to add."""

    def __init__(
        self, receipt: ShardReceipt, encoder: KnownEncoder | None, tubelet: Tubelet | None
    ) -> None:
        """`tubelet` is that of pixel tokens beside the others, where it is known."""
        self._receipt, self._encoder, self._tubelet = receipt, encoder, tubelet
        self._sums = np.zeros((3, 0 if encoder is None else encoder.channels))
        self._pixel_counts: list[int] = []
        self._has_all_tokens = self._has_all_pixels = True

    def add(
        self,
        arrays: dict[str, np.ndarray],
        rows: Sequence[Row],
        *,
        report: Report,
        at: Callable[[int], Report],
    ) -> None:
        """Check and count one pack.

        Args:
            arrays: the npy members that are as declared.
            rows: of its segments.
        """
        if self._encoder is None:
            return
        tokens = arrays.get("tokens.npy")
        if tokens is None:
            self._has_all_tokens = False
        else:
            for place, row in enumerate(rows):
                part = tokens[row["offset"] : row["offset"] + row["num_kept"]]
                self._add_tokens(part, row["layout"], self._encoder, at(place))
        if PIXELS not in self._receipt.members:
            return
        counted = check_pixels(arrays, rows, tubelet=self._tubelet, report=report, at=at)
        if counted is None:
            self._has_all_pixels = False
            return
        self._pixel_counts.append(counted[0])
        self._tubelet = counted[1]

    def pass_over(self) -> None:
        """A pack that cannot be counted: nothing is said of the sums then."""
        self._has_all_tokens = self._has_all_pixels = False

    def _add_tokens(
        self, tokens: np.ndarray, layout: str, encoder: KnownEncoder, report: Report
    ) -> None:
        if encoder.codebook_size is not None:
            if tokens.max(initial=0) >= encoder.codebook_size:
                report(f"has code {tokens.max()}, of a codebook of {encoder.codebook_size}")
            return
        if layout not in LAYOUTS or tokens.shape[1] % encoder.channels:
            self._has_all_tokens = False
            return  # reported with the row
        # In the order in which they were summed when they were written: floats add up to the very
        # same sums only then.
        for start in range(0, len(tokens), TOKENS_AT_ONCE):
            stored = tokens[start : start + TOKENS_AT_ONCE]
            values = by_channel(
                from_stored(stored, self._receipt.token_dtype).astype(np.float64),
                channels=encoder.channels,
                layout=layout,
            )
            fault = _fault_of(values)
            if fault:
                report(fault)
                self._has_all_tokens = False
                return
            self._sums[0] += len(values)
            self._sums[1] += values.sum(axis=0)
            self._sums[2] += np.square(values).sum(axis=0)

    def settle(self, report: Report) -> None:
        """After the last pack: the receipt says what they add up to."""
        receipt, encoder = self._receipt, self._encoder
        if encoder is None:
            return
        if self._has_all_tokens and receipt.channel_sums is not None:
            self._compare(receipt.channel_sums, report)
        if self._has_all_pixels:
            counts = self._pixel_counts
            for key, value in (
                ("pixel_tokens", sum(counts)),
                ("pack_pixel_tokens", max(counts, default=0)),
            ):
                if getattr(receipt, key) != value:
                    report(f"{key} is {getattr(receipt, key)}, its packs have {value}")

    def _compare(self, written: list[list[float]], report: Report) -> None:
        if len(written[0]) != self._sums.shape[1]:
            return  # the receipt is of another encoder, which is reported
        found = self._sums.tolist()
        for channel, column in np.argwhere(self._sums.T != np.array(written).T)[:1].tolist():
            report(
                f"channel_sums: {('counts', 'sums', 'squares')[column]} of channel {channel} is "
                f"{written[column][channel]}, its packs have {found[column][channel]}"
            )


def _fault_of(latents: np.ndarray) -> str | None:
    if not np.isfinite(latents).all():
        return "has latents that are not finite"
    most = float(np.abs(latents).max(initial=0))
    return f"has latents up to {most:g}: {MAX_LATENT:g} are the most" if most > MAX_LATENT else None
