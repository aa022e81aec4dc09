"""Every training run as a typed value: a named function returns a whole configuration, `headrace train` runs it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from training.core.ranges import Count, Dropout, Natural, Part, Positive, Weight, Widths
from training.fraud.detector import FraudConfig


@dataclass(frozen=True)
class RetrievalConfig:
    width: Count = 64
    content_buckets: Count = 4096
    """Buckets that words of titles, prices and categories are hashed into."""
    dropout: Dropout = 0.2
    epochs: Count = 5
    refit_epochs: Natural = 1
    """Epochs over all visits before the split that the released model goes on for."""
    patience: Count = 2
    """Epochs without a better validation recall before training stops."""
    batch_visits: Count = 128
    negatives: Count = 8192
    """Items that a visit's items are told from: all of them while the catalogue is not larger."""
    cart_weight: Weight = 0.0
    view_weight: Weight = 1.0
    """What the carts and the looks of a visit weigh beside its purchases; with 0 they are not learnt from."""
    max_visits_without_purchase: Natural = 20_000
    """Most visits without a purchase that are learnt from, taken evenly over time: they bound the time of a fit."""
    learning_rate: Positive = 2e-3
    embedding_rate: Positive = 0.1
    weight_decay: Weight = 1e-4


@dataclass(frozen=True)
class RankerConfig:
    embedding: Count = 8
    hidden: Widths = (96, 48)
    crosses: Count = 2
    cross_rank: Count = 24
    dropout: Dropout = 0.1
    epochs: Count = 4
    patience: Count = 2
    batch_visits: Count = 32
    candidates: Count = 150
    """Candidates of a visit that the ranker learns from: every bought one and a sample of the others."""
    max_visits: Count = 6000
    """Latest visits with a purchase that are used, and at most as many without one."""
    cart_loss: Weight = 0.0
    view_loss: Weight = 0.0
    return_loss: Weight = 0.3
    """What each further head's loss weighs beside that of the purchase; with 0 the head is not made."""
    cart_score: Weight = 0.0
    view_score: Weight = 0.0
    return_score: Weight = 1.0
    """What each further head weighs in the score: models.ranker.Dense.score."""
    linear_penalty: Positive = 1e-3
    """Weight of the squares in the linear model that the crosses start from."""
    learning_rate: Positive = 3e-4
    embedding_rate: Positive = 0.003
    weight_decay: Weight = 1e-5


@dataclass(frozen=True)
class Config:
    name: str
    seed: Natural = 7
    validation_share: Part = 0.12
    """Latest part of each model's visits, by time, that stops the training."""
    per_source: Count = 100
    gate_visits: Count = 2500
    """Most held-out visits with a purchase that the gate judges, taken evenly over time."""
    list_length: Count = 20
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    fraud: FraudConfig = field(default_factory=FraudConfig)


def standard() -> Config:
    """Minutes on two cores for a shop of some thousand items."""
    return Config("standard")


def small() -> Config:
    """Seconds: for a first look, and for tests."""
    config = Config("small", gate_visits=400)
    return replace(
        config,
        retrieval=replace(config.retrieval, epochs=3, patience=1, max_visits_without_purchase=2_000),
        ranker=replace(config.ranker, epochs=2, batch_visits=16, max_visits=600, candidates=100),
        fraud=replace(config.fraud, epochs=6),
    )


CONFIGS: dict[str, Callable[[], Config]] = {"standard": standard, "small": small}
