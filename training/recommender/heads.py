"""Heads of the ranker: which of them the data supports, the linear model that each starts as, and the loss of each.

A head predicts one thing that a visit may do with an item. Knows nothing of the model's shared layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.configs import RankerConfig
from training.models.ranker import RETURN, squash
from training.recommender.examples import RankingExample

PURCHASE = "purchase"
LISTWISE_HEADS = (PURCHASE, "cart", "view")
"""Heads that predict which candidates a visit takes. Where a list is full, the last head loses its positives first."""
MIN_EXAMPLES = 200
"""Visits with a positive candidate (returns: positive candidates) that each head but the first needs."""
MAX_NORMALISED_ENTROPY = 0.93
"""A return head is built where, on visits it was not fitted on, its log loss is at most this share of the loss of one
rate for all (normalised entropy: He et al., Practical Lessons from Predicting Clicks on Ads, ADKDD 2014)."""
MASKED_LOGIT = -1e9
"""The logit where there is no candidate."""


@dataclass
class PaddedLists:
    """Holds visits padded to one number of candidates C, as a listwise loss needs them."""

    features: Tensor
    """float32 [visits, C, F]."""
    items: Tensor
    """int64 [visits, C]."""
    labels: dict[str, Tensor]
    """By head, float32 [visits, C]: 1 where the visit did that with the candidate."""
    is_candidate: Tensor
    """bool [visits, C]: False at the padding."""

    @property
    def bought(self) -> Tensor:
        """Returns the labels of the purchase head."""
        return self.labels[PURCHASE]

    def rows(self, rows: Tensor) -> "PaddedLists":
        """Returns these visits (int64)."""
        labels = {head: label[rows] for head, label in self.labels.items()}
        return PaddedLists(self.features[rows], self.items[rows], labels, self.is_candidate[rows])


def supported_heads(examples: list[RankingExample], config: RankerConfig) -> dict[str, float]:
    """Returns loss weights of the heads that are configured and have MIN_EXAMPLES; "purchase" is always the first."""
    configured = {"cart": config.cart_loss, "view": config.view_loss, RETURN: config.return_loss}
    weights = {PURCHASE: 1.0}
    for head, weight in configured.items():
        labels = [example.auxiliary_labels[head] for example in examples if head in example.auxiliary_labels]
        positives = sum(int(label.sum() if head == RETURN else label.any()) for label in labels)
        if weight and positives >= MIN_EXAMPLES:
            weights[head] = weight
    return weights


def initial_weights(
    lists: PaddedLists, *, mean: Tensor, std: Tensor, penalty: float
) -> dict[str, tuple[Tensor, float]]:
    """Fits the weights [F] and bias that each head starts with; leaves out a return head that predicts nothing.

    mean, std: float32 [F], of the squashed features. penalty: weight of the squared weights.
    """
    weights = {
        head: (fit_linear(lists, label, mean=mean, std=std, penalty=penalty), 0.0)
        for head, label in lists.labels.items()
        if head in LISTWISE_HEADS
    }
    returns = fit_returns(lists, mean=mean, std=std, penalty=penalty) if RETURN in lists.labels else None
    return weights | ({RETURN: returns} if returns else {})


def head_loss(head: str, logits: Tensor, lists: PaddedLists) -> Tensor:
    """Returns the loss of one head, summed over the visits with a positive of it. logits: float32 [visits, C]."""
    label = lists.labels[head].to(logits.device)
    if head == RETURN:
        return return_loss(logits, label, lists.bought.to(logits.device)).sum()
    has_positive = label.any(dim=1)
    return listwise(logits[has_positive], label[has_positive]).sum()


def listwise(scores: Tensor, bought: Tensor) -> Tensor:
    """Returns the cross entropy of each visit's bought candidates, which share the mass, [visits].

    Both arguments are float32 [visits, C].
    """
    return -(torch.log_softmax(scores, dim=1) * bought).sum(dim=1) / bought.sum(dim=1)


def return_loss(logits: Tensor, returned: Tensor, bought: Tensor) -> Tensor:
    """Returns the mean log loss over each visit's bought candidates, [visits]; 0 where none was bought.

    All arguments are float32 [visits, C].
    """
    losses = F.binary_cross_entropy_with_logits(logits, returned, weight=bought, reduction="none")
    return losses.sum(dim=1) / bought.sum(dim=1).clamp(min=1)


def fit_linear(lists: PaddedLists, label: Tensor, *, mean: Tensor, std: Tensor, penalty: float) -> Tensor:
    """Returns the weights [F] of squashed, standardised features that minimise the listwise loss plus the penalty.

    label: float32 [visits, C]. penalty: weight of the squared weights. The problem is convex, so there is no seed and
    no early stopping; the crosses have to beat this model.
    """
    has_positive = label.any(dim=1)
    features = (squash(lists.features[has_positive]) - mean) / std
    is_candidate, label = lists.is_candidate[has_positive], label[has_positive]

    def loss(weights: Tensor) -> Tensor:
        return listwise((features @ weights).masked_fill(~is_candidate, MASKED_LOGIT), label).mean()

    return _minimise(loss, features.shape[2], penalty)


def fit_returns(lists: PaddedLists, *, mean: Tensor, std: Tensor, penalty: float) -> tuple[Tensor, float] | None:
    """Fits a logistic model of which purchases are returned: weights [F] and bias, or None where it predicts nothing.

    Whether it predicts anything (MAX_NORMALISED_ENTROPY) is measured on every fourth visit, by a model fitted on the
    others.
    """
    visit, position = torch.nonzero(lists.bought, as_tuple=True)
    features = (squash(lists.features[visit, position]) - mean) / std
    features = torch.cat((features, torch.ones(len(features), 1)), dim=1)
    returned = lists.labels[RETURN][visit, position]
    prior = torch.logit(returned.mean(), eps=1e-6)  # apart from the weights, so that the penalty leaves it alone

    def log_loss(weights: Tensor, rows: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(features[rows] @ weights + prior, returned[rows])

    held_out = visit % 4 == 0
    weights = _minimise(lambda weights: log_loss(weights, ~held_out), features.shape[1], penalty)
    if log_loss(weights, held_out) > MAX_NORMALISED_ENTROPY * log_loss(torch.zeros_like(weights), held_out):
        return None
    weights = _minimise(lambda weights: log_loss(weights, torch.ones_like(held_out)), features.shape[1], penalty)
    return weights[:-1], float(weights[-1] + prior)


def _minimise(loss: Callable[[Tensor], Tensor], size: int, penalty: float) -> Tensor:
    """Returns the weights [size] that minimise the loss plus `penalty` times the squared weights."""
    weights = torch.zeros(size, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        objective = loss(weights) + penalty * weights.square().sum()
        objective.backward()
        return objective.item()

    optimizer.step(closure)
    return weights.detach()
