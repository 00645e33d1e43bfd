"""What the recipes share: their arguments, the loop, and what it measures."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from batches import Batch, batches_of, count_tokens, shuffled
from torch import nn

from spacepatch.loader import PackDataset

Loss = Callable[[Batch], torch.Tensor]


def arguments(recipe: str | None, *, steps: int, lr: float = 1e-3) -> argparse.ArgumentParser:
    """The arguments of every recipe, described by the first line of its docstring."""
    parser = argparse.ArgumentParser(description=(recipe or "").partition("\n")[0])
    parser.add_argument("shards", type=Path, help="folder that spacepatch tokenize wrote")
    parser.add_argument(
        "--source-root",
        action="append",
        metavar="[N=]PLACE",
        help="with shards of --store refs: where the sources lie, of the N-th SOURCE or of all",
    )
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-size", type=int, default=4, help="packs a step")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-batches", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and seed torch: make the model after this."""
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    return args


def packs_of(args: argparse.Namespace) -> PackDataset:
    """The packs of the shards, stored or decoded as they are loaded."""
    return PackDataset(args.shards, seed=args.seed, source_root=args.source_root)


def train(
    args: argparse.Namespace,
    packs: PackDataset,
    model: nn.Module,
    loss_of: Loss,
    *,
    batches: Iterable[Batch] | None = None,
    held: Iterable[Batch] | None = None,
    update: Callable[[Batch], None] | None = None,
    count: Callable[[Batch], tuple[int, int]] = count_tokens,
    spoil: Callable[[Batch], Batch] = shuffled,
    **details: Any,
) -> dict[str, Any]:
    """Train for `args.steps`, measure, print.

    The loss before and after is over the same batches with the same draws of torch.

    Args:
        loss_of: the loss of a batch, ().
        batches: an epoch a loop; default: `batches_of`, shuffled.
        held: what the loss is measured on; default: the first packs in stored order.
        update: one step of training, where it is more than a step down `loss_of`.
        count: tokens of a batch, without padding and with it.
        spoil: a batch whose tokens do not fit, of which nothing can be learned.
        details: what else the record shall say.

    Returns:
        The record that is printed: loss_before, loss_after, loss_spoiled (after, where the tokens
        do not fit), the tokens a second that the loader gave and that the step took, both without
        padding, and the share of padding.
    """
    batches = batches_of(args, packs, shuffle=True) if batches is None else batches
    held = batches_of(args, packs, shuffle=False) if held is None else held
    held = list(itertools.islice(held, args.eval_batches))
    update = _descent(args, model, loss_of) if update is None else update
    before = _mean_loss(model, loss_of, held, args.seed)

    model.train()
    loading = stepping = 0.0
    tokens = slots = 0
    stream = _endless(batches)
    for _ in range(args.steps):
        start = time.process_time()
        batch = next(stream)
        loaded = time.process_time()
        update(batch)
        loading, stepping = loading + loaded - start, stepping + time.process_time() - loaded
        real, filled = count(batch)
        tokens, slots = tokens + real, slots + filled

    after = _mean_loss(model, loss_of, held, args.seed)
    torch.manual_seed(args.seed)
    spoiled = _mean_loss(model, loss_of, [spoil(batch) for batch in held], args.seed)
    record = details | {
        "steps": args.steps,
        "loss_before": round(before, 4),
        "loss_after": round(after, 4),
        "loss_spoiled": round(spoiled, 4),
        "loader_tokens_per_second": round(tokens / loading),
        "step_tokens_per_second": round(tokens / stepping),
        "padding": round(1 - tokens / slots, 4),
    }
    lines = [f"{name:<26}{value}" for name, value in record.items()]
    print(json.dumps(record) if args.json else "\n".join(lines))
    return record


def _descent(args: argparse.Namespace, model: nn.Module, loss_of: Loss) -> Callable[[Batch], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, total_steps=args.steps + 1, pct_start=0.2
    )

    def update(batch: Batch) -> None:
        optimizer.zero_grad()
        loss_of(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    return update


def _mean_loss(model: nn.Module, loss_of: Loss, held: list[Batch], seed: int) -> float:
    model.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return sum(float(loss_of(batch)) for batch in held) / len(held)


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches
