"""Blends several signals of what a user takes next, by weights that are learnt on the validation cases.

The encoder generalises, co-counts recall pairs that were seen once, a user's own history predicts re-purchase, and
popularity what all users take. The value of each differs from shop to shop, so it is learnt: a conditional logit over
all items (McFadden, 1974), which is convex and has few weights.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from training.benchmark.baselines import ItemKnn, ItemKnnConfig
from training.benchmark.interactions import Sequences
from training.benchmark.lists import Scorer
from training.benchmark.protocols import Cases

MEMORIES = {
    "near": ItemKnnConfig(recent=10, decay=0.8),
    "wide": ItemKnnConfig(recent=200, decay=0.98),
    "next": ItemKnnConfig(recent=10, decay=0.8, ahead=3),
}
DECAYS = (0.8, 0.98)
"""Factors by which an item of the user's own history counts less for each entry after it."""
MAX_CELLS = 12_000_000
"""Most cases times items that weights are learnt from."""
STEPS, PRIOR = 40, 1e-4
GENERAL_SIGNALS = ("encoder", *MEMORIES, "taken", "taken_late")
HISTORY_SIGNALS = ("own", "own_near", "own_wide")
"""Signals that are useful only where history is not masked."""


class Signals:
    """Computes the signals of one training part, each as float32 [inputs, items]."""

    def __init__(self, encoder: Scorer, learn: Sequences, items: int, *, temperature: float, own: bool) -> None:
        self.names = GENERAL_SIGNALS + HISTORY_SIGNALS if own else GENERAL_SIGNALS
        self.items = items
        self._encoder, self._temperature = encoder, temperature
        self._memories = [ItemKnn(learn, items, config) for config in MEMORIES.values()]
        late = learn.items[learn.times >= np.quantile(learn.times, 0.9)]
        self._taken = [np.log1p(np.bincount(part, minlength=items)).astype(np.float32) for part in (learn.items, late)]

    def compute(self, inputs: Sequences) -> list[NDArray[np.float32]]:
        """Returns the signals in the order of `names`; they are read-only."""
        shape = (len(inputs), self.items)
        memories = [np.log1p(100 * np.maximum(memory.scores(inputs), 0)) for memory in self._memories]
        taken = [np.broadcast_to(counts, shape) for counts in self._taken]
        general = [self._encoder.scores(inputs) / np.float32(self._temperature), *memories, *taken]
        return general + (self._history_signals(inputs, shape) if len(self.names) > len(GENERAL_SIGNALS) else [])

    def _history_signals(self, inputs: Sequences, shape: tuple[int, int]) -> list[NDArray[np.float32]]:
        """Returns the user's own items, counted with each decay."""
        index, distance = (inputs.row_of_entry, inputs.items), inputs.distance_from_end()
        return [
            np.log1p(sp.csr_matrix(((decay**distance).astype(np.float32), index), shape=shape).toarray())
            for decay in (1.0, *DECAYS)
        ]


@dataclass
class Blend:
    """Scores items by a weighted sum of signals."""

    signals: Signals
    weights: dict[str, float]

    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        """Returns float32 [inputs, items]."""
        total = np.zeros((len(inputs), self.signals.items), dtype=np.float32)
        for name, signal in zip(self.signals.names, self.signals.compute(inputs), strict=True):
            total += np.float32(self.weights[name]) * signal
        return total


def learn_weights(signals: Signals, cases: Cases, *, mask_history: bool, rng: np.random.Generator) -> dict[str, float]:
    """Learns the weights by maximum likelihood of the cases' targets among all items, on a sample of MAX_CELLS.

    The targets of a case are equally likely; a weak prior keeps useless weights near 0.
    """
    sample = rng.permutation(len(cases))[: max(1, MAX_CELLS // signals.items)]
    cases = cases.rows(np.sort(sample))
    values = torch.from_numpy(np.stack([signal.ravel() for signal in signals.compute(cases.inputs)]))
    scale = values.std(dim=1, keepdim=True).clamp(min=1e-6)
    values /= scale
    masking = torch.zeros((len(cases), signals.items))
    if mask_history:
        masking[cases.inputs.row_of_entry, cases.inputs.items] = -torch.inf
    rows, items = cases.targets.row_of_entry, torch.from_numpy(cases.targets.items)
    share = 1 / torch.from_numpy(cases.targets.lengths[rows]) / len(cases)
    weights = torch.zeros(len(values), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = (weights @ values).view_as(masking) + masking
        losses = logits.logsumexp(dim=1)[rows] - logits[rows, items]
        value = (share * losses).sum() + PRIOR * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    learnt = (weights.detach() / scale[:, 0]).tolist()
    return dict(zip(signals.names, learnt, strict=True))
