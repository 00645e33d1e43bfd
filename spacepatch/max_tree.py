"""A max segment tree: finds the leftmost of many numbers that is at least some value."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


class MaxTree:
    """Leaves that hold numbers, 0 at first; whatever is done with one of n takes O(log n)."""

    def __init__(
        self, num_leaves: int, nodes: list[int] | defaultdict[int, int] | None = None
    ) -> None:
        """
        Args:
            nodes: Where they are kept; a dict takes memory only for those that are used.
        """
        self.size = 1 << max(num_leaves - 1, 0).bit_length()
        # Node i has the children 2i and 2i + 1; the leaves are the last `size` nodes.
        self.nodes = [0] * (2 * self.size) if nodes is None else nodes

    @classmethod
    def of(cls, values: Sequence[int], num_leaves: int) -> MaxTree:
        """With the first leaves set; O(num_leaves)."""
        tree = cls(num_leaves)
        levels = [np.zeros(tree.size, np.int64)]
        levels[0][: len(values)] = values
        while levels[-1].size > 1:
            levels.append(levels[-1].reshape(-1, 2).max(axis=1))
        tree.nodes = [0, *np.concatenate(levels[::-1]).tolist()]
        return tree

    def value(self, leaf: int) -> int:
        return self.nodes[self.size + leaf]

    def set(self, leaf: int, value: int) -> None:
        nodes = self.nodes
        node = self.size + leaf
        nodes[node] = value
        while node > 1:
            sibling = nodes[node ^ 1]
            if sibling > value:
                value = sibling
            node >>= 1
            if nodes[node] == value:
                break
            nodes[node] = value

    def first_at_least(self, value: int) -> int | None:
        """The leftmost leaf that holds `value` or more; None: no leaf does."""
        nodes, size = self.nodes, self.size
        if nodes[1] < value:
            return None
        node = 1
        while node < size:
            node += node
            if nodes[node] < value:
                node += 1
        return node - size


class OwnLeaves:
    """A `MaxTree` whose leaf i holds i or 0, as a sorted list: quicker, where few are not 0."""

    def __init__(self) -> None:
        self._leaves: list[int] = []

    def set(self, leaf: int, value: int) -> None:
        """Set a leaf to what it does not hold."""
        if value:
            insort(self._leaves, leaf)
        else:
            del self._leaves[bisect_left(self._leaves, leaf)]

    def first_at_least(self, value: int) -> int | None:
        place = bisect_left(self._leaves, value)
        return self._leaves[place] if place < len(self._leaves) else None
