"""Coordinates and position embeddings for models, from what the loader yields.

Pure functions on the tensors of one pack: `positions` (N, 3) t, h, w, `segment_ids` (N,),
`grid_thw` (S, 3), `seconds` (N,). A pack of several segments, dropped tokens and padding
(segment id 0, position 0, 0, 0) are all welcome. Padding gets finite values that mean nothing.
"""

from spacepatch.positions.coordinates import (
    SIDES,
    fractional_coordinates,
    frame_index,
    raster_index,
    slice_cu_seqlens,
    vision_positions,
)
from spacepatch.positions.mrope import MROPE_MODELS, mrope_angles, mrope_ids
from spacepatch.positions.rope import PAIRS, apply_rope, rope_angles
from spacepatch.positions.sinusoids import SINUSOIDS, sinusoidal
from spacepatch.positions.tables import (
    ClassSlots,
    factorized_embedding,
    insert_class_tokens,
    packed_table,
    resize_table,
)

__all__ = [
    "MROPE_MODELS",
    "PAIRS",
    "SIDES",
    "SINUSOIDS",
    "ClassSlots",
    "apply_rope",
    "factorized_embedding",
    "fractional_coordinates",
    "frame_index",
    "insert_class_tokens",
    "mrope_angles",
    "mrope_ids",
    "packed_table",
    "raster_index",
    "resize_table",
    "rope_angles",
    "sinusoidal",
    "slice_cu_seqlens",
    "vision_positions",
]
