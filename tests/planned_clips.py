"""The clips of a plan, of which nothing is decoded."""

from pathlib import Path
from typing import Any

from spacepatch.config import load_config
from spacepatch.data import ClipSpec
from spacepatch.pipeline import make_plan


def planned(*sources: Path, **settings: Any) -> list[ClipSpec]:
    """In order of source, clip and view."""
    config = load_config({"workers": 2, "pack_length": 2**20, **settings})
    plan = make_plan([str(source) for source in sources], config=config).whole()
    clips = [clip for task in plan.tasks for clip in task.clips]
    roots = [planned.source.source_root for planned in plan.sources]
    return sorted(clips, key=lambda clip: (roots[clip.source], clip.clip, clip.view))
