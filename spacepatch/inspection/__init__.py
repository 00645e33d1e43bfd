"""Describe a dataset and prove that it is whole. Reads only; a shard alone will do."""

from spacepatch.inspection.findings import Problem
from spacepatch.inspection.summary import summarize
from spacepatch.inspection.verification import verify

__all__ = ["Problem", "summarize", "verify"]
