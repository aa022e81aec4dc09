"""The fraud detector (DCN-v2 cross beside an MLP) and its floor, as modules that take raw features.

Scaling lives inside, so that what is exported needs nothing but features/fraud/velocity.py in front of it.
Knows nothing of data, training or thresholds.
"""

import copy

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import CrossNet

CLIP = 6.0
"""Standard deviations at which a scaled feature is cut: one absurd amount must not drown the rest."""


class Scaling(nn.Module):
    """Zero mean and unit variance, cut at CLIP; a skewed feature is seen twice, as it is and as its log1p.

    The logarithm tells small amounts apart, the amount itself tells the few huge ones.
    """

    skewed: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, sample: Tensor, skewed: Tensor) -> None:
        """sample: float32 [N, F] to take mean and deviation from; skewed: indices of features, int64 [S]."""
        super().__init__()
        self.register_buffer("skewed", skewed)
        unrolled = self._unroll(sample)
        self.register_buffer("mean", unrolled.mean(dim=0))
        self.register_buffer("deviation", unrolled.std(dim=0).clamp_min(1e-3))

    def _unroll(self, features: Tensor) -> Tensor:
        return torch.cat((features, torch.log1p(features[:, self.skewed].clamp_min(0.0))), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """float32 [N, F] to float32 [N, F + S]."""
        scaled: Tensor = (self._unroll(features) - self.mean) / self.deviation
        return scaled.clamp(-CLIP, CLIP)


class Logistic(nn.Module):
    """Logistic regression with given weights: the floor, in the detector's shape."""

    def __init__(self, weights: Tensor, intercept: Tensor) -> None:
        """weights: [F]; intercept: [1]."""
        super().__init__()
        self.out = nn.Linear(len(weights), 1)
        with torch.no_grad():
            self.out.weight.copy_(weights[None, :])
            self.out.bias.copy_(intercept)

    def forward(self, scaled: Tensor) -> Tensor:
        logits: Tensor = self.out(scaled)
        return logits.squeeze(1)


class FraudDetector(nn.Module):
    """Logits of fraud, float32 [N], of scaled features, float32 [N, F]: the floor, plus what crossing adds to it.

    It starts as `floor` exactly, since the last layer starts at zero: with a few hundred frauds to learn from, most of
    what can be known is linear. The crosses are those of Wang et al., DCN V2: Improved Deep & Cross Network (2021),
    in the parallel form.
    """

    def __init__(
        self, floor: Logistic, features: int, *, cross_layers: int, hidden: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.floor = copy.deepcopy(floor).requires_grad_(False)
        self.cross = CrossNet(features, cross_layers)
        layers: list[nn.Module] = []
        width = features
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.deep = nn.Sequential(*layers)
        self.out = nn.Linear(features + width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, scaled: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.cat((self.cross(scaled), self.deep(scaled)), dim=1))
        return self.floor(scaled) + logits.squeeze(1)  # type: ignore[no-any-return]


class ServedDetector(nn.Module):
    """What is exported: raw features float32 [N, F] to calibrated probabilities float32 [N].

    Calibration is Platt's: the log-odds are `slope * logit + shift`, which undoes the weighting of rare frauds.
    """

    slope: Tensor
    shift: Tensor

    def __init__(self, scaling: Scaling, members: list[nn.Module], *, slope: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.scaling = scaling
        self.members = nn.ModuleList(members)
        self.register_buffer("slope", torch.tensor(slope))
        self.register_buffer("shift", torch.tensor(shift))

    def logits(self, features: Tensor) -> Tensor:
        """Mean of the members' logits, before calibration."""
        scaled = self.scaling(features)
        return torch.stack([member(scaled) for member in self.members]).mean(dim=0)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.slope * self.logits(features) + self.shift)
