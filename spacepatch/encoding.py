"""An encoder at work: what it is, loaded once a process, one clip after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any, TypeVar

import numpy as np

from spacepatch.data import EncoderFacts
from spacepatch.errors import EncodeError, SourceError
from spacepatch.latents.encoders import EncoderSettings, LatentEncoder, load_asked
from spacepatch.stages import stage
from spacepatch.workers import beat

T = TypeVar("T")

BEAT_SECONDS = 1.0
MOST_SECONDS = 3600
"""For one clip, after which a model is taken to hang."""
CLIPS_WAITING = 2
"""Clips that lie decoded before an accelerator: it never waits, and memory stays bounded."""


_loaded: tuple[EncoderSettings, LatentEncoder] | None = None
"""The encoder of this process: a worker encodes many clips, of one dataset."""


def encoder_of(settings: EncoderSettings) -> LatentEncoder:
    """The encoder, loaded when it is first asked for.

    Raises:
        SourceError: it finds no memory (reason `out_of_memory`). Others as of `load_encoder`.
    """
    global _loaded
    if _loaded is None or _loaded[0] != settings:
        _loaded = None  # the one before is let go of first
        try:
            with beating():
                _loaded = settings, load_asked(settings)
        except RuntimeError as error:
            from spacepatch.latents.exactness import is_of_memory

            if not is_of_memory(error):
                raise
    if _loaded is None:
        # Not in the clause above, where the error would keep what was loaded.
        raise SourceError(
            f"--device {settings.device}: no memory is left there for another copy of the encoder: "
            "give fewer --workers, or raise --worker-memory",
            reason="out_of_memory",
        )
    return _loaded[1]


def facts_of(settings: EncoderSettings) -> EncoderFacts:
    """What a plan needs to know of an encoder; errors as of `load_encoder`."""
    encoder = encoder_of(settings)
    return EncoderFacts(
        name=encoder.name,
        kind=encoder.kind,
        rule=str(encoder.rule),
        stride=encoder.stride,
        multiple=encoder.multiple,
        channels=encoder.channels,
        codebook_size=encoder.codebook_size,
        is_local=encoder.is_local,
        dtype=encoder.dtype,
        constants=dict(encoder.constants),
        weights=dict(encoder.weights),
        identity={**encoder.identity(), "posterior": settings.posterior},
    )


class ClipEncoder:
    """Encodes clips in the order that they come in: on the CPU at once, on an accelerator in a
    thread, so that it is fed while the next clip is being decoded."""

    def __init__(self, settings: EncoderSettings, facts: EncoderFacts) -> None:
        """Raises an `EncodeError` where the encoder is not the one that was planned with."""
        self.facts = facts
        self._encoder = encoder_of(settings)
        found = facts_of(settings)
        if found.identity != facts.identity:
            raise EncodeError(
                f"{facts.name}: is not the encoder that the plan was made with: its weights or how "
                "it computes have changed; restore it, or start again with --overwrite"
            )
        self._thread = None
        if settings.device != "cpu":
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="spacepatch-encoder")
        self._waiting: deque[Future[Any]] = deque()

    def start(
        self, frames: np.ndarray, store: Callable[[np.ndarray], T], *, seed: tuple[object, ...]
    ) -> Future[T]:
        """Begin to encode ``(T, H, W, 3)``; the result is `store` of what the encoder makes."""

        def run() -> T:
            with stage("encode"):
                return store(self._encoder.encode(frames, seed=seed))

        if self._thread is None:
            made: Future[T] = Future()
            try:
                with beating():
                    made.set_result(run())
            except Exception as error:
                made.set_exception(error)
            return made
        while len(self._waiting) >= CLIPS_WAITING:
            with beating(), stage("wait"):
                self._waiting.popleft().exception()
        begun = self._thread.submit(run)
        self._waiting.append(begun)
        return begun

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


@contextmanager
def beating() -> Iterator[None]:
    """Signs of life of a job while a model computes, which takes more than a frame's time."""
    done = Event()

    def go_on() -> None:
        for _ in range(int(MOST_SECONDS / BEAT_SECONDS)):
            if done.wait(BEAT_SECONDS):
                return
            beat()

    thread = Thread(target=go_on, daemon=True)
    # Where there is no memory for it, the model may still find what it needs.
    has_begun = False
    with suppress(RuntimeError):
        thread.start()
        has_begun = True
    try:
        yield
    finally:
        done.set()
        if has_begun:
            thread.join()
