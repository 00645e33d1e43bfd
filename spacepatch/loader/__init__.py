"""Packs as PyTorch tensors.

packs = PackDataset("shards/")
for batch in PackLoader(packs, batch_size=4): ...
"""

from spacepatch.loader.batches import collate
from spacepatch.loader.dataset import PackDataset
from spacepatch.loader.tensors import STACKED

__all__ = ["STACKED", "PackDataset", "collate"]
