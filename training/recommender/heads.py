"""Heads of the ranker: which of them the data supports, the linear model each starts as, and what each one missed.

A head tells of one thing that a visit may do with an item. Knows nothing of the model's body.
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
LISTWISE = (PURCHASE, "cart", "view")
"""Heads that tell which of a visit's candidates it takes; where a list has no room, the last one's go first."""
MIN_EXAMPLES = 200
"""Visits with a candidate to learn from (returns: candidates) that a further head needs."""
MAX_NORMALISED_ENTROPY = 0.93
"""A return head is made where, on visits it was not fitted on, its log loss is at most this share of the loss of one
rate for all (normalised entropy: He et al., Practical Lessons from Predicting Clicks on Ads, ADKDD 2014)."""
MASKED_LOGIT = -1e9
"""The logit where there is no candidate."""


@dataclass
class PaddedLists:
    """Visits padded to one number of candidates, for a listwise loss."""

    features: Tensor
    items: Tensor
    labels: dict[str, Tensor]
    """By head, float32 [visits, candidates]."""
    is_candidate: Tensor

    @property
    def bought(self) -> Tensor:
        return self.labels[PURCHASE]

    def rows(self, rows: Tensor) -> "PaddedLists":
        labels = {head: label[rows] for head, label in self.labels.items()}
        return PaddedLists(self.features[rows], self.items[rows], labels, self.is_candidate[rows])


def supported(drawn: list[RankingExample], config: RankerConfig) -> dict[str, float]:
    """Loss weights of the heads that are asked for and have ENOUGH to learn from; "purchase" is always the first."""
    asked = {"cart": config.cart_loss, "view": config.view_loss, RETURN: config.return_loss}
    found = {PURCHASE: 1.0}
    for head, weight in asked.items():
        marks = [one.auxiliary_labels[head] for one in drawn if head in one.auxiliary_labels]
        if weight and sum(int(one.sum() if head == RETURN else one.any()) for one in marks) >= MIN_EXAMPLES:
            found[head] = weight
    return found


def initial_weights(
    lists: PaddedLists, *, mean: Tensor, std: Tensor, penalty: float
) -> dict[str, tuple[Tensor, float]]:
    """Weights [F] and bias that each head starts with; a return head that tells nothing is left out."""
    found = {
        head: (fit_linear(lists, label, mean=mean, std=std, penalty=penalty), 0.0)
        for head, label in lists.labels.items()
        if head in LISTWISE
    }
    returns = fit_returns(lists, mean=mean, std=std, penalty=penalty) if RETURN in lists.labels else None
    return found | ({RETURN: returns} if returns else {})


def head_loss(head: str, logits: Tensor, mine: PaddedLists) -> Tensor:
    """The loss of one head, summed over the visits that have something to tell it. logits: float32 [visits, C]."""
    label = mine.labels[head].to(logits.device)
    if head == RETURN:
        return return_loss(logits, label, mine.bought.to(logits.device)).sum()
    some = label.any(dim=1)
    return listwise(logits[some], label[some]).sum()


def listwise(scores: Tensor, bought: Tensor) -> Tensor:
    """Cross entropy of each visit's bought candidates, which share the mass, [visits]; both float32 [visits, C]."""
    return -(torch.log_softmax(scores, dim=1) * bought).sum(dim=1) / bought.sum(dim=1)


def return_loss(logits: Tensor, returned: Tensor, bought: Tensor) -> Tensor:
    """Mean log loss of each visit's bought candidates, [visits]; 0 where none was bought; all float32 [visits, C]."""
    missed = F.binary_cross_entropy_with_logits(logits, returned, weight=bought, reduction="none")
    return missed.sum(dim=1) / bought.sum(dim=1).clamp(min=1)


def fit_linear(lists: PaddedLists, label: Tensor, *, mean: Tensor, std: Tensor, penalty: float) -> Tensor:
    """Weights [F] of the squashed, standardised features: the least listwise loss, plus `penalty` times their squares.

    label: float32 [visits, C]. Convex, so no seed and no early stopping: what the crosses have to beat.
    """
    some = label.any(dim=1)
    features, real, label = (squash(lists.features[some]) - mean) / std, lists.is_candidate[some], label[some]

    def loss(weights: Tensor) -> Tensor:
        return listwise((features @ weights).masked_fill(~real, MASKED_LOGIT), label).mean()

    return _minimise(loss, features.shape[2], penalty)


def fit_returns(lists: PaddedLists, *, mean: Tensor, std: Tensor, penalty: float) -> tuple[Tensor, float] | None:
    """Weights [F] and bias of a logistic model of what of the bought comes back; None where it tells nothing (TELLING),
    as measured on every fourth visit with a model of the others."""
    visit, place = torch.nonzero(lists.bought, as_tuple=True)
    features = (squash(lists.features[visit, place]) - mean) / std
    features = torch.cat((features, torch.ones(len(features), 1)), dim=1)
    returned = lists.labels[RETURN][visit, place]
    usual = torch.logit(returned.mean(), eps=1e-6)  # apart from the weights, so that the penalty leaves it alone

    def lost(weights: Tensor, rows: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(features[rows] @ weights + usual, returned[rows])

    other = visit % 4 == 0
    weights = _minimise(lambda weights: lost(weights, ~other), features.shape[1], penalty)
    if lost(weights, other) > MAX_NORMALISED_ENTROPY * lost(torch.zeros_like(weights), other):
        return None
    weights = _minimise(lambda weights: lost(weights, torch.ones_like(other)), features.shape[1], penalty)
    return weights[:-1], float(weights[-1] + usual)


def _minimise(loss: Callable[[Tensor], Tensor], size: int, penalty: float) -> Tensor:
    """The weights [size] of the least loss, plus `penalty` times their squares."""
    weights = torch.zeros(size, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        missed = loss(weights) + penalty * weights.square().sum()
        missed.backward()
        return missed.item()

    optimizer.step(closure)
    return weights.detach()
