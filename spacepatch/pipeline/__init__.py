"""Plan, run tasks, finish: the only place that knows the order of the stages."""

from spacepatch.pipeline.converting import convert
from spacepatch.pipeline.finishing import RunSummary, finish_run, forget_retryable
from spacepatch.pipeline.in_memory import FrameTokens, tokenize_frames
from spacepatch.pipeline.joining import join_ranks
from spacepatch.pipeline.plan import Plan, PlannedSource
from spacepatch.pipeline.planfile import read_plan, read_plan_document
from spacepatch.pipeline.planning import plan_run
from spacepatch.pipeline.planwriting import write_plan
from spacepatch.pipeline.repacking import repack
from spacepatch.pipeline.restoring import Restoring
from spacepatch.pipeline.resuming import check_inputs, check_plan
from spacepatch.pipeline.running import JobReport, is_done, pending_tasks, run_task, run_tasks
from spacepatch.pipeline.whole import (
    RankSummary,
    Watch,
    list_inputs,
    make_plan,
    make_pool,
    tokenize,
    tokenize_rank,
)

__all__ = [
    "FrameTokens",
    "JobReport",
    "Plan",
    "PlannedSource",
    "RankSummary",
    "Restoring",
    "RunSummary",
    "Watch",
    "check_inputs",
    "check_plan",
    "convert",
    "finish_run",
    "forget_retryable",
    "is_done",
    "join_ranks",
    "list_inputs",
    "make_plan",
    "make_pool",
    "pending_tasks",
    "plan_run",
    "read_plan",
    "read_plan_document",
    "repack",
    "run_task",
    "run_tasks",
    "tokenize",
    "tokenize_frames",
    "tokenize_rank",
    "write_plan",
]
