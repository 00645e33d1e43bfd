"""What the packets of a stream say of its frames, and whether their times can be used."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Literal

from spacepatch.decode.opening import MAX_PACKETS
from spacepatch.decode.parts import Size, SizeWatch
from spacepatch.errors import ProbeError

if TYPE_CHECKING:
    from av.packet import Packet

Repair = Literal[
    "", "repeated", "unordered", "discontinuous", "missing", "too_fast", "crowded", "fields"
]
"""`VideoInfo.pts_repaired`: closed, and described in docs/decoding.md."""
COUNTED: frozenset[str] = frozenset(
    {"unordered", "discontinuous", "missing", "too_fast", "crowded", "fields"}
)
"""Those by which a picture does not have the time of its frame: it is found by its number."""
NO_PTS = -(2**63)
"""A packet without a time (FFmpeg's AV_NOPTS_VALUE)."""


def is_before_zero(packet: Packet[Any], container: str) -> bool:
    """Whether a packet behind the first keyframe refers to what was cut off before it: FFmpeg shows
    the times of a Matroska that are below 0 as none."""
    timeless = packet.pts is None and packet.dts is None and not packet.is_keyframe
    return timeless and container.startswith("matroska")


class Packets:
    """What the packets of a stream say, gathered in one pass: 17 bytes a packet."""

    def __init__(self, container: str, max_step: int | None) -> None:
        """`container`: FFmpeg's name of it. `max_step`: ticks from packet to packet beyond which a
        broadcast's clock was set; None: it is no broadcast."""
        self._container, self._max_step = container, max_step
        self.pts, self.durations, self.is_key = array("q"), array("q"), bytearray()
        self.changes: list[tuple[int, int, Size]] = []
        """(how many frames came before, the keyframe's pts, its size)."""
        self.breaks: list[int] = []
        """How many frames came before each jump of the clock."""
        self.num_packets = 0
        self.repaired: Repair = ""
        self.key_pts: int | None = None
        self.num_before_key = 0
        """Packets before the first keyframe."""
        self.second_key: int | None = None
        """How many frames came before the second keyframe."""
        self.last_is_cut = False
        """Whether the last packet is shorter than the container says."""
        self._seen_key = False
        self.first_dts: int | None = None
        self._last_dts: int | None = None
        self._max_pts = NO_PTS

    def add(self, packet: Packet[Any], watch: SizeWatch) -> None:
        self.num_packets += 1
        self.last_is_cut = packet.is_corrupt
        if self.num_packets > MAX_PACKETS:
            message = f"more than {MAX_PACKETS} packets; cut it into shorter files"
            raise ProbeError(message, reason="too_large")
        pts = NO_PTS if packet.pts is None else packet.pts
        if self._jumps(packet, pts):
            self.repaired = "discontinuous"
            self.breaks.append(len(self.pts))
        if packet.is_keyframe:
            if not self._seen_key:
                # What comes before the first keyframe cannot be decoded, whatever its times.
                self._seen_key, self.key_pts = True, packet.pts
                self.num_before_key = self.num_packets - 1
                del self.pts[:], self.durations[:], self.is_key[:], self.breaks[:]
                self.repaired, self._max_pts = "", pts
                self.first_dts = packet.dts
            elif self.second_key is None:
                self.second_key = len(self.pts)
            size = watch.changed_to(packet)
            if size is not None:
                self.changes.append((len(self.pts), pts, size))
        leading = self.key_pts is not None and self.second_key is None
        early = leading and is_before_zero(packet, self._container)
        if not (packet.is_discard or early):  # else outside the edit list: decoded, never shown
            self.pts.append(pts)
            self.durations.append(packet.duration or 0)
            self.is_key.append(packet.is_keyframe)

    def _jumps(self, packet: Packet[Any], pts: int) -> bool:
        """Whether the clock was set before this packet.

        Of a broadcast by the decoding times. Elsewhere these may be FFmpeg's own sums, which damage
        upsets; there a keyframe tells, that is shown before what came before it.
        """
        if self._max_step is None:
            jumps = packet.is_keyframe and pts != NO_PTS and pts < self._max_pts
            self._max_pts = pts if jumps else max(pts, self._max_pts)
            return jumps
        time = packet.dts
        if time is None:
            return False
        if pts != NO_PTS and abs(pts - time) > self._max_step:
            time = pts  # FFmpeg's sum again: a clock that was set is seen there a packet late
        last, self._last_dts = self._last_dts, time
        return last is not None and not 0 <= time - last <= self._max_step
