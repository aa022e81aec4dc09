"""Every training run as a typed value: a named function returns a whole configuration, `headrace train` runs it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from training.fraud import FraudConfig


@dataclass(frozen=True)
class RetrievalConfig:
    width: int = 64
    content_buckets: int = 4096
    """Buckets that words of titles, prices and categories are hashed into."""
    dropout: float = 0.2
    epochs: int = 5
    refit_epochs: int = 1
    """Epochs over all orders that the released model goes on for."""
    patience: int = 2
    """Epochs without a better validation recall before training stops."""
    batch_orders: int = 128
    negatives: int = 8192
    """Items that an order's items are told from: all of them while the catalogue is not larger."""
    learning_rate: float = 2e-3
    embedding_rate: float = 0.1
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class RankerConfig:
    embedding: int = 8
    hidden: tuple[int, ...] = (96, 48)
    crosses: int = 2
    rank: int = 24
    dropout: float = 0.1
    epochs: int = 4
    patience: int = 2
    batch_orders: int = 32
    candidates: int = 150
    """Candidates of an order that the ranker learns from: every bought one and a sample of the others."""
    max_orders: int = 6000
    """Latest visits with a purchase that are used, and at most as many without one."""
    cart_loss: float = 0.0
    view_loss: float = 0.0
    return_loss: float = 0.3
    """What each further head's loss weighs beside that of the purchase; with 0 the head is not made."""
    cart_score: float = 0.0
    view_score: float = 0.0
    return_score: float = 1.0
    """What each further head weighs in the score: models.ranker.Dense.score."""
    linear_penalty: float = 1e-3
    """Weight of the squares in the linear model that the crosses start from."""
    learning_rate: float = 3e-4
    embedding_rate: float = 0.003
    weight_decay: float = 1e-5


@dataclass(frozen=True)
class Config:
    name: str
    seed: int = 7
    validation_share: float = 0.12
    """Latest part of each model's training orders, by time, that stops the training."""
    per_source: int = 100
    gate_orders: int = 2500
    """Most held-out orders that the gate judges, taken evenly over time."""
    list_length: int = 20
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    fraud: FraudConfig = field(default_factory=FraudConfig)


def standard() -> Config:
    """Minutes on two cores for a shop of some thousand items."""
    return Config("standard")


def small() -> Config:
    """Seconds: for a first look, and for tests."""
    config = Config("small", gate_orders=400)
    return replace(
        config,
        retrieval=replace(config.retrieval, epochs=3, patience=1),
        ranker=replace(config.ranker, epochs=2, batch_orders=16, max_orders=600, candidates=100),
        fraud=replace(config.fraud, epochs=6),
    )


CONFIGS: dict[str, Callable[[], Config]] = {"standard": standard, "small": small}
