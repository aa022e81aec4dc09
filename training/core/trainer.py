"""The loop that recommenders are fitted by: epochs until validation stops getting better, the best one kept.

Knows nothing of a model's inputs: an epoch and its judgement come in as functions. Each epoch draws from a seed of its
own, so a run that was killed goes on from its checkpoint to what it would have been undisturbed. With several
processes (`torchrun`), each keeps the checkpoint of its own tables.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torchrec.distributed.model_parallel import DistributedModelParallel
from tqdm import tqdm

from training.core import checkpoints
from training.core.sharding import is_leader, local_tensors, total
from training.core.tracking import Tracker, health

logger = logging.getLogger(__name__)

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where the fits of one run leave their traces."""

    checkpoints: Path
    """Folder of checkpoints; those of another configuration, seed or data are not gone on from."""
    curves: Path
    """Folder of TensorBoard files, one folder a fit."""
    facts: Facts
    """What a checkpoint must agree on: the run's configuration and data, as JSON."""


@dataclass
class TrainingHistory:
    """How a fit went."""

    losses: list[float] = field(default_factory=list)
    """Mean training loss of each epoch."""
    seconds: list[float] = field(default_factory=list)
    """Wall time of each epoch of training, judging left out."""
    values: list[float | None] = field(default_factory=list)
    """The judgement after each epoch, None after one that was not judged; empty without a judge."""
    start: float | None = None
    """The judgement before the first epoch; None without a judge."""
    best_epoch: int = 0
    """Epochs that the kept weights have seen; 0 where no epoch made the start better."""

    @property
    def best(self) -> float:
        """The judgement of the kept weights; infinite without a judge."""
        found = self.values[self.best_epoch - 1] if self.best_epoch and self.values else self.start
        return math.inf if found is None else found


def fit(
    model: DistributedModelParallel,
    optimizer: torch.optim.Optimizer,
    *,
    epoch: Callable[[torch.Generator], float],
    validate: Callable[[], float] | None,
    epochs: int,
    patience: int,
    seed: int,
    label: str,
    paths: RunPaths | None,
    average: AveragedModel | None = None,
    validate_every: int = 1,
    seconds: float = math.inf,
) -> TrainingHistory:
    """Train the model in place and leave the weights of the best epoch in it.

    epoch: trains one epoch, drawing from the generator, and returns its mean loss (of this process's share, scaled as
    sharding.loss_scale says); judge: the validation value, lower is better, the same in every process; without it all
    epochs are run and the last one is kept. average: a running average of the model's weights, updated by `epoch`, that
    is what `judge` looks at and what is kept. judge_every: epochs from one judgement to the next; the last epoch is
    always judged. No epoch begins when those before took `seconds` together.
    """
    kept = _BestCheckpoint(model, optimizer, average=average, watch=paths, label=label, seed=seed)
    curve = kept.curve
    model.eval()
    if validate and not curve.losses:
        with torch.no_grad():
            curve.start = validate()
    progress = tqdm(range(len(curve.losses), epochs), desc=label, unit="epoch", leave=False, disable=not is_leader())
    for number in progress:
        if (validate and number - curve.best_epoch >= patience) or sum(curve.seconds) > seconds:
            break
        # Dropout differs between the processes, what is drawn together does not.
        torch.manual_seed((seed * 1009 + number) * 4099 + dist.get_rank())
        started = time.perf_counter()
        model.train()
        loss = epoch(torch.Generator().manual_seed(seed * 1009 + number))
        curve.seconds.append(total(time.perf_counter() - started) / dist.get_world_size())
        curve.losses.append(total(loss) / dist.get_world_size())
        facts = health(model)
        model.eval()
        last = number + 1 == epochs or sum(curve.seconds) > seconds
        value = None
        if validate and (last or (number + 1) % validate_every == 0):
            with torch.no_grad():
                value = validate()
        if not validate or (value is not None and value < curve.best):
            kept.keep(number + 1)
        if validate:
            curve.values.append(value)
        progress.set_postfix(loss=f"{curve.losses[-1]:.4f}", best=f"{curve.best:.4f}")
        kept.write(number, facts)
    kept.restore()
    model.eval()
    return curve


class _BestCheckpoint:
    """The best weights so far and the curve to them; in memory, and where `watch` says, on disk."""

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizer: torch.optim.Optimizer,
        *,
        average: AveragedModel | None,
        watch: RunPaths | None,
        label: str,
        seed: int,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._live = local_tensors(model)
        self._average: dict[str, Tensor] = average.state_dict() if average else {}
        self._judged = average.module.state_dict() if average else self._live
        self._best = {name: value.cpu().clone() for name, value in self._judged.items()}
        self.curve = TrainingHistory()
        self._path: Path | None = None
        self._tracker: Tracker | None = None
        if watch is None:
            return
        name = label.replace("/", "-of-")
        self._facts = {**watch.facts, "label": label, "seed": seed, "processes": dist.get_world_size()}
        self._path = watch.checkpoints / f"{name}.{dist.get_rank()}.safetensors"
        self._resume(self._path)
        if is_leader():
            self._tracker = Tracker(watch.curves / name)
            for number in range(len(self.curve.losses)):  # a run that goes on draws its whole curve
                self._draw(number, {})

    def keep(self, epoch: int) -> None:
        self.curve.best_epoch = epoch
        for name, value in self._judged.items():
            self._best[name].copy_(value)

    def restore(self) -> None:
        for name, value in self._best.items():
            self._live[name].copy_(value)
        if self._tracker:
            self._tracker.close()

    def write(self, number: int, facts: dict[str, float]) -> None:
        """Write down the epoch `number`, counted from 0."""
        self._draw(number, facts)
        if self._path is None:
            return
        moments = checkpoints.optimizer_tensors(self._model, self._optimizer)
        parts = {"live": self._live, "average": self._average, "best": self._best, "optimizer": moments}
        dist.barrier()  # no process is an epoch ahead of another when it writes
        checkpoints.save(
            self._path,
            {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()},
            {"run": self._facts, "curve": asdict(self.curve)},
        )

    def _draw(self, number: int, facts: dict[str, float]) -> None:
        if self._tracker:
            value = self.curve.values[number] if self.curve.values else None
            known = {} if value is None else {"validation": value}
            self._tracker.write({"loss": self.curve.losses[number]} | known | facts, step=number)

    def _resume(self, path: Path) -> None:
        """Go on where the checkpoint is, if every process has one of this run and of the same epoch."""
        found = checkpoints.load(path)
        tensors, known = found or ({}, {})
        mine = len(known["curve"]["losses"]) if known.get("run") == self._facts else 0
        together = total(mine)
        if total(mine > 0 and together == mine * dist.get_world_size()) < dist.get_world_size():
            if found:
                logger.info("%s is of another run, or another epoch than the other processes': starting anew", path)
            return
        parts: dict[str, dict[str, Tensor]] = {"live": {}, "average": {}, "best": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        for part, place in (("live", self._live), ("average", self._average)):
            for name, value in parts[part].items():
                place[name].copy_(value)
        self._best = parts["best"]
        checkpoints.restore_optimizer(self._model, self._optimizer, parts["optimizer"])
        self.curve = TrainingHistory(**known["curve"])
        logger.info("going on after epoch %d of %s", mine, self._facts["label"])
