"""Configurations of training runs as typed values: `headrace train NAME` runs the one that function NAME returns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from training.core.ranges import Count, Dropout, Fraction, Natural, Positive, Weight, Widths
from training.fraud.detector import FraudConfig


@dataclass(frozen=True)
class RetrievalConfig:
    """Settings of the two-tower."""

    width: Count = 64
    content_buckets: Count = 4096
    """Buckets that words of titles, prices and categories are hashed into."""
    dropout: Dropout = 0.2
    epochs: Count = 5
    refit_epochs: Natural = 1
    """Further epochs of the released model, over all visits before the split."""
    patience: Count = 2
    """Epochs without a better validation recall before training stops."""
    batch_visits: Count = 128
    negatives: Count = 8192
    """Items that a visit's items compete with in the loss: all of them while the catalogue is not larger."""
    cart_weight: Weight = 0.0
    view_weight: Weight = 1.0
    """Loss weights of a visit's carts and views, beside 1 for its purchases; with 0 they are not learnt from."""
    max_visits_without_purchase: Natural = 20_000
    """Most visits without a purchase that are learnt from, spread evenly over time: they bound the time of a fit."""
    learning_rate: Positive = 2e-3
    embedding_rate: Positive = 0.1
    weight_decay: Weight = 1e-4


@dataclass(frozen=True)
class RankerConfig:
    """Settings of the ranker."""

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
    """Most visits with a purchase that are used, the latest ones, and at most as many without one."""
    cart_loss: Weight = 0.0
    view_loss: Weight = 0.0
    return_loss: Weight = 0.3
    """Weights of the further heads' losses, beside 1 for the purchase; with 0 a head is left out."""
    cart_score: Weight = 0.0
    view_score: Weight = 0.0
    return_score: Weight = 1.0
    """Weights of the further heads in the score: see models.ranker.Dense.score."""
    linear_penalty: Positive = 1e-3
    """Weight of the squared weights in the linear model that the crosses start from."""
    learning_rate: Positive = 3e-4
    embedding_rate: Positive = 0.003
    weight_decay: Weight = 1e-5


@dataclass(frozen=True)
class Config:
    """Settings of one training run."""

    name: str
    seed: Natural = 7
    validation_share: Fraction = 0.12
    """Share of each model's visits, the latest ones, that early stopping validates on."""
    per_source: Count = 100
    """Most candidates from one source."""
    gate_visits: Count = 2500
    """Most held-out visits with a purchase that the gate evaluates, spread evenly over time."""
    list_length: Count = 20
    """Positions that the gate evaluates."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    fraud: FraudConfig = field(default_factory=FraudConfig)


def standard() -> Config:
    """Returns the default: takes minutes on two cores for a shop of some thousand items."""
    return Config("standard")


def small() -> Config:
    """Returns a quick configuration for a first look and for tests: takes seconds."""
    config = Config("small", gate_visits=400)
    return replace(
        config,
        retrieval=replace(config.retrieval, epochs=3, patience=1, max_visits_without_purchase=2_000),
        ranker=replace(config.ranker, epochs=2, batch_visits=16, max_visits=600, candidates=100),
        fraud=replace(config.fraud, epochs=6),
    )


CONFIGS: dict[str, Callable[[], Config]] = {"standard": standard, "small": small}
