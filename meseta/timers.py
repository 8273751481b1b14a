"""Deadlines by key, for cores: set, cancelled and moved in logarithmic time."""

import heapq
from typing import Generic, TypeVar

Key = TypeVar("Key")


class Timers(Generic[Key]):
    """At most one deadline for each key; those due come out in the order of time, then of setting."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._number_by_key: dict[Key, int] = {}
        self._count = 0

    def set(self, key: Key, due: float) -> None:
        """Give `key` this deadline instead of the one it may have."""
        self._count += 1
        self._number_by_key[key] = self._count
        heapq.heappush(self._heap, (due, self._count, key))
        if len(self._heap) > 2 * len(self._number_by_key) + 1000:
            # Cancelled entries stay until their time comes: without this, 10 minutes' worth of them.
            self._heap = [entry for entry in self._heap if self._number_by_key.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def cancel(self, key: Key) -> None:
        """Forget the key's deadline, if it has one."""
        self._number_by_key.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
        self._number_by_key.clear()

    def next_due(self) -> float | None:
        """Return the earliest deadline."""
        heap = self._heap
        while heap:
            due, number, key = heap[0]
            if self._number_by_key.get(key) == number:
                return due
            heapq.heappop(heap)
        return None

    def pop_due(self, now: float) -> list[Key]:
        """Take out the keys whose deadline is `now` or before."""
        due_keys = []
        while (due := self.next_due()) is not None and due <= now:
            key = heapq.heappop(self._heap)[2]
            del self._number_by_key[key]
            due_keys.append(key)
        return due_keys

    def __contains__(self, key: object) -> bool:
        return key in self._number_by_key
