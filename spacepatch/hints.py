"""What to do next, where nothing could be done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spacepatch.listings import Listing
from spacepatch.remote import shown
from spacepatch.shards import DATASET
from spacepatch.wording import counted

LOOK = "spacepatch probe FILE says what a file is, spacepatch doctor what can be decoded here"
"""Where every source is lost."""

IN_FOLDERS = ("*.tar", "*.csv", "*.jsonl", "*.parquet")
"""What holds videos, and is not looked into where it lies in a folder."""


def ignored_files(listing: Listing) -> str:
    """One line that names some of the files that are passed over; empty where there are none."""
    if not listing.num_ignored:
        return ""
    rest = listing.num_ignored - len(listing.ignored)
    names = [*listing.ignored, *([f"{rest:,} more"] if rest else [])]
    count = counted(listing.num_ignored, "file")
    return f"{count} ignored, hidden or no media by name: {', '.join(names)}"


def no_videos(arguments: Sequence[str], *, num_ignored: int) -> str:
    """One line for SOURCE arguments in which there is no video.

    Args:
        num_ignored: files that are no media.
    """
    for argument in arguments:
        if any((Path(argument) / name).is_file() for name in (DATASET, "plan.json")):
            return (
                f"{shown(argument)}: is an output folder of spacepatch and holds no videos: give "
                f"the folder of the videos, or look at it with spacepatch inspect"
            )
    ignored = f" ({counted(num_ignored, 'file')} ignored, no media)" if num_ignored else ""
    line = f"no videos in {', '.join(map(shown, arguments))}{ignored}"
    for argument in arguments:
        for pattern in IN_FOLDERS:
            if any(Path(argument).glob(pattern)):
                name = (Path(argument) / pattern).as_posix()
                return f"{line}; name its {pattern[2:]} files to read what they hold: '{name}'"
    return f"{line}; give videos, folders of them, '*.mp4', @list.txt, a manifest or tars"
