"""First-fit over trees of the packs' room that stay low, however many packs there are."""

from __future__ import annotations

import numpy as np

from spacepatch.max_tree import MaxTree

RARE = 16
"""Packs with room for the shortest of RARE lengths alone are kept out of the way of the others."""


def place_first_fit(
    values: np.ndarray, *, pack_length: int, cap: int, window: int | None
) -> list[int]:
    """Return the pack that each sequence goes to, see `packing.pack_first_fit`.

    Args:
        values: ``(n,)`` ints in [1, pack_length].
        cap: Most sequences in one pack.
    """
    shortest = common = int(values.min(initial=pack_length))
    if window is None and values.size:
        common = int(np.partition(values, values.size // RARE)[values.size // RARE])
    # Leaf i of `tree` is the room of packs[i], as long as that is `common` or more: few packs have
    # so much at a time. What has less, but is open, has the leaf of its own number in `rest`.
    tree, packs = MaxTree(1), list[int]()
    nodes, size = tree.nodes, tree.size
    rest = MaxTree(values.size)
    small = rest.nodes
    slots = [cap] * values.size if cap < pack_length // shortest else None
    pack_of: list[int] = []
    num_packs = num_open = oldest = 0
    for length in values.tolist():
        # What `MaxTree` does is written out where it is done for every length: calls of it would
        # take half as long again.
        node = 0
        if nodes[1] >= length:
            node = 1
            while node < size:
                node += node
                if nodes[node] < length:
                    node += 1
        if length < common:
            tight = rest.first_at_least(length)
            if tight is not None and (not node or tight < packs[node - size]):
                pack_of.append(tight)
                free = rest.value(tight) - length
                if slots is not None:
                    slots[tight] -= 1
                    free = free if slots[tight] else 0
                rest.set(tight, free)
                continue
        if node:
            pack, free = packs[node - size], nodes[node] - length
        else:
            if num_open == window:
                while not tree.value(oldest):
                    oldest += 1
                tree.set(oldest, 0)
                num_open -= 1
            pack, free = num_packs, pack_length - length
            num_packs += 1
            num_open += 1
        pack_of.append(pack)
        if slots is not None:
            slots[pack] -= 1
            free = free if slots[pack] else 0
        if free < common:
            num_open -= 1
            if free >= shortest:
                leaf = rest.size + pack
                while leaf and small[leaf] < free:
                    small[leaf] = free
                    leaf >>= 1
            free = 0
        if node:
            nodes[node] = free
            while node > 1:
                sibling = nodes[node ^ 1]
                if sibling > free:
                    free = sibling
                node >>= 1
                if nodes[node] == free:
                    break
                nodes[node] = free
        elif free:
            if len(packs) == size:
                rooms = [tree.value(leaf) for leaf in range(size)]
                packs = [pack for pack, room in zip(packs, rooms, strict=True) if room]
                tree = MaxTree.of([room for room in rooms if room], 4 * len(packs) + 1)
                nodes, size, oldest = tree.nodes, tree.size, 0
            node = size + len(packs)
            packs.append(pack)
            while node and nodes[node] < free:
                nodes[node] = free
                node >>= 1
    return pack_of
