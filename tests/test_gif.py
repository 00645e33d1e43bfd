"""GIF, held against the canvases and times of Pillow."""

from pathlib import Path

import numpy as np
import pytest
from image_files import by_pillow, difference, pictures, probe, rgba, save, scene
from PIL import Image

GIFS = {
    "httpx__rich-progress.gif": 0,
    "lilliput__no-loop.gif": 0,
    "lilliput__no_gce_first_frame.gif": 1,
    "lilliput__party-discord.gif": 0,
    "lilliput__restore_previous.gif": 0,
    "moviepy__pigs_in_a_polka.gif": 0,
    "qt__flipable.gif": 0,
}
"""And how many of their frames claim no time at all."""


@pytest.mark.parametrize("name", GIFS)
def test_a_real_gif_has_the_canvases_and_times_of_pillow(corpus: Path, name: str) -> None:
    path = corpus / name
    info = probe(path)
    claimed = []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            claimed.append(image.info.get("duration", 0))
    assert claimed.count(0) == GIFS[name]
    shown = [time or 100 for time in claimed]
    times = [pts * info.time_base * 1000 for pts in (*info.frame_pts, info.stop_pts)]
    assert times == [0, *np.cumsum(shown)]
    found = pictures(path, info)
    assert max(map(difference, map(rgba, found), by_pillow(path)), default=1) == 0
    assert len(found) == len(shown)


def test_a_gif_frame_without_time_is_shown_for_100_ms(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.gif", [scene(k)[..., :3] for k in range(4)], duration=[20, 70, 30, 40]
    )
    content = path.read_bytes()
    control = b"\x21\xf9\x04"
    place = content.index(control, content.index(control) + 1) + 4
    assert content[place : place + 2] == b"\7\0"
    path.write_bytes(content[:place] + b"\0\0" + content[place + 2 :])
    info = probe(path)
    times = [pts * info.time_base * 1000 for pts in (*info.frame_pts, info.stop_pts)]
    assert times == [0, 20, 120, 150, 190]
