"""Packs turned back into pictures: contact sheets, and films at true times."""

from spacepatch.preview.previewing import preview
from spacepatch.preview.sheets import draw_segments

__all__ = ["draw_segments", "preview"]
