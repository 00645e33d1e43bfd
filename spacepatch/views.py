"""What is drawn for each variant of a clip: its rate, size, patch, crop, offset and drop."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from spacepatch.distributions import Distribution
from spacepatch.drop import Drawn, Drop
from spacepatch.randomness import Draws


@dataclass(frozen=True, slots=True)
class View:
    """One variant of a clip. With a single view and nothing random, the clip as such."""

    number: int
    """0-based."""
    value: Fraction
    """What the sampler takes: samples a second, or a number."""
    shift: Fraction
    """Random temporal offset, as a part of the distance of samples: in [0, 1)."""
    tubelet_size: int
    patch_size: tuple[int, int]
    size_value: Any
    """What the size policy takes."""
    share: Fraction
    """Of the picture's area that is cropped; 1: all of it."""
    place: tuple[float, float]
    """Where the crop lies, (down, right), each in [0, 1); of no account where there is none."""
    drop: Drawn | None


@dataclass(frozen=True, slots=True)
class ViewRules:
    """What views are drawn from."""

    num_views: int
    value: Distribution
    random_offset: bool
    patches: tuple[tuple[int, int, int], ...]
    """Each (frames, height, width)."""
    each_patch: bool
    """View n takes patch n, instead of drawing one."""
    size_value: Any
    """What the size policy takes, or the `Distribution` of it."""
    share: Distribution | None
    drop: Drop | None

    @property
    def is_one_rate(self) -> bool:
        """Whether all clips of a source are sampled at the same times."""
        return not self.random_offset and self.value.lowest == self.value.highest

    def draw(self, *key: object) -> tuple[View, ...]:
        """The views of one window of a source.

        Args:
            key: seed, token fingerprint, source id and number of the window: all of its clips, if
                it is cut to fit packs, share these draws.
        """
        return tuple(self._draw(key, number) for number in range(self.num_views))

    def _draw(self, key: tuple[object, ...], number: int) -> View:
        def draws(purpose: str) -> Draws:
            # A stream for each purpose, so that one setting does not shift what another draws.
            return Draws(*key, number, purpose)

        patch = number if self.each_patch else 0
        if len(self.patches) > 1 and not self.each_patch:
            patch = draws("patch").integer(len(self.patches))
        tubelet_size, height, width = self.patches[patch]
        size_value, share, place = self.size_value, Fraction(1), (0.0, 0.0)
        if isinstance(size_value, Distribution):
            size_value = size_value.draw(draws("resolution"))
        if self.share is not None:
            share = self.share.draw(draws("crop"))
            down, right = (float(value) for value in draws("place").uniforms(2))
            place = down, right
        return View(
            number=number,
            value=self.value.draw(draws("fps")),
            shift=self._shift(draws("offset")),
            tubelet_size=tubelet_size,
            patch_size=(height, width),
            size_value=size_value,
            share=share,
            place=place,
            drop=self.drop.draw(draws("drop")) if self.drop is not None else None,
        )

    def _shift(self, draws: Draws) -> Fraction:
        # In millionths: exact, and sample times stay small whole numbers.
        return Fraction(draws.integer(10**6), 10**6) if self.random_offset else Fraction(0)
