"""Videos made by hand, as a probe tells of them, and the clips that are chosen of them."""

from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from spacepatch.clips import ClipLoss, choose_clips
from spacepatch.data import ClipSpec, Fit, Part, VideoInfo
from spacepatch.sampling import OF_EACH_CLIP
from spacepatch.views import View

MILLISECOND = Fraction(1, 1000)
NTSC = Fraction(1001, 30_000)
SIZE = (32, 48)
CELLS = 6  # tokens a grid row of SIZE in patches of 16 x 16
SHAPE = {"sizes": (SIZE,), "patch_size": (16, 16)}


def plain_view(
    value: Fraction | int, *, tubelet_size: int = 2, patch_size: tuple[int, int] = (16, 16)
) -> View:
    """A view with nothing random in it."""
    return View(
        number=0,
        value=Fraction(value),
        shift=Fraction(0),
        tubelet_size=tubelet_size,
        patch_size=patch_size,
        size_value=None,
        share=Fraction(1),
        place=(0.0, 0.0),
        drop=None,
    )


def info(
    pts: list[int], stop: int, *, time_base: Fraction = MILLISECOND, still: bool = False
) -> VideoInfo:
    return VideoInfo(
        container="mov",
        codec="h264",
        stream_index=0,
        parts=(Part(0, pts[0], (360, 640), (360, 640), Fraction(1)),),
        rotation=0,
        pixel_format="yuv420p",
        colour={},
        bit_depth=8,
        hdr="",
        interlaced="progressive",
        alpha=False,
        time_base=time_base,
        frame_pts=np.array(pts, np.int64),
        stop_pts=stop,
        num_packets=len(pts),
        num_before_key=0,
        pts_repaired="",
        still=still,
    )


def regular(seconds: int, rate: int = 25, start: int = 0) -> VideoInfo:
    step = 1000 // rate
    return info([start + k * step for k in range(seconds * rate)], start + seconds * 1000)


def chosen(video: VideoInfo, **changes: Any) -> tuple[list[ClipSpec], list[ClipLoss]]:
    values: dict[str, Any] = {
        "source": 7,
        "ranges": (),
        "sampler": "fps",
        "sampler_value": Fraction(8),
        "tubelet_size": 2,
        "tail": "repeat",
        "pack_length": 10**6,
        **SHAPE,
    } | changes
    view = plain_view(
        values.pop("sampler_value"),
        tubelet_size=values.pop("tubelet_size"),
        patch_size=values.pop("patch_size"),
    )
    sizes = dict(zip((part.display_size for part in video.parts), values.pop("sizes"), strict=True))
    values.setdefault("views", lambda window: (view,))
    return choose_clips(
        video,
        one_grid=values["sampler"] not in OF_EACH_CLIP,
        fit=lambda size, view, num_frames: Fit(sizes[size], sizes[size]),
        **values,
    )


def clips_of(video: VideoInfo, **changes: Any) -> list[ClipSpec]:
    clips, losses = chosen(video, **changes)
    assert losses == []
    return clips


def indices(clips: list[ClipSpec]) -> list[int]:
    return [int(index) for clip in clips for index in clip.frame_indices]


@st.composite
def videos(draw) -> VideoInfo:
    steps = draw(st.lists(st.integers(1, 300), min_size=1, max_size=60))
    pts = [draw(st.integers(-3000, 10**6))]
    for step in steps:
        pts.append(pts[-1] + step)
    # At least as many ticks as samples: no cut falls between two samples of one tick.
    stop = max(pts[-1], pts[0] + 20)
    return info(pts[:-1], stop, time_base=draw(st.sampled_from([MILLISECOND, NTSC])))


SAMPLERS = st.sampled_from(
    [
        ("fps", Fraction(8)),
        ("fps", Fraction(30_000, 1001)),
        ("fps", Fraction(1, 2)),
        ("num-frames", Fraction(17)),
        ("every-frame", Fraction(0)),
    ]
)
