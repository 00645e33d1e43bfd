"""Random draws that depend on a key and on nothing else.

Only raw 64-bit words are taken from numpy, whose counter-based Philox generator is fixed by its
paper: what numpy's own `shuffle` or `beta` draw may change from one version to the next.
"""

from __future__ import annotations

import hashlib
import math
import sys
from functools import cached_property
from statistics import NormalDist

import numpy as np

_NUM_WORDS = 2**64


class Draws:
    """A stream of draws, the same for the same key in every process and on every machine.

    Args:
        key: what the draws are of: seed, token fingerprint, source id, clip, view, and a word for
            their purpose, so that no two purposes share their draws. Each part counts by its
            `str()`.
    """

    def __init__(self, *key: object) -> None:
        self._key = key

    @cached_property
    def _philox(self) -> np.random.Philox:
        # When it is first drawn from: most settings draw nothing, and a plan asks for every clip.
        content = "\0".join(map(str, self._key)).encode()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        # Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
        return np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64))

    def uniform(self) -> float:
        """A multiple of 2**-53 in [0, 1)."""
        return (self._word() >> 11) * 2.0**-53

    def uniforms(self, num: int) -> np.ndarray:
        """``(num,)`` float64: the next `num` of `uniform`."""
        return (self._words(num) >> np.uint64(11)) * 2.0**-53

    def integer(self, stop: int) -> int:
        """One of 0 .. `stop` - 1, all equally likely."""
        if not 1 <= stop <= _NUM_WORDS:
            raise ValueError(f"stop is {stop}, must be 1 .. 2**64")
        # Words from the last whole multiple of `stop` on would make small numbers likelier.
        fair = _NUM_WORDS - _NUM_WORDS % stop
        while (word := self._word()) >= fair:
            pass
        return word % stop

    def truncated_normal(self, mean: float, sigma: float, low: float, high: float) -> float:
        """N(mean, sigma) given that it lies in [low, high], by the inverse of its distribution.

        Raises:
            ValueError: the normal has no weight there that a float64 can hold (38 sigma away).
        """
        if low > mean:
            # Above the mean the distribution nears 1 and loses its digits; below it nears 0.
            return -self.truncated_normal(-mean, sigma, -high, -low)
        below, upto = _normal_cdf((low - mean) / sigma), _normal_cdf((high - mean) / sigma)
        if not below < upto:
            raise ValueError(f"N({mean}, {sigma}) has no weight in {low} .. {high}")
        share = below + self.uniform() * (upto - below)
        # The inverse takes neither 0 nor 1, which a range without an end in sight rounds to.
        share = min(max(share, sys.float_info.min), 1 - 2**-53)
        return min(max(mean + sigma * NormalDist().inv_cdf(share), low), high)

    def beta(self, a: float, b: float) -> float:
        """Beta(a, b) by Jöhnk's rejection (1964), which is quick where a + b is small."""
        if not (a > 0 and b > 0):
            raise ValueError(f"a and b are {a} and {b}, must be above 0")
        while True:
            x, y = math.pow(self.uniform(), 1 / a), math.pow(self.uniform(), 1 / b)
            if 0 < x + y <= 1:
                return x / (x + y)

    def order(self, num: int) -> np.ndarray:
        """``(num,)`` int64: 0 .. `num` - 1 in random order, by a sort of words, ties by index."""
        return np.argsort(self._words(num), kind="stable")

    def _word(self) -> int:
        return int(self._words(1)[0])

    def _words(self, num: int) -> np.ndarray:
        """``(num,)`` uint64."""
        return np.asarray(self._philox.random_raw(num))


def _normal_cdf(z: float) -> float:
    """Of N(0, 1). `NormalDist.cdf` loses the lower tail in some versions of Python."""
    return math.erfc(-z / math.sqrt(2)) / 2
