"""Windows far into an interlaced file: the picture before them is decoded, too."""

from pathlib import Path

import numpy as np
import pytest
from decoding import pictures
from interlaced_clips import MPEG2, X264, run

from spacepatch.decode import probe_video


@pytest.mark.parametrize("name", ["long.ts", "long.mp4", "long.mkv"])
def test_a_window_far_into_a_file_is_that_of_a_full_decode(
    tmp_path: Path, ffmpeg: str, name: str
) -> None:
    path = tmp_path / name
    source = ["-f", "lavfi", "-i", "testsrc2=s=96x64:r=50:d=28,tinterlace=interleave_top"]
    codec = [*X264, "-bf", "3"] if name.endswith("mkv") else [*MPEG2]
    run(ffmpeg, "-v", "error", *source, *codec, "-g", "10", "-top", "1", path)
    info = probe_video(str(path))
    full = {picture.index: picture for picture in pictures(path, info)}
    assert len(full) == 700
    # From every place in a group: also a keyframe, of which the picture before is in another one.
    for start in range(640, 652):
        window = pictures(path, info, range(start, start + 4))
        assert [(p.index, p.pts) for p in window] == [
            (k, full[k].pts) for k in range(start, start + 4)
        ]
        for picture in window:
            assert not picture.frame.interlaced_frame
            np.testing.assert_array_equal(
                picture.frame.to_ndarray(), full[picture.index].frame.to_ndarray()
            )
