"""Shards models with TorchRec: decides where embedding tables live and how they are updated, apart from the models.

One process or many (`torchrun`), CPU (gloo) or GPU (nccl): the same call. Tables get FBGEMM's fused rowwise Adagrad,
which updates the rows that a batch touched inside the backward pass, so no optimizer sees them; a model whose table an
ordinary optimizer trains is copied into every process instead (`replicate`). Each process takes its `local_rows` of a
batch and scales its loss by `loss_scale`: the mean of the processes' gradients is then that of the whole batch, and
several processes learn what one would.
"""

import contextlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor  # type: ignore[attr-defined]
from torch.distributed.optim import (  # type: ignore[attr-defined]
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad


def choose_device() -> torch.device:
    """Returns the GPU of this process where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the group that torchrun describes, or creates one of this process alone; keeps an existing group."""
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


def is_leader() -> bool:
    """Returns whether this process is the one that prints and writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def local_rows(rows: torch.Tensor) -> torch.Tensor:
    """Returns this process's part of a batch's rows; with more processes than rows, some get none."""
    return rows[dist.get_rank() :: dist.get_world_size()]


def loss_scale(rows: int) -> float:
    """Returns the factor for the sum of a process's losses, in a batch of `rows` over all processes."""
    return dist.get_world_size() / rows


def total(value: float) -> float:
    """Returns the sum over all processes, the same in each."""
    summed = torch.tensor(value, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        summed = summed.cuda()
    dist.all_reduce(summed)
    return float(summed)


def shard(module: nn.Module, *, device: torch.device, embedding_rate: float, seed: int) -> DistributedModelParallel:
    """Places the module's EmbeddingBagCollections (built on the meta device) over the processes of the group.

    Initial values of a table follow from `seed` and its name, so they do not depend on where it is placed.
    """
    constraints = {}
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection):
            apply_optimizer_in_backward(RowWiseAdagrad, part.parameters(), {"lr": embedding_rate})
            for config in part.embedding_bag_configs():
                config.init_fn = _initialiser(config.name, config.num_embeddings, seed)
                constraints[config.name] = _placement(device)
    sharders = [EmbeddingBagCollectionSharder()]
    topology = Topology(world_size=dist.get_world_size(), compute_device=device.type)
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    plan = planner.collective_plan(module, sharders, dist.group.WORLD)
    return DistributedModelParallel(module, device=device, plan=plan, sharders=sharders)


def replicate(module: nn.Module, *, device: torch.device) -> DistributedModelParallel:
    """Copies the module into every process and averages their gradients; all start with the first process's weights."""
    return DistributedModelParallel(module, device=device, plan=ShardingPlan(plan={}), sharders=[])


def _placement(device: torch.device) -> ParameterConstraints:
    """Returns constraints that forbid a copy of a table in every process.

    The planner prefers copies for small tables, but the fused update would then see the gradients of its own process
    alone. gloo has no reduce-scatter, which splitting a table by rows needs.
    """
    sharding_types = [ShardingType.TABLE_WISE.value]
    if device.type == "cuda":
        sharding_types += [ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value]
    return ParameterConstraints(sharding_types=sharding_types, compute_kernels=[EmbeddingComputeKernel.FUSED.value])


def _initialiser(name: str, rows: int, seed: int) -> Callable[[torch.Tensor], None]:
    """Returns a function that fills a table with uniform values up to 1 / sqrt(rows), drawn from seed and name."""

    def initialise(weight: torch.Tensor) -> None:
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        values = torch.empty(weight.shape).uniform_(-(rows**-0.5), rows**-0.5, generator=generator)
        with torch.no_grad():
            weight.copy_(values)

    return initialise


def local_tensors(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """Returns every tensor that this process trains, by name: weights, its tables and their optimizer state.

    They share memory with the model, so writing to them changes it.
    """
    state = dict(model.state_dict())
    for name, moments in model.fused_optimizer.state_dict()["state"].items():
        state |= {f"{name}|{key}": value for key, value in moments.items()}
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if isinstance(value, ShardedTensor):
            tensors |= {f"{name}#{number}": part.tensor for number, part in enumerate(value.local_shards())}
        else:
            tensors[name] = value
    return {name: value.detach() for name, value in tensors.items()}


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that an ordinary optimizer trains: all but the tables."""
    return [parameter for name, parameter in model.named_parameters() if "embedding_bags" not in name]


def gather_table(model: DistributedModelParallel, name: str) -> torch.Tensor:
    """Returns the whole embedding table `name` on the CPU, float32 [rows, dim]; every process must call it."""
    key = next(key for key in model.state_dict() if key.endswith(f"embedding_bags.{name}.weight"))
    weight = model.state_dict()[key]
    gathered = torch.empty(weight.size()) if dist.get_rank() == 0 else None
    weight.gather(0, gathered)
    shared = [gathered]
    dist.broadcast_object_list(shared, src=0)
    assert shared[0] is not None
    return shared[0].float()
