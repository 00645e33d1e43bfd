"""Describe, compare and prove datasets. Reads only; a shard alone will do for most of it."""

from spacepatch.inspection.differences import compare
from spacepatch.inspection.findings import Problem
from spacepatch.inspection.summary import summarize
from spacepatch.inspection.verification import verify

__all__ = ["Problem", "compare", "summarize", "verify"]
