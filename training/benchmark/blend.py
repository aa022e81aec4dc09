"""Several signals of what a user takes next, joined by weights learnt on the validation cases.

The encoder generalises, a memory of pairs recalls what was seen once, one's own history says what is bought again,
and popularity what everybody takes. How much each is worth differs from shop to shop, so it is learnt: a conditional
logit over all items (McFadden, 1974), which is convex and has few numbers to learn.
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
FADES = (0.8, 0.98)
"""How much an item of one's own counts for each entry that came after it."""
CELLS = 12_000_000
"""Cases times items that weights are learnt from at most."""
STEPS, PRIOR = 40, 1e-4
GENERAL = ("encoder", *MEMORIES, "taken", "taken_late")
OWN = ("own", "own_near", "own_wide")
"""Of use only where history is not masked."""


class Signals:
    """The signals of one learning part; each is float32 [inputs, items]."""

    def __init__(self, encoder: Scorer, learn: Sequences, items: int, *, temperature: float, own: bool) -> None:
        self.names = GENERAL + OWN if own else GENERAL
        self.items = items
        self._encoder, self._temperature = encoder, temperature
        self._memories = [ItemKnn(learn, items, config) for config in MEMORIES.values()]
        late = learn.items[learn.times >= np.quantile(learn.times, 0.9)]
        self._taken = [np.log1p(np.bincount(part, minlength=items)).astype(np.float32) for part in (learn.items, late)]

    def of(self, inputs: Sequences) -> list[NDArray[np.float32]]:
        """In the order of `names`; not to be written in."""
        shape = (len(inputs), self.items)
        memories = [np.log1p(100 * np.maximum(memory.scores(inputs), 0)) for memory in self._memories]
        taken = [np.broadcast_to(one, shape) for one in self._taken]
        general = [self._encoder.scores(inputs) / np.float32(self._temperature), *memories, *taken]
        return general + (self._own(inputs, shape) if len(self.names) > len(GENERAL) else [])

    def _own(self, inputs: Sequences, shape: tuple[int, int]) -> list[NDArray[np.float32]]:
        place, back = (inputs.row_of_entry, inputs.items), inputs.from_end()
        return [
            np.log1p(sp.csr_matrix(((fade**back).astype(np.float32), place), shape=shape).toarray())
            for fade in (1.0, *FADES)
        ]


@dataclass
class Blend:
    signals: Signals
    weights: dict[str, float]

    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        """float32 [inputs, items]: the weighted sum of the signals."""
        total = np.zeros((len(inputs), self.signals.items), dtype=np.float32)
        for name, signal in zip(self.signals.names, self.signals.of(inputs), strict=True):
            total += np.float32(self.weights[name]) * signal
        return total


def learn_weights(signals: Signals, cases: Cases, *, mask_history: bool, rng: np.random.Generator) -> dict[str, float]:
    """The weights that make the cases' targets likeliest among all items; no more cases than CELLS allows, drawn.

    Maximum likelihood, a case's targets being equally likely, with a weak prior that keeps useless weights near 0.
    """
    drawn = rng.permutation(len(cases))[: max(1, CELLS // signals.items)]
    cases = cases.rows(np.sort(drawn))
    values = torch.from_numpy(np.stack([signal.ravel() for signal in signals.of(cases.inputs)]))
    scale = values.std(dim=1, keepdim=True).clamp(min=1e-6)
    values /= scale
    closed = torch.zeros((len(cases), signals.items))
    if mask_history:
        closed[cases.inputs.row_of_entry, cases.inputs.items] = -torch.inf
    rows, items = cases.targets.row_of_entry, torch.from_numpy(cases.targets.items)
    share = 1 / torch.from_numpy(cases.targets.lengths[rows]) / len(cases)
    weights = torch.zeros(len(values), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = (weights @ values).view_as(closed) + closed
        missed = logits.logsumexp(dim=1)[rows] - logits[rows, items]
        value = (share * missed).sum() + PRIOR * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    learnt = (weights.detach() / scale[:, 0]).tolist()
    return dict(zip(signals.names, learnt, strict=True))
