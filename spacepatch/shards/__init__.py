"""The on-disk format: write it, read it, its version. Nothing else knows a member's name."""

from spacepatch.shards.reading import (
    PackMembers,
    PackReferences,
    SequentialShardReader,
    ShardReader,
)
from spacepatch.shards.receipts import ShardReceipt, read_receipt, receipt_path
from spacepatch.shards.tables import (
    DATASET,
    LOSSES,
    PLAN,
    SEGMENTS,
    SOURCES,
    TABLES,
    read_table,
    write_table,
)
from spacepatch.shards.version import FORMAT_VERSION, check_version
from spacepatch.shards.writing import SHARD_ENDINGS, Layout, SegmentContent, shard_stem, write_shard

__all__ = [
    "DATASET",
    "FORMAT_VERSION",
    "LOSSES",
    "PLAN",
    "SEGMENTS",
    "SHARD_ENDINGS",
    "SOURCES",
    "TABLES",
    "Layout",
    "PackMembers",
    "PackReferences",
    "SegmentContent",
    "SequentialShardReader",
    "ShardReader",
    "ShardReceipt",
    "check_version",
    "read_receipt",
    "read_table",
    "receipt_path",
    "shard_stem",
    "write_shard",
    "write_table",
]
