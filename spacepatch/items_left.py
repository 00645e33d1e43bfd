"""Items by length: the longest that fit are taken, and rests of them are put back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from heapq import heappop, heappush, merge

import numpy as np


class ItemsLeft:
    """What is still to be packed; of items of one length, the first comes first.

    Taking and putting back is O(log n) for n items, and moves no list of them.
    """

    def __init__(self, lengths: np.ndarray, most: int) -> None:
        """
        Args:
            lengths: ``(n,)`` int64, each at least 1, of items 0..n - 1.
            most: the longest that is asked for.
        """
        self._lengths = _LengthSet(max(most, int(lengths.max(initial=0))))
        # Whole items lie with the first at the end, where it costs least to take. Rests come in
        # any order: they are heaps.
        self._whole: defaultdict[int, list[int]] = defaultdict(list)
        self._rests: defaultdict[int, list[int]] = defaultdict(list)
        order = np.lexsort((-np.arange(lengths.size), lengths))
        distinct, starts = np.unique(lengths[order], return_index=True)
        for length, items in zip(distinct.tolist(), np.split(order, starts)[1:], strict=True):
            self._whole[length] = items.tolist()
            self._lengths.add(length)

    def longest(self) -> int:
        """The length of the longest item; 0: none is left."""
        return self._lengths.floor(self._lengths.most)

    def longest_up_to(self, most: int) -> int:
        """The length of the longest item of up to `most`; 0: there is none."""
        return self._lengths.floor(most)

    def longest_first(self) -> Iterator[tuple[int, int]]:
        """(length, item) of all items, in the order that they are taken in."""
        length = self.longest()
        while length:
            whole, rests = self._whole[length], self._rests[length]
            items: Iterator[int] = reversed(whole)
            if rests:
                items = merge(items, _ascending(rests)) if whole else _ascending(rests)
            for item in items:
                yield length, item
            length = self._lengths.floor(length - 1)

    def take_first(self, length: int, most: int) -> list[int]:
        """Take up to `most` items of a length that there is, but one at a time among rests."""
        whole, rests = self._whole[length], self._rests[length]
        if rests:
            is_whole = bool(whole) and whole[-1] < rests[0]
            items = [whole.pop() if is_whole else heappop(rests)]
        else:
            items = whole[: -most - 1 : -1]
            del whole[-most:]
        if not whole and not rests:
            self._lengths.remove(length)
        return items

    def take(self, length: int, item: int) -> None:
        """Take an item that is among the first of its length."""
        whole, rests = self._whole[length], self._rests[length]
        before: list[int] = []
        while rests and rests[0] < item:
            before.append(heappop(rests))
        if rests and rests[0] == item:
            heappop(rests)
        else:
            place = -1
            while whole[place] != item:
                place -= 1
            del whole[place]
        for other in before:
            heappush(rests, other)
        if not whole and not rests:
            self._lengths.remove(length)

    def put_back(self, length: int, item: int) -> None:
        """Add what is left of an item that was taken."""
        heappush(self._rests[length], item)
        self._lengths.add(length)


def _ascending(heap: list[int]) -> Iterator[int]:
    """The numbers of a heap in order, of which only those asked for take time."""
    places = [(heap[0], 0)]
    while places:
        value, place = heappop(places)
        yield value
        for child in range(2 * place + 1, min(2 * place + 3, len(heap))):
            heappush(places, (heap[child], child))


class _LengthSet:
    """A set of ints of 1..most that finds the largest one below another.

    They are bits of integers, some sqrt(most) bits each: short enough that it costs little to make
    them anew, where a sorted list of all would be moved for each.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._shift = (most.bit_length() + 1) // 2
        self._words = [0] * ((most >> self._shift) + 1)
        self._used = 0
        """The words that are not 0, as bits."""

    def add(self, value: int) -> None:
        word = value >> self._shift
        self._words[word] |= 1 << value - (word << self._shift)
        self._used |= 1 << word

    def remove(self, value: int) -> None:
        word = value >> self._shift
        self._words[word] ^= 1 << value - (word << self._shift)
        if not self._words[word]:
            self._used ^= 1 << word

    def floor(self, value: int) -> int:
        """The largest that is `value` or less; 0: there is none."""
        word = value >> self._shift
        bits = self._words[word] & (2 << value - (word << self._shift)) - 1
        if not bits:
            used = self._used & (1 << word) - 1
            if not used:
                return 0
            word = used.bit_length() - 1
            bits = self._words[word]
        return (word << self._shift) + bits.bit_length() - 1
