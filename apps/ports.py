"""Defines what the services need from outside, as protocols. Adapters implement them; tests use fakes."""

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
    """An item as the shop listed it last."""

    item_id: str
    title: str
    price: float
    """In the shop's currency; 0 where not known."""
    category: str


class FeatureReader(Protocol):
    """Reads online features: one row for each id, empty where nothing is stored.

    Any method may raise an Exception of the store's own when it cannot be reached; the services then degrade.
    """

    @property
    def remote(self) -> bool:
        """Whether the rows are on another machine, so that a read waits for the network."""
        ...

    def user_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Returns a dict for each user: column name to list."""
        ...

    def user_history(self, user: str) -> History:
        """Returns one row of arrays.USER_COLUMNS, empty for a user that the store does not know."""
        ...

    def item_histories(self, ids: Sequence[str]) -> History:
        """Returns arrays.ITEM_COLUMNS of many items at once."""
        ...

    def card_histories(self, ids: Sequence[str]) -> History:
        """Returns arrays.CARD_COLUMNS."""
        ...

    def terminal_histories(self, ids: Sequence[str]) -> tuple[History, History]:
        """Returns the payments (arrays.TERMINAL_COLUMNS) and the known frauds (arrays.FRAUD_COLUMNS) of terminals."""
        ...


class Recommender(Protocol):
    """The recommending part of a loaded release."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def windows(self) -> NDArray[np.float32]:
        """item_windows as of the time the release was made, for use until the store can be read."""
        ...

    def user_vectors(self, items: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns vectors of shape [B, D] from padded recent items (int64 [B, L]) and weights (float32 [B, L])."""
        ...

    def nearest(self, vector: NDArray[np.float32], count: int, allowed: ItemSet | None) -> NDArray[np.int64]:
        """Returns at most `count` allowed items nearest to the vector, nearest first."""
        ...

    def rank(self, features: NDArray[np.float32], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the ranker's score of each candidate of one visitor or several, shape [C].

        features: shape [C, len(CANDIDATE_FEATURES)]; items: catalogue indices, shape [C].
        """
        ...


class Impressions(Protocol):
    """Stores impressions; infra.log.spool.SpooledLog is one."""

    def append(self, key: str, value: bytes) -> bool:
        """Stores an impression and never raises; False while the event log takes none, or when this one is lost."""
        ...
