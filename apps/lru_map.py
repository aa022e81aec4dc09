"""A mapping of bounded size that forgets what was not used for longest. Knows nothing of what it holds."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruMap(Generic[Key, Value]):
    """Holds the `capacity` entries that were put or got last. Safe to use from threads.

    >>> ages = LruMap(2)
    >>> ages.put("ann", 31); ages.put("bob", 32)
    >>> ages.get("ann")
    31
    >>> ages.put("eve", 33)
    >>> "bob" in ages, len(ages)
    (False, 2)
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        """Says whether the key is held, which does not count as a use."""
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """Returns the value of the key, None without one."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def put(self, key: Key, value: Value) -> None:
        """Stores a value."""
        self.update([(key, value)])

    def update(self, entries: Iterable[tuple[Key, Value]]) -> None:
        """Stores several values, the last of which count as used last."""
        with self._lock:
            for key, value in entries:
                self._entries[key] = value
                self._entries.move_to_end(key)
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forgets all entries."""
        with self._lock:
            self._entries.clear()
