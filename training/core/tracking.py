"""What happens while a model trains, as TensorBoard event files that any viewer of them shows, and its health.

`tensorboard --logdir var/runs` draws the curves; the writer needs no TensorBoard.
"""

from pathlib import Path

import torch
from tensorboardX import SummaryWriter
from torch import nn


class Tracker:
    """One run's curves, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def write(self, facts: dict[str, float], *, step: int) -> None:
        for name, value in facts.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def health(model: nn.Module) -> dict[str, float]:
    """Norms that tell a sick run: gradients of the last step, embeddings, and embedding rows that died or blew up.

    health/gradient_norm: L2 over all parameters (NaN or inf: the run diverged); health/embedding_norm: mean row norm;
    health/dead_rows: share of embedding rows with a norm below a hundredth of that mean.
    """
    gradients = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    facts = {"health/gradient_norm": float(torch.stack(gradients).norm()) if gradients else 0.0}
    tables = [
        value for name, value in model.named_parameters() if "embedding" in name and value.dim() == 2 and len(value)
    ]
    if tables:
        norms = torch.cat([table.detach().norm(dim=1) for table in tables])
        facts["health/embedding_norm"] = float(norms.mean())
        facts["health/dead_rows"] = float((norms < norms.mean() / 100).float().mean())
    return facts
