"""The records that flow from stage to stage, and the closed list of loss reasons."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.framerules import PIXELS, Lattice, parse_rule

if TYPE_CHECKING:
    import av

LOSS_REASONS = (
    "unreadable",
    "no_video_stream",
    "forbidden_format",
    "forbidden_codec",
    "no_decoder",
    "encrypted",
    "too_large",
    "too_short",
    "corrupt_frames",
    "truncated",
    "fewer_frames_than_planned",
    "size_changed",
    "unsupported_colour",
    "unsupported_rotation",
    "nonfinite_latent",
    "over_pack_length",
    "skipped_by_policy",
    "tail_dropped",
    "encoder_trim",
    "source_changed",
    "resize_impossible",
    "metadata",
    "timeout",
    "crash",
    "out_of_memory",
    "io",
)
"""Why frames or sources are lost. Closed: a new reason is added here first."""

RETRYABLE_REASONS = frozenset({"timeout", "crash", "out_of_memory", "io"})
"""Reasons that lie in the environment: another run may do better (`--retry-lost`)."""

POLICY_REASONS = frozenset(
    {"skipped_by_policy", "too_short", "tail_dropped", "encoder_trim", "metadata"}
)
"""Reasons that the user's own settings asked for, or that cost no frame: counted, but no source is
lost by them."""

STAGES = ("list", "probe", "decode", "resize", "encode", "drop", "pack", "write")


@dataclass(frozen=True, slots=True)
class Source:
    """One input as listed, before it is opened."""

    uri: str
    """Where it is read from: an absolute local path. Never written to disk outputs."""
    name: str
    """Its path relative to its SOURCE argument (POSIX slashes): what every table shows."""
    source_root: int
    """Ordinal of the SOURCE argument that it came from."""
    source_id: str
    """32 hex digits, see `spacepatch.sources.make_source_id`."""
    num_bytes: int
    """Size of the file, or of the tar member."""
    member: str = ""
    """Its name in the tar at `uri`; empty for a plain file."""
    member_offset: int | None = None
    """Where the member's data starts in the tar at `uri`; None for a plain file."""
    ranges: tuple[ClipRange, ...] = ()
    """What a manifest asks for; a whole one with what a tar says of the video; empty for the whole
    video and nothing said of it."""
    split: str = ""
    """Name of the split (`train`), empty without `--split`."""
    metadata_lost: str = ""
    """What was to travel with its clips and does not, and why."""


@dataclass(frozen=True, slots=True)
class ClipRange:
    """A range of a source that a manifest names."""

    start_seconds: Fraction | None
    """On the stream's own clock, from its first frame; None: from the start."""
    stop_seconds: Fraction | None
    """Exclusive; None: to the end."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Every other column of the manifest; travels to the segment."""


@dataclass(frozen=True, slots=True)
class Part:
    """Frames of one size: a stream that changes its size has several parts."""

    first: int
    """Presentation index of its first frame."""
    first_pts: int
    """Its time, as probed."""
    coded_size: tuple[int, int]
    """(h, w) of the decoder's picture, before rotation and pixel aspect."""
    display_size: tuple[int, int]
    """(h, w) upright with square pixels: what a player shows. The basis of every size."""
    pixel_aspect_ratio: Fraction


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a probe learns of a source."""

    container: str
    codec: str
    stream_index: int
    parts: tuple[Part, ...]
    """Where the size changes, in order of time; one part where it never does."""
    rotation: int
    """Degrees clockwise that make it upright: 0, 90, 180 or 270."""
    pixel_format: str
    colour: dict[str, str]
    """matrix, range, primaries and transfer, and `tagged`: yes, or `assumed` where the file says
    nothing."""
    bit_depth: int
    hdr: str
    """"" | pq | hlg"""
    interlaced: str
    alpha: bool
    time_base: Fraction
    frame_pts: np.ndarray
    """(F,) int64, strictly increasing: the presentable frames, in units of `time_base`."""
    stop_pts: int
    """End of the last frame, exclusive."""
    num_packets: int
    num_before_key: int
    """Packets before the first keyframe, not decodable."""
    pts_repaired: str
    """"" when the stream's pts are used as they are, else what was wrong with them."""
    still: bool
    """A single picture without duration."""
    cut_off: bool = False
    """The file ends before its container says so."""
    missing_ticks: int = 0
    """What the container promises beyond `stop_pts`; 0 where a cut-off file does not say."""
    header_frames: int = 0
    """What the container's header claims; 0: nothing. Never relied on, only recorded."""
    header_seconds: float | None = None
    """The same of the length of the stream or, without that, of the file."""
    missing_frames: int = 0
    """The same in source frames, by the container's count or the stream's rate."""
    keyframes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """(K,) int64, increasing: presentation indices of the keyframes, by the flags of packets."""

    @property
    def coded_size(self) -> tuple[int, int]:
        """Of the first part."""
        return self.parts[0].coded_size

    @property
    def display_size(self) -> tuple[int, int]:
        """Of the first part."""
        return self.parts[0].display_size

    @property
    def pixel_aspect_ratio(self) -> Fraction:
        """Of the first part."""
        return self.parts[0].pixel_aspect_ratio

    def part_at(self, index: int) -> Part:
        """The part that a presentation index lies in."""
        return self.parts[bisect_right(self.parts, index, key=lambda part: part.first) - 1]


@dataclass(frozen=True, slots=True)
class Fit:
    """How a picture becomes a frame: scaled as a whole, then a window of that, or zeros added."""

    scaled: tuple[int, int]
    """(h, w) that the whole picture is scaled to."""
    size: tuple[int, int]
    """(h, w) of the frame; multiples of the patch."""
    offset: tuple[int, int] = (0, 0)
    """(top, left) of the frame in the scaled picture; (0, 0) where it is padded."""

    @property
    def crop(self) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) of what is kept of the scaled picture; None: all of it."""
        height, width = map(min, self.size, self.scaled)
        if (height, width) == self.scaled:
            return None
        return (*self.offset, height, width)

    @property
    def pad(self) -> tuple[int, int]:
        """Rows and columns of zeros at the bottom and right."""
        return max(0, self.size[0] - self.scaled[0]), max(0, self.size[1] - self.scaled[1])


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What a plan knows of an encoder; `LatentEncoder` says what each means."""

    name: str
    kind: str
    """`latents` or `codes`."""
    rule: str
    """As `FrameRule` writes it: ``1+4k``."""
    stride: tuple[int, int, int]
    multiple: tuple[int, int]
    channels: int
    codebook_size: int | None
    is_local: bool
    dtype: str
    constants: dict[str, Any]
    weights: dict[str, str]
    identity: dict[str, Any]
    """Whatever changes a latent: a part of the token fingerprint."""

    @property
    def lattice(self) -> Lattice:
        return Lattice(parse_rule(self.rule), self.stride[1:])

    def to_json(self) -> dict[str, Any]:
        """As it stands in plan.json and dataset.json."""
        return asdict(self) | {"stride": list(self.stride), "multiple": list(self.multiple)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EncoderFacts:
        """Of what `to_json` made; keys that a later version added are passed over."""
        known = {key: values[key] for key in cls.__dataclass_fields__}
        pairs = {key: tuple(values[key]) for key in ("stride", "multiple")}
        facts = cls(**(known | pairs))
        parse_rule(facts.rule)
        return facts


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """A clip as planned: which frames of which source, at which size; a row of plan.parquet."""

    source: int
    """Row of the source in the plan's sources."""
    clip: int
    """0-based within its source."""
    view: int
    view_of: int
    """The clip of view 0 that this one begins in: its own number where there is one view."""
    start_pts: int
    stop_pts: int
    """[start_pts, stop_pts) in units of the source's time base."""
    frame_pts: np.ndarray
    """(n,) int64, non-decreasing: the frame on display at each sample time."""
    frame_indices: np.ndarray
    """(n,) int32: absolute presentation index of each."""
    sample_pts: np.ndarray
    """(n,) int64: the sample times, rounded down to the time base: where the clip may be cut,
    exactly, whatever its own start was rounded to."""
    sampled_fps: Fraction | None
    """Samples a second; None where every frame is taken."""
    fit: Fit
    tubelet_size: int
    """In time, in cells of the lattice: frames, or latents."""
    patch_size: tuple[int, int]
    """(h, w) in cells of the lattice: pixels, or latents."""
    grid_thw: tuple[int, int, int]
    num_kept: int
    """Tokens that dropping leaves; of static tubelets an upper bound."""
    drop: str | None
    """What drops tokens, with what was drawn for it: ``random 0.4873``."""
    num_source_frames: int
    keyframes: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """(k, 2) int64: index and time of keyframes, increasing, of each frame the last one that is not
    after it among them: where to jump to. Empty: unknown."""
    extra: dict[str, Any] = field(default_factory=dict)
    lattice: Lattice = PIXELS

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of its frames, in pixels."""
        return self.fit.size

    @property
    def num_tokens(self) -> int:
        """Cells of its grid, dropped or not."""
        return self.grid_thw[0] * self.cells

    @property
    def cells(self) -> int:
        """Tokens of one grid row, before dropping."""
        return self.grid_thw[1] * self.grid_thw[2]

    @property
    def row_pts(self) -> np.ndarray:
        """(T,) int64: the time of the first sample of each grid row."""
        return np.asarray(self.sample_pts[self.row_starts[:-1]])

    @property
    def row_starts(self) -> np.ndarray:
        """(T + 1,) int64: the sample that each grid row begins with, and where they end: beyond the
        samples, where the tail is padded."""
        return self.lattice.row_starts(self.grid_thw[0], tubelet_size=self.tubelet_size)


@dataclass(slots=True)
class Picture:
    """What a decoder made: still in its own pixel format, not upright, with its true time.

    Decoders that give full-size upright RGB wrap it in a frame of rgb24 or rgba.
    """

    frame: av.VideoFrame
    pts: int
    index: int
    """Absolute presentation index in the stream."""
    rotation: int
    """Degrees clockwise that make it upright."""
    mirrored: bool
    """To be flipped left-right after the rotation."""
    is_corrupt: bool
    was_interlaced: bool = False
    """Flagged as made of two fields, whatever became of them."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that was asked for and is not in the shards; a row of losses.parquet."""

    source: str
    source_id: str
    clip: int | None
    """None: the whole source."""
    stage: str
    reason: str
    num_frames: int
    num_tokens: int
    message: str
    """Ours and stable: no path outside the source, no FFmpeg text, no time of day."""
    split: str = ""
    source_root: int = 0

    @property
    def retryable(self) -> bool:
        return self.reason in RETRYABLE_REASONS


@dataclass(frozen=True, slots=True)
class Task:
    """One shard: the unit of resume and of scale-out."""

    number: int
    """Position in the plan; the shard's number."""
    split: str
    task_id: str
    clips: tuple[ClipSpec, ...]
    """In plan order: this, not the order of arrival, is the order of everything written."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What a finished task says to the progress display."""

    number: int
    num_packs: int
    num_tokens: int
    num_segments: int
    losses: tuple[Loss, ...]
