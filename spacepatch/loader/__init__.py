"""Packs as PyTorch tensors.

packs = PackDataset("shards/")
for batch in PackLoader(packs, batch_size=4): ...
"""

from spacepatch.loader.batches import collate
from spacepatch.loader.dataset import PackDataset
from spacepatch.loader.loading import PackLoader
from spacepatch.loader.mixing import PackMix
from spacepatch.loader.stream import PackStream
from spacepatch.loader.tensors import STACKED
from spacepatch.loader.variation import Variation
from spacepatch.loader.visible_packs import visible_packs

__all__ = [
    "STACKED",
    "PackDataset",
    "PackLoader",
    "PackMix",
    "PackStream",
    "Variation",
    "collate",
    "visible_packs",
]
