"""Pictures made by hand, for the tests of frames."""

import av
import numpy as np

from spacepatch.data import Picture


def make_picture(frame, *, rotation=0, mirrored=False):
    return Picture(
        frame=frame, pts=0, index=0, rotation=rotation, mirrored=mirrored, is_corrupt=False
    )


def make_planes(name, planes, *, size, matrix=2, range_tag=0, transfer=2, primaries=2):
    """An av.VideoFrame of integer planes, each broadcast to its plane's own size."""
    frame = av.VideoFrame(size[1], size[0], name)
    frame.colorspace, frame.color_range = matrix, range_tag
    frame.color_trc, frame.color_primaries = transfer, primaries
    for plane, values in zip(frame.planes, planes, strict=True):
        dtype = np.dtype("uint16" if frame.format.components[0].bits > 8 else "uint8")
        rows = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)
        rows[:, : plane.width] = values
    return frame


def corners(size):
    """RGB with one colour a quarter: red, green / blue, white."""
    h, w = size
    array = np.zeros((h, w, 3), np.uint8)
    array[: h // 2, : w // 2, 0] = 255
    array[: h // 2, w // 2 :, 1] = 255
    array[h // 2 :, : w // 2, 2] = 255
    array[h // 2 :, w // 2 :] = 255
    return array
