"""Trains a model by epochs until its validation value stops improving, and keeps the weights of the best epoch.

Knows nothing of a model's inputs: an epoch and its validation come in as functions. Each epoch draws from a seed of its
own, so a killed run resumes from its last checkpoint and ends as an undisturbed run would. With several processes
(`torchrun`), each keeps a checkpoint of its own tables.
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

from infra.progress import progress_bar
from training.core import checkpoints
from training.core.sharding import is_leader, local_tensors, total
from training.core.tracking import Tracker, health_metrics

logger = logging.getLogger(__name__)

RunIdentity = dict[str, Any]
"""Configuration and data of a run, as JSON: a checkpoint is resumed only by a run with an equal one."""


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where the fits of one run write checkpoints and curves, and which run it is."""

    checkpoints: Path
    """Folder of checkpoints."""
    curves: Path
    """Folder of TensorBoard files, with one folder for each fit."""
    identity: RunIdentity


@dataclass
class LearningCurve:
    """Losses, durations and validation values of a fit, epoch by epoch."""

    losses: list[float] = field(default_factory=list)
    """Mean training loss of each epoch."""
    seconds: list[float] = field(default_factory=list)
    """Wall time of each training epoch, without validation."""
    values: list[float | None] = field(default_factory=list)
    """Validation value after each epoch, None after an epoch without validation; empty when the fit never validates."""
    start: float | None = None
    """Validation value before the first epoch; None when the fit never validates."""
    best_epoch: int = 0
    """Number of epochs that the kept weights were trained for; 0 where no epoch improved on the start."""

    @property
    def best(self) -> float:
        """Returns the validation value of the kept weights; infinite when the fit never validates."""
        value = self.values[self.best_epoch - 1] if self.best_epoch and self.values else self.start
        return math.inf if value is None else value


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
) -> LearningCurve:
    """Trains the model in place, leaves the weights of the best epoch in it and returns the curve.

    epoch: trains one epoch with the random numbers of the generator and returns its mean loss (of this process's rows,
    scaled by sharding.loss_scale). validate: returns the validation value, lower is better, the same in every process;
    None trains all epochs and keeps the last. patience: epochs without a better value before training stops. average: a
    running average of the weights that `epoch` updates; it is then what is validated and kept. validate_every: epochs
    from one validation to the next; the last epoch is always validated. seconds: no epoch starts once the epochs before
    took longer than this together.
    """
    checkpointer = _Checkpointer(model, optimizer, average=average, paths=paths, label=label, seed=seed)
    curve = checkpointer.curve
    model.eval()
    if validate and not curve.losses:
        with torch.no_grad():
            curve.start = validate()
    progress = progress_bar(range(len(curve.losses), epochs), desc=label, unit="epoch", disable=not is_leader())
    for number in progress:
        if (validate and number - curve.best_epoch >= patience) or sum(curve.seconds) > seconds:
            break
        # Dropout differs between the processes; what they sample together does not.
        torch.manual_seed((seed * 1009 + number) * 4099 + dist.get_rank())
        started = time.perf_counter()
        model.train()
        loss = epoch(torch.Generator().manual_seed(seed * 1009 + number))
        curve.seconds.append(total(time.perf_counter() - started) / dist.get_world_size())
        curve.losses.append(total(loss) / dist.get_world_size())
        health = health_metrics(model)
        model.eval()
        last = number + 1 == epochs or sum(curve.seconds) > seconds
        value = None
        if validate and (last or (number + 1) % validate_every == 0):
            with torch.no_grad():
                value = validate()
        if not validate or (value is not None and value < curve.best):
            checkpointer.keep_best(number + 1)
        if validate:
            curve.values.append(value)
        progress.set_postfix(loss=f"{curve.losses[-1]:.4f}", best=f"{curve.best:.4f}")
        checkpointer.save_epoch(number, health)
    checkpointer.restore_best()
    model.eval()
    return curve


class _Checkpointer:
    """Holds the best weights and the curve so far; where paths are given, writes both to disk and resumes."""

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizer: torch.optim.Optimizer,
        *,
        average: AveragedModel | None,
        paths: RunPaths | None,
        label: str,
        seed: int,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._live = local_tensors(model)
        self._average: dict[str, Tensor] = average.state_dict() if average else {}
        self._validated = average.module.state_dict() if average else self._live
        self._best = {name: value.cpu().clone() for name, value in self._validated.items()}
        self.curve = LearningCurve()
        self._path: Path | None = None
        self._tracker: Tracker | None = None
        if paths is None:
            return
        name = label.replace("/", "-of-")
        self._identity = {**paths.identity, "label": label, "seed": seed, "processes": dist.get_world_size()}
        self._path = paths.checkpoints / f"{name}.{dist.get_rank()}.safetensors"
        self._resume(self._path)
        if is_leader():
            self._tracker = Tracker(paths.curves / name)
            for number in range(len(self.curve.losses)):  # a resumed run shows its whole curve
                self._write_curve_point(number, {})

    def keep_best(self, epoch: int) -> None:
        """Copies the current weights as the best, after `epoch` epochs."""
        self.curve.best_epoch = epoch
        for name, value in self._validated.items():
            self._best[name].copy_(value)

    def restore_best(self) -> None:
        """Puts the best weights into the model and closes the curve's files."""
        for name, value in self._best.items():
            self._live[name].copy_(value)
        if self._tracker:
            self._tracker.close()

    def save_epoch(self, number: int, health: dict[str, float]) -> None:
        """Writes the curve point and the checkpoint of epoch `number`, counted from 0."""
        self._write_curve_point(number, health)
        if self._path is None:
            return
        optimizer_state = checkpoints.optimizer_tensors(self._model, self._optimizer)
        groups = {"live": self._live, "average": self._average, "best": self._best, "optimizer": optimizer_state}
        dist.barrier()  # no process writes an epoch that another has not finished
        checkpoints.save(
            self._path,
            {f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()},
            {"run": self._identity, "curve": asdict(self.curve)},
        )

    def _write_curve_point(self, number: int, health: dict[str, float]) -> None:
        if self._tracker:
            value = self.curve.values[number] if self.curve.values else None
            validation = {} if value is None else {"validation": value}
            self._tracker.write({"loss": self.curve.losses[number]} | validation | health, step=number)

    def _resume(self, path: Path) -> None:
        """Resumes from the checkpoint if every process has one of this run and of the same epoch."""
        checkpoint = checkpoints.load(path)
        tensors, metadata = checkpoint or ({}, {})
        epochs = len(metadata["curve"]["losses"]) if metadata.get("run") == self._identity else 0
        epochs_of_all = total(epochs)
        if total(epochs > 0 and epochs_of_all == epochs * dist.get_world_size()) < dist.get_world_size():
            if checkpoint:
                logger.info("%s belongs to another run, or to another epoch than in the other processes: ignored", path)
            return
        groups: dict[str, dict[str, Tensor]] = {"live": {}, "average": {}, "best": {}, "optimizer": {}}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = value
        for group, current in (("live", self._live), ("average", self._average)):
            for name, value in groups[group].items():
                current[name].copy_(value)
        self._best = groups["best"]
        checkpoints.restore_optimizer(self._model, self._optimizer, groups["optimizer"])
        self.curve = LearningCurve(**metadata["curve"])
        logger.info("resuming %s after epoch %d", self._identity["label"], epochs)
