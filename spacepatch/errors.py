"""Every error that a user can cause, in one tree."""

from typing import Any


class SpacepatchError(Exception):
    """The world is not as asked: one line for the user, never a traceback."""


class ConfigError(SpacepatchError):
    """A setting is unknown, impossible, or contradicts another one."""


class SourceError(SpacepatchError):
    """One source (or one clip of it) cannot be used; becomes a `Loss` and the run goes on.

    Attributes:
        reason: one of `spacepatch.data.LOSS_REASONS`.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive the pipe from a worker by themselves.
        return (_rebuild, (type(self), str(self), self.reason))


def _rebuild(kind: type[SourceError], message: str, reason: str) -> SourceError:
    return kind(message, reason=reason)


class ProbeError(SourceError):
    """A source that cannot be opened or has nothing to decode."""


class DecodeError(SourceError):
    """A source that opened, and whose pictures cannot be had."""


class SegmentError(SpacepatchError):
    """A segment whose tokens cannot be made as it is loaded: its source is not there, is another
    one, or gives other tokens than it was to give.

    Attributes (empty where a DataLoader brings it from a worker, as it passes on no more than the
    message): source, its name; segment_id; reason, `missing`, `fewer_tokens`, `other_tokens` or one
    of `spacepatch.data.LOSS_REASONS`.
    """

    def __init__(
        self, message: str, *, source: str = "", segment_id: str = "", reason: str = ""
    ) -> None:
        super().__init__(message)
        self.source, self.segment_id, self.reason = source, segment_id, reason

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_segment, (str(self), self.source, self.segment_id, self.reason))


def _rebuild_segment(message: str, source: str, segment_id: str, reason: str) -> SegmentError:
    return SegmentError(message, source=source, segment_id=segment_id, reason=reason)


class EncodeError(SpacepatchError):
    """Weights that cannot be used, or frames and latents that an encoder does not take."""


class Declined(SpacepatchError):
    """A decoder that must not or cannot read a source, and says so before its first picture."""


class ShardError(SpacepatchError):
    """A shard, receipt or table that is missing, torn or of another format."""


class UnfinishedError(ShardError):
    """A run of which tasks are still to be done.

    Attributes:
        missing: of each, `shard` (its name), `task` (its number) and `rank` (None: not known).
    """

    def __init__(self, message: str, *, missing: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.missing = missing


class StoreError(SpacepatchError, OSError):
    """An object store that is not there, denies what is asked of it, or does not answer."""


class ResumeError(SpacepatchError):
    """An output folder that belongs to another run: other settings, other inputs, another owner."""


class MissingDependencyError(SpacepatchError):
    """A setting asks for a package that is not installed; the message says how to install it."""


class WorkerError(SpacepatchError):
    """Worker processes cannot be started, here or on a cluster, or go on being lost."""


class LossLimitError(SpacepatchError):
    """More sources are lost than `max_losses` allows; what is done stays, and the run resumes."""
