"""A training run that can be killed: all it needs to go on, in one safetensors file, written whole or not at all.

Knows nothing of models: tensors by name, and facts as JSON. No pickle is involved, so a checkpoint is only data.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FACTS = "facts"


def save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Replace the checkpoint at `path`; a kill in the middle leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, half, {FACTS: json.dumps(facts)}
    )
    half.replace(path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors (on the CPU) and facts of the checkpoint at `path`, None when there is none."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        return tensors, json.loads(file.metadata()[FACTS])


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name and state name."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}|{key}": value if isinstance(value, Tensor) else torch.tensor(float(value))
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, part = key.partition("|")
        parameter = parameters[name]
        # A fused optimizer keeps its step counts beside the parameters, too.
        optimizer.state[parameter][part] = value.to(parameter.device)
