"""TorchRec sharding, kept out of the models: where embedding tables live and how they are updated.

One process or many (`torchrun`), CPU (gloo) or GPU (nccl): the same call. Tables get FBGEMM's fused rowwise Adagrad,
which updates the rows that a batch touched inside the backward pass, so no optimizer sees them; a model whose table an
ordinary optimizer trains is copied into every process instead (`replicate`). Each process takes its `share` of a batch
and scales its loss by `loss_scale`: the mean of the processes' gradients is then that of the whole batch, and several
processes learn what one would.
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


def is_leader() -> bool:
    """Whether this process is the one that speaks and writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(rows: torch.Tensor) -> torch.Tensor:
    """This process's part of the rows of a batch; with more processes than rows, some get none."""
    return rows[dist.get_rank() :: dist.get_world_size()]


def loss_scale(rows: int) -> float:
    """What a process multiplies the sum of its losses with, in a batch of `rows` over all processes."""
    return dist.get_world_size() / rows


def total(value: float) -> float:
    """The sum over all processes, the same in each."""
    whole = torch.tensor(value, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        whole = whole.cuda()
    dist.all_reduce(whole)
    return float(whole)


def shard(module: nn.Module, *, device: torch.device, embedding_rate: float, seed: int) -> DistributedModelParallel:
    """`module` with its EmbeddingBagCollections (built on the meta device) placed over the processes of the group.

    Tables start from `seed` and their name, so a table's first values do not depend on where it is placed.
    """
    constraints = {}
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection):
            apply_optimizer_in_backward(RowWiseAdagrad, part.parameters(), {"lr": embedding_rate})
            for config in part.embedding_bag_configs():
                config.init_fn = _start(config.name, config.num_embeddings, seed)
                constraints[config.name] = _placement(device)
    sharders = [EmbeddingBagCollectionSharder()]
    topology = Topology(world_size=dist.get_world_size(), compute_device=device.type)
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    plan = planner.collective_plan(module, sharders, dist.group.WORLD)
    return DistributedModelParallel(module, device=device, plan=plan, sharders=sharders)


def replicate(module: nn.Module, *, device: torch.device) -> DistributedModelParallel:
    """`module` with a copy in every process, their gradients averaged; all start as the first process's."""
    return DistributedModelParallel(module, device=device, plan=ShardingPlan(plan={}), sharders=[])


def _placement(device: torch.device) -> ParameterConstraints:
    """Never a copy in every process: the planner likes that for small tables, and the fused update would then see the
    gradients of its own process alone. gloo has no reduce-scatter, which splitting a table by rows needs."""
    kinds = [ShardingType.TABLE_WISE.value]
    if device.type == "cuda":
        kinds += [ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value]
    return ParameterConstraints(sharding_types=kinds, compute_kernels=[EmbeddingComputeKernel.FUSED.value])


def _start(name: str, rows: int, seed: int) -> Callable[[torch.Tensor], None]:
    def start(weight: torch.Tensor) -> None:
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        values = torch.empty(weight.shape).uniform_(-(rows**-0.5), rows**-0.5, generator=generator)
        with torch.no_grad():
            weight.copy_(values)

    return start


def local_tensors(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """Every tensor that this process trains, by name, to read and to write: weights, its tables, their optimizer."""
    state = dict(model.state_dict())
    for name, moments in model.fused_optimizer.state_dict()["state"].items():
        state |= {f"{name}|{key}": value for key, value in moments.items()}
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if isinstance(value, ShardedTensor):
            found |= {f"{name}#{place}": one.tensor for place, one in enumerate(value.local_shards())}
        else:
            found[name] = value
    return {name: value.detach() for name, value in found.items()}


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
