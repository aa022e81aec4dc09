"""What the services need from outside, as protocols: adapters fulfil them, tests bring fakes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from features.contract.release import Manifest
from features.history.arrays import History
from features.recommender.catalogue import Catalogue, ItemSet

Clock = Callable[[], float]
"""Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class ListedItem:
    """An item as the shop listed it."""

    item_id: str
    title: str
    price: float
    """0 where not known."""
    category: str


class FeatureReader(Protocol):
    """Online features, one row an id, empty where nothing is stored; of users one dict per id: column name to list.

    Any method may raise an Exception of the store's own when it cannot be reached: the services then degrade.
    """

    @property
    def remote(self) -> bool:
        """Whether the rows are on another machine, so that a read waits for it."""
        ...

    def user_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]: ...

    def user_history(self, user: str) -> History:
        """One row of arrays.USER_COLUMNS, empty for a user that the store does not know."""
        ...

    def item_histories(self, ids: Sequence[str]) -> History:
        """Of all items of a release at once, hence as arrays: arrays.ITEM_COLUMNS."""
        ...

    def card_histories(self, ids: Sequence[str]) -> History: ...

    def terminal_histories(self, ids: Sequence[str]) -> tuple[History, History]:
        """Their payments, and the frauds that are known of them."""
        ...


class Recommender(Protocol):
    """The recommending half of a loaded release."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def windows(self) -> NDArray[np.float32]:
        """item_windows as they stood when the release was made, for when the store cannot be reached."""
        ...

    def user_vectors(self, items: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Shape [B, D], of padded recent items (int64 [B, L]) and weights (float32 [B, L])."""
        ...

    def nearest(self, vector: NDArray[np.float32], count: int, allowed: ItemSet | None) -> NDArray[np.int64]:
        """At most `count` allowed items nearest to the vector, nearest first."""
        ...

    def rank(self, features: NDArray[np.float32], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """The ranker's score of each candidate, of one visitor or of several, shape [C]."""
        ...


class Impressions(Protocol):
    """Where what was shown is written down; infra.log.spool.SpooledLog is one."""

    def append(self, key: str, value: bytes) -> bool:
        """Keep an impression, whatever fails; False while the event log takes none, or when this one is lost."""
        ...
