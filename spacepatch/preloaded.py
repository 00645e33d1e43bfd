"""What workers have from their first moment: imported once, by the process they are forked from."""

import gc

gc.disable()

import av  # noqa: E402, F401
import pebble.pool.process  # noqa: E402, F401

import spacepatch.jobs  # noqa: E402
import spacepatch.probes  # noqa: E402, F401

# What is imported stays: collections need not look at it, and so leave its memory shared.
gc.freeze()
gc.enable()
