"""The dtypes of tokens by their words, and how numbers are brought to them and back."""

from __future__ import annotations

import numpy as np

LATENT_DTYPES = ("float16", "float32", "bfloat16")

STORAGE = {"bfloat16": "uint16"}
"""numpy has no bfloat16: its bits are stored, and the word says what they are."""


def storage_of(word: str) -> str:
    """The dtype in memory and in the npy of tokens whose dtype is called `word`."""
    return STORAGE.get(word, word)


def code_dtype(codebook_size: int) -> str:
    """The smallest unsigned dtype that holds codes 0 to `codebook_size` - 1."""
    return next(
        word for word in ("uint8", "uint16", "uint32") if codebook_size - 1 <= np.iinfo(word).max
    )


def to_stored(values: np.ndarray, word: str) -> np.ndarray:
    """Bring latents (float32) or codes to the dtype that they are stored in.

    Floats are rounded half to even; what is beyond the range of float16 becomes Inf, which whoever
    calls this has ruled out.
    """
    if word != "bfloat16":
        with np.errstate(over="ignore"):
            return values.astype(word)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Half to even: 0x7FFF more rounds up what lies above the half, and one more where it is odd.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    # A NaN whose bits all lie in the lower half would become Inf.
    rounded = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)
    return rounded.astype(np.uint16)


def from_stored(tokens: np.ndarray, word: str) -> np.ndarray:
    """The numbers of stored tokens: float32 of latents, the codes or pixels as they are."""
    if word == "bfloat16":
        return (tokens.astype(np.uint32) << 16).view(np.float32)
    return tokens.astype(np.float32) if word.startswith("float") else tokens
