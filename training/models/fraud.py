"""The networks of the fraud detector (DCN-v2 cross beside an MLP) and of its baseline, which take raw features.

They contain the scaling, so the exported model needs only features/fraud/velocity.py in front of it.
Knows nothing of data, training or thresholds.
"""

import copy

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import CrossNet

CLIP = 6.0
"""Standard deviations at which a scaled feature is clipped, so that an absurd amount does not outweigh the rest."""


class Scaling(nn.Module):
    """Scales features to zero mean and unit variance, clipped at CLIP; adds the log1p of each skewed feature.

    The logarithm separates small amounts, the amount itself separates the few huge ones.
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
        """Appends the logarithms of the skewed features."""
        return torch.cat((features, torch.log1p(features[:, self.skewed].clamp_min(0.0))), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Maps float32 [N, F] to float32 [N, F + S]."""
        scaled: Tensor = (self._unroll(features) - self.mean) / self.deviation
        return scaled.clamp(-CLIP, CLIP)


class Logistic(nn.Module):
    """Logistic regression with given weights: the baseline, with the detector's inputs and outputs."""

    def __init__(self, weights: Tensor, intercept: Tensor) -> None:
        """weights: [F]; intercept: [1]."""
        super().__init__()
        self.out = nn.Linear(len(weights), 1)
        with torch.no_grad():
            self.out.weight.copy_(weights[None, :])
            self.out.bias.copy_(intercept)

    def forward(self, scaled: Tensor) -> Tensor:
        """Maps float32 [N, F] to logits float32 [N]."""
        logits: Tensor = self.out(scaled)
        return logits.squeeze(1)


class FraudDetector(nn.Module):
    """Adds crosses and an MLP to the baseline's logits.

    It starts as exactly the baseline, since the last layer starts at zero: with a few hundred frauds to learn from,
    most of what can be learnt is linear. The crosses are those of Wang et al., DCN V2: Improved Deep & Cross Network
    (2021), in the parallel form.
    """

    def __init__(
        self, baseline: Logistic, features: int, *, cross_layers: int, hidden: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.baseline = copy.deepcopy(baseline).requires_grad_(False)
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
        """Maps scaled features float32 [N, F] to logits of fraud float32 [N]."""
        logits: Tensor = self.out(torch.cat((self.cross(scaled), self.deep(scaled)), dim=1))
        return self.baseline(scaled) + logits.squeeze(1)  # type: ignore[no-any-return]


class ServedDetector(nn.Module):
    """The exported model: scales raw features, averages the members' logits and calibrates them.

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
        """Returns the mean of the members' logits, float32 [N], before calibration."""
        scaled = self.scaling(features)
        return torch.stack([member(scaled) for member in self.members]).mean(dim=0)

    def forward(self, features: Tensor) -> Tensor:
        """Maps raw features float32 [N, F] to calibrated probabilities float32 [N]."""
        return torch.sigmoid(self.slope * self.logits(features) + self.shift)
