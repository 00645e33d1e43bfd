"""Choose a size at native aspect ratio; make frames from pictures."""

from spacepatch.resize.colour import UNTAGGED, Colour, colour_of, hdr_of
from spacepatch.resize.fits import FITS, fit_frame, place_frame
from spacepatch.resize.frames import HDR_RULES, RESAMPLERS, make_frame
from spacepatch.resize.sizes import (
    SIZE_POLICIES,
    Pair,
    aspect_error,
    fit_native,
    fit_pixels,
    fit_resolution,
    fit_side,
    fit_size,
    fit_tokens_per_frame,
    smart_resize_video,
)

__all__ = [
    "FITS",
    "HDR_RULES",
    "RESAMPLERS",
    "SIZE_POLICIES",
    "UNTAGGED",
    "Colour",
    "Pair",
    "aspect_error",
    "colour_of",
    "fit_frame",
    "fit_native",
    "fit_pixels",
    "fit_resolution",
    "fit_side",
    "fit_size",
    "fit_tokens_per_frame",
    "hdr_of",
    "make_frame",
    "place_frame",
    "smart_resize_video",
]
