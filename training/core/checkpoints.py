"""Reads and writes checkpoints: all that a killed training run needs to resume, in one safetensors file.

A checkpoint is written whole or not at all. Knows nothing of models: only named tensors, and metadata as JSON. No
pickle is involved, so a checkpoint is data alone.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

METADATA_KEY = "facts"


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Replaces the checkpoint at `path`; a kill while writing leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".half")
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        unfinished,
        {METADATA_KEY: json.dumps(metadata)},
    )
    unfinished.replace(path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns tensors (on the CPU) and metadata of the checkpoint at `path`, or None when there is none."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        return tensors, json.loads(file.metadata()[METADATA_KEY])


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimizer's state with keys `parameter name|state name`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}|{key}": value if isinstance(value, Tensor) else torch.tensor(float(value))
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back a state from `optimizer_tensors`, on the device of each parameter."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, state_name = key.partition("|")
        parameter = parameters[name]
        # A fused optimizer keeps its step counts beside the parameters, too.
        optimizer.state[parameter][state_name] = value.to(parameter.device)
