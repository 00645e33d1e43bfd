"""How many sources are lost whole, held against --max-losses while a run goes on."""

from __future__ import annotations

from collections.abc import Sequence

from spacepatch.data import POLICY_REASONS, Loss
from spacepatch.errors import LossLimitError
from spacepatch.pipeline.plan import AnyTask
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.planrows import read_loss
from spacepatch.wording import counted


class LossCount:
    """Counts the sources that are lost whole, over all starts of a run, against `max_losses`."""

    def __init__(self, plan: StoredPlan, limit: int | None) -> None:
        """limit: None where nothing needs to be counted."""
        self._plan, self._limit = plan, limit
        self._left: dict[str, int] = {}
        """By source, of those that have lost any, the frames that may still come."""
        self._lost: set[str] = set()
        if limit is not None and plan.is_whole:
            for row in plan.loss_rows():
                self._left[row["source_id"]] = row["num_selected"]
                self._add(read_loss(row))
            self._check()

    def add(self, task: AnyTask, losses: Sequence[Loss]) -> None:
        """Take the losses of a task into account.

        Raises:
            LossLimitError: they are more than `max_losses` allows.
        """
        if self._limit is None or not losses:
            return
        for planned in self._plan.part(task).sources:
            self._left.setdefault(planned.source.source_id, planned.num_selected)
        for loss in losses:
            self._add(loss)
        self._check()

    def _add(self, loss: Loss) -> None:
        is_of_clip = loss.stage in ("decode", "encode")
        self._left[loss.source_id] -= loss.num_frames if is_of_clip else 0
        if self._left[loss.source_id] <= 0 and loss.reason not in POLICY_REASONS:
            self._lost.add(loss.source_id)

    def _check(self) -> None:
        if self._limit is not None and len(self._lost) > self._limit:
            raise LossLimitError(
                f"{counted(len(self._lost), 'source')} lost, max_losses allows {self._limit}; what "
                "is done is kept: raise --max-losses and start again, or see spacepatch inspect"
            )
