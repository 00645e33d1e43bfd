"""Choose a size at native aspect ratio; make frames from pictures."""

from spacepatch.resize.colour import UNTAGGED, Colour, colour_of, hdr_of
from spacepatch.resize.frames import HDR_RULES, RESAMPLERS, make_frame
from spacepatch.resize.sizes import (
    SIZE_POLICIES,
    Pair,
    aspect_error,
    fit_native,
    fit_pixels,
    fit_side,
    fit_size,
    fit_tokens_per_frame,
    smart_resize_video,
)

__all__ = [
    "HDR_RULES",
    "RESAMPLERS",
    "SIZE_POLICIES",
    "UNTAGGED",
    "Colour",
    "Pair",
    "aspect_error",
    "colour_of",
    "fit_native",
    "fit_pixels",
    "fit_side",
    "fit_size",
    "fit_tokens_per_frame",
    "hdr_of",
    "make_frame",
    "smart_resize_video",
]
