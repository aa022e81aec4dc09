"""Writes the curves of a training run as TensorBoard event files, and measures the health of a model.

`tensorboard --logdir var/runs` shows the curves; writing them needs no TensorBoard.
"""

from pathlib import Path

import torch
from tensorboardX import SummaryWriter
from torch import nn


class Tracker:
    """Writes the curves of one fit into one folder."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def write(self, values: dict[str, float], *, step: int) -> None:
        """Writes one point of each named curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()


def health_metrics(model: nn.Module) -> dict[str, float]:
    """Returns norms that show a failing run: of the last step's gradients, of embeddings, and the share of dead rows.

    health/gradient_norm: L2 over all parameters (NaN or inf: the run diverged); health/embedding_norm: mean row norm;
    health/dead_rows: share of embedding rows with a norm below a hundredth of that mean.
    """
    gradients = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    metrics = {"health/gradient_norm": float(torch.stack(gradients).norm()) if gradients else 0.0}
    tables = [
        value for name, value in model.named_parameters() if "embedding" in name and value.dim() == 2 and len(value)
    ]
    if tables:
        norms = torch.cat([table.detach().norm(dim=1) for table in tables])
        metrics["health/embedding_norm"] = float(norms.mean())
        metrics["health/dead_rows"] = float((norms < norms.mean() / 100).float().mean())
    return metrics
