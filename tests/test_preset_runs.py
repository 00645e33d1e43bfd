"""Every preset that needs no encoder, run on real files: as planned, and verified."""

from collections import Counter
from pathlib import Path

import pytest
from agreeing import packets_agree
from small_runs import rows

from spacepatch.config import load_config
from spacepatch.inspection import verify
from spacepatch.pipeline import tokenize
from spacepatch.presets import describe_preset, preset_names

PRESETS = [name for name in preset_names() if "needs_encoder" not in describe_preset(name)]
LARGEST_BYTES = 50_000
"""Of a file: most of the corpus is small."""
DAMAGED = "mediabunny__annex-b.mp4"
"""Cut off, and FFmpeg flags frames of it that not every sampling takes."""


@pytest.fixture(scope="module")
def sound_files(corpus: Path) -> list[Path]:
    """Files of the corpus whose packets and decoded frames agree."""
    small = (path for path in sorted(corpus.iterdir()) if path.stat().st_size <= LARGEST_BYTES)
    found = [path for path in small if path.suffix != ".mp3" and path.name != DAMAGED]
    found = [path for path in found if packets_agree(path)]
    assert len(found) >= 40
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_writes_what_was_planned_and_verifies_clean(
    sound_files: list[Path], tmp_path: Path, name: str
) -> None:
    config = load_config({"workers": 2}, preset=name)
    tokenize([str(path) for path in sound_files], out=tmp_path / "out", config=config)
    assert verify(tmp_path / "out") == []
    planned: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for row in rows(tmp_path / "out", "plan.parquet"):
        planned[row["source"]] += row["num_kept"] or 0
    for row in rows(tmp_path / "out", "segments.parquet"):
        written[row["source"]] += row["num_kept"]
    assert rows(tmp_path / "out", "losses.parquet") == []
    assert planned.keys() == written.keys() == {path.name for path in sound_files}
    if name == "rlt":
        # An upper bound: what does not change is known when it is seen.
        assert all(0 < written[source] <= planned[source] for source in planned)
        assert sum(written.values()) < sum(planned.values()) / 2
    else:
        assert written == planned
