"""One segment against its source, in a worker: tokens made again, and decoded to frames."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from spacepatch.encoding import beating
from spacepatch.errors import EncodeError, ShardError, SourceError
from spacepatch.framerules import PIXELS
from spacepatch.inspection.segment_tokens import (
    Request,
    Stored,
    first_row,
    make_stored,
    read_stored,
)
from spacepatch.jobs import Job, tokens_of
from spacepatch.pipeline.encoded import by_channel
from spacepatch.quality import WINDOW, squared_error, ssim
from spacepatch.stored_frames import UNKNOWN, frames_of_tokens, kept_cells
from spacepatch.token_dtypes import from_stored
from spacepatch.tubelets import cells_of_rows


@dataclass(frozen=True, slots=True)
class Compared:
    """What was found."""

    problem: str = ""
    """Why it could not be looked at, or what contradicts what; empty: nothing."""
    is_same: bool | None = None
    """Whether the stored tokens are, to the bit, what is made now; of references, whether what is
    made now has their checksum; None: not made again, or there is no checksum."""
    is_counted: bool = False
    """References without a checksum: as many tokens are made as were packed."""
    apart: float = 0.0
    """How far they are from it: of latents the root mean square in standard deviations of their
    channels, of pixels in parts of 255, of codes the share that differs."""
    max_difference: float = 0.0
    """The largest between two numbers; of codes 1 where any differs."""
    pixels_apart: float = 0.0
    """`apart` of the pixel tokens beside those of an encoder."""
    error: int | None = None
    """Sum of squared differences of the decoded frames to the source's; None: not decoded, or
    without a source."""
    num_values: int = 0
    num_frames: int = 0
    """True ones: those that fill the last row are left out."""
    ssim: float | None = None
    """None also where frames are smaller than its window."""
    sums: np.ndarray | None = None
    """``(3, C)`` float64: count, sum and sum of squares of each channel of latents."""
    shown: tuple[int, ...] = ()
    """Which of its frames the next two hold."""
    source_frames: np.ndarray | None = None
    """``(K, H, W, 3)`` uint8."""
    decoded_frames: np.ndarray | None = None
    """``(K, H, W, 3)`` uint8, grey where a token is missing."""
    pixel_frames: np.ndarray | None = None
    """The same of the pixel tokens beside those of an encoder."""
    kept: np.ndarray | None = None
    """``(T, H, W)`` bool: which cells of its grid have a token; None: no frames are sent back."""
    visible: np.ndarray | None = None
    """``(T, H, W)`` bool: those that a stored mask leaves visible; None: there is no such."""


OTHER_TOKENS = (
    "its source gives other tokens than tokens_crc32c says; restore its source, or tokenize again"
)


def compare_segment(request: Request) -> Compared:
    """Hold a stored segment against its source.

    Raises:
        ConfigError: the encoder has no decoder.
    """
    try:
        return _compare(request)
    except (ShardError, EncodeError, SourceError) as error:
        return Compared(problem=str(error))
    except Exception as error:
        error.add_note(f"segment: {request.row['segment_id']}")
        raise


def _compare(request: Request) -> Compared:
    found = Compared(num_frames=len(request.row["frame_pts"]))
    if request.references is None:
        stored = read_stored(request)
    elif request.job is None:
        return found
    else:
        stored, is_same = make_stored(request, request.job, request.references)
        found = replace(found, is_same=is_same, is_counted=is_same is None)
        if is_same is False:
            found = replace(found, problem=OTHER_TOKENS)
        if found.problem and not request.num_shown:
            return found
        request = replace(request, make_again=False)  # they are that already
    decoded = _decode(request, stored)
    found = replace(found, sums=_sums(request, stored))
    if request.job is not None:
        found = _against_source(request, request.job, stored, decoded, found)
    return _shown(request, stored, decoded, found)


def _shown(
    request: Request, stored: Stored, decoded: np.ndarray | None, found: Compared
) -> Compared:
    """With the frames that are to be sent back, and no others."""
    pixels = stored.pixels
    if not request.num_shown or (decoded is None and pixels is None):
        return replace(found, source_frames=None)
    chosen = _spread(found.num_frames, request.num_shown)
    visible = None
    if stored.visible is not None:
        visible = kept_cells(stored.places[stored.visible != 0], request.row)
    return replace(
        found,
        shown=tuple(chosen.tolist()),
        source_frames=None if found.source_frames is None else found.source_frames[chosen],
        decoded_frames=None if decoded is None else decoded[chosen],
        pixel_frames=None if pixels is None else pixels[: found.num_frames, ..., :3][chosen],
        kept=kept_cells(stored.places, request.row),
        visible=visible,
    )


def _sums(request: Request, stored: Stored) -> np.ndarray | None:
    settings = request.settings
    if settings.facts is None or settings.facts.kind != "latents":
        return None
    values = by_channel(
        from_stored(stored.tokens, settings.token_dtype).astype(np.float64),
        channels=settings.facts.channels,
        layout=settings.layout,
    )
    counts = np.full(values.shape[1], float(len(values)))
    return np.stack([counts, values.sum(axis=0), np.square(values).sum(axis=0)])


# --- to frames ---------------------------------------------------------------------------------


def _decode(request: Request, stored: Stored) -> np.ndarray | None:
    """``(T, H, W, 3)`` uint8: the true frames; None without the encoder that they need, or where
    its grid has holes and nobody wants to see them."""
    settings = request.settings
    is_whole = len(stored.tokens) == request.row["num_tokens"]
    if settings.facts is not None and settings.encoder is None:
        return None
    if settings.facts is not None and not is_whole and not request.num_shown:
        return None
    frames = frames_of_tokens(
        stored.tokens,
        stored.places,
        row=request.row,
        token_dtype=settings.token_dtype,
        facts=settings.facts,
        encoder=settings.encoder,
    )
    return frames[: len(request.row["frame_pts"]), ..., :3]


def _spread(num_frames: int, wanted: int) -> np.ndarray:
    """``(K,)`` int64: the middles of K equal parts; fewer where there are fewer frames."""
    wanted = min(wanted, num_frames)
    return (2 * np.arange(wanted) + 1) * num_frames // (2 * wanted)


# --- against the source ------------------------------------------------------------------------


def _against_source(
    request: Request, job: Job, stored: Stored, decoded: np.ndarray | None, found: Compared
) -> Compared:
    first = first_row(request)
    if request.make_again:
        found = _against_tokens(request, job, stored, first, found)
        if found.problem:
            return found
    if decoded is None and (request.make_again or stored.pixels is None):
        return found
    start = int(request.clip.row_starts[first])
    frames, there = _frames_of(request, job)
    span = slice(start, start + found.num_frames)
    is_whole = len(stored.tokens) == request.row["num_tokens"]
    if len(frames[span]) != found.num_frames or (is_whole and not there[span].all()):
        return replace(found, problem="its source does not give its frames; restore it")
    frames = frames[span]
    if stored.pixels is not None:
        if stored.pixels[: len(frames)].shape[:3] != frames.shape[:3]:
            return replace(found, problem="its pixel tokens are not of the size of its frames")
        error = squared_error(stored.pixels[: len(frames), ..., :3], frames)
        found = replace(found, pixels_apart=math.sqrt(error / frames.size) / 255)
    if is_whole and decoded is not None:
        with beating():
            likeness = ssim(decoded, frames) if min(frames.shape[1:3]) >= WINDOW else None
        found = replace(
            found,
            error=squared_error(decoded, frames),
            num_values=decoded.size,
            ssim=likeness,
        )
    return replace(found, source_frames=frames)


def _against_tokens(
    request: Request, job: Job, stored: Stored, first: int, found: Compared
) -> Compared:
    """Hold the stored tokens against those that the source gives now."""
    row, clip, settings = request.row, request.clip, request.settings
    ((tokens, made),) = tokens_of(job)
    kept = made.kept
    if kept is None:
        kept = cells_of_rows(made.rows, *clip.grid_thw[1:], merge=settings.merge)
    place = np.full(clip.num_tokens, -1, np.int64)
    place[kept] = np.arange(len(kept))
    span = slice(first * clip.cells, (first + row["grid_thw"][0]) * clip.cells)
    own = place[span]
    is_there = len(own) == row["num_tokens"] and (own[stored.places] >= 0).all()
    if not is_there or (own >= 0).sum() != len(stored.places):
        lost = [f"{loss.reason}: {loss.message}" for loss in made.losses]
        why = lost[0] if lost else "other tokens of it are kept"
        return replace(found, problem=f"cannot be made again: {why}; restore its source")
    again = tokens[own[stored.places]]
    # By their bytes, as they are stored.
    is_same = np.array_equal(again.view(np.uint8), stored.tokens.view(np.uint8))
    apart, largest = _distance(request, stored.tokens, again)
    return replace(found, is_same=is_same, apart=apart, max_difference=largest)


def _distance(request: Request, stored: np.ndarray, again: np.ndarray) -> tuple[float, float]:
    """`Compared.apart` and `max_difference`."""
    settings = request.settings
    if settings.facts is not None and settings.facts.kind == "codes":
        differs = stored != again
        return float(differs.mean()), float(differs.any())
    before, after = (
        by_channel(
            from_stored(tokens, settings.token_dtype).astype(np.float64),
            channels=settings.channels,
            layout=settings.layout,
        )
        for tokens in (stored, again)
    )
    scale = np.full(settings.channels, 255.0)
    if settings.facts is not None:
        # A channel that never moves has no scale; its numbers must be equal.
        scale = np.array(request.std or after.std(axis=0))
        scale = np.maximum(scale, np.finfo(np.float32).tiny)
    with np.errstate(over="ignore"):
        parts = np.square((before - after) / scale)
        return float(np.sqrt(parts.mean())), float(np.abs(before - after).max())


def _frames_of(request: Request, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """``(T, H, W, 3)``: the clip's frames as its settings make them, and ``(T,)`` bool which of
    them could be had; the way of a job whose token is a whole frame."""
    height, width = request.clip.size
    num_frames = len(request.clip.frame_indices)
    clip = replace(
        request.clip,
        tubelet_size=1,
        patch_size=(height, width),
        grid_thw=(num_frames, 1, 1),
        num_kept=num_frames,
        drop=None,
        lattice=PIXELS,
    )
    settings = replace(
        request.settings,
        encoder=None,
        facts=None,
        pixel_tubelet=None,
        token_dtype="uint8",
        layout="p q c",
        merge=1,
        halo=0,
        tail="repeat",
        static_threshold=None,
    )
    ((tokens, made),) = tokens_of(replace(job, clips=(clip,), settings=settings))
    frames = np.full((num_frames, height, width, settings.channels), UNKNOWN, np.uint8)
    frames[made.rows] = tokens.reshape(-1, height, width, settings.channels)
    there = np.zeros(num_frames, bool)
    there[made.rows] = True
    return frames[..., :3], there
