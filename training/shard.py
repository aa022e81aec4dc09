"""TorchRec sharding, kept out of the models: where embedding tables live and how they are updated.

One process or many (`torchrun`), CPU (gloo) or GPU (nccl): the same call. Tables get FBGEMM's fused rowwise Adagrad,
which updates the rows that a batch touched inside the backward pass, so no optimizer sees them.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import (  # type: ignore[attr-defined]
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad


def choose_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The group that torchrun describes, or one of this process alone; leaves a group that exists as it is."""
    if dist.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, init_method=Path(folder, "group").as_uri(), rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def shard(module: nn.Module, *, device: torch.device, embedding_rate: float) -> DistributedModelParallel:
    """`module` with its EmbeddingBagCollections (built on the meta device) placed over the processes of the group."""
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection):
            apply_optimizer_in_backward(RowWiseAdagrad, part.parameters(), {"lr": embedding_rate})
    sharders = [EmbeddingBagCollectionSharder()]
    topology = Topology(world_size=dist.get_world_size(), compute_device=device.type)
    plan = EmbeddingShardingPlanner(topology=topology).collective_plan(module, sharders, dist.group.WORLD)
    return DistributedModelParallel(module, device=device, plan=plan, sharders=sharders)


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an ordinary optimizer trains: all but the tables."""
    return [parameter for name, parameter in model.named_parameters() if "embedding_bags" not in name]


def table(model: DistributedModelParallel, name: str) -> torch.Tensor:
    """The whole embedding table `name` on the CPU, float32 [rows, dim]. Every process of the group must call it."""
    key = next(key for key in model.state_dict() if key.endswith(f"embedding_bags.{name}.weight"))
    weight = model.state_dict()[key]
    whole = torch.empty(weight.size()) if dist.get_rank() == 0 else None
    weight.gather(0, whole)
    shared = [whole]
    dist.broadcast_object_list(shared, src=0)
    assert shared[0] is not None
    return shared[0].float()
