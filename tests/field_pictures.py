"""H.264 in which each picture is coded as two fields, written bit by bit: no encoder makes it."""

from __future__ import annotations

MACROBLOCKS = 2
"""Of a field of 32 x 16 pixels; a frame is 32 x 32."""
DELIMITER = b"\0\0\0\1\x09\x10"


class _Bits:
    """A payload of H.264 (ITU-T H.264 7.3, 9.1)."""

    def __init__(self) -> None:
        self._text = ""

    def fixed(self, width: int, *values: int) -> _Bits:
        self._text += "".join(format(value, f"0{width}b") for value in values)
        return self

    def golomb(self, *values: int) -> _Bits:
        for value in values:
            code = format(value + 1, "b")
            self._text += "0" * (len(code) - 1) + code
        return self

    def align(self) -> _Bits:
        self._text += "0" * (-len(self._text) % 8)
        return self

    def end(self) -> bytes:
        self._text += "1"
        self.align()
        return int(self._text, 2).to_bytes(len(self._text) // 8, "big")


def _unit(header: int, payload: bytes) -> bytes:
    """A NAL unit, with the bytes that keep start codes out of it."""
    escaped, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\0\0\0\1" + bytes([header]) + bytes(escaped)


def _headers() -> bytes:
    # Main profile, level 3, 4 bits of frame_num, pictures in output order, frame_mbs_only_flag 0.
    sequence = _Bits().fixed(8, 77, 0, 30).golomb(0, 0, 2, 1).fixed(1, 0)
    sequence.golomb(MACROBLOCKS - 1, 0).fixed(1, 0, 0, 1, 0, 0)
    picture = _Bits().golomb(0, 0).fixed(1, 0, 0).golomb(0, 0, 0).fixed(1, 0).fixed(2, 0)
    picture.golomb(0, 0, 0).fixed(1, 1, 0, 0)
    return _unit(0x67, sequence.end()) + _unit(0x68, picture.end())


def _field(number: int, *, bottom: bool, first: bool, grey: int) -> bytes:
    slice_ = _Bits().golomb(0, 7, 0).fixed(4, number % 16).fixed(1, 1, int(bottom))
    if first:
        slice_.golomb(0).fixed(1, 0, 0)
    else:
        slice_.fixed(1, 0)
    slice_.golomb(0, 1)
    for _ in range(MACROBLOCKS):
        slice_.golomb(25).align().fixed(8, *[grey] * 256, *[128] * 128)  # I_PCM
    return DELIMITER + _unit(0x65 if first else 0x61, slice_.end())


def make_fields(num_frames: int) -> list[tuple[bytes, bytes]]:
    """(top field, bottom field) of each frame; the lines of frame k are 20 + k % 200."""
    frames = []
    for k in range(num_frames):
        first = k % 12 == 0
        top = _field(k % 12, bottom=False, first=first, grey=20 + k % 200)
        if first:
            top = DELIMITER + _headers() + top[len(DELIMITER) :]
        frames.append((top, _field(k % 12, bottom=True, first=False, grey=20 + k % 200)))
    return frames
