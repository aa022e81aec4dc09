"""Fits the sequence model: trains it on histories and returns a scorer of all items.

The network is in training/models/sequence.py.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.benchmark.interactions import Sequences
from training.benchmark.softmax import cross_entropy
from training.core.sharding import local_rows, loss_scale, process_group, replicate, total
from training.core.trainer import LearningCurve, RunPaths, fit
from training.models.sequence import TABLE, Encoder, SequenceModel, sequence_features

Validate = Callable[["FittedSequence"], float]
"""Returns the validation value of a fit; higher is better."""


@dataclass(frozen=True)
class SequenceConfig:
    """Settings of the sequence model."""

    width: int = 64
    blocks: int = 2
    heads: int = 2
    length: int = 50
    """Latest items that the encoder reads."""
    dropout: float = 0.4
    temperature: float = 0.07
    """Logits are cosines divided by this."""
    negatives: int = 2048
    """Uniformly sampled items that a batch's targets compete with; all items, if there are at most twice as many."""
    horizon: int = 1
    """A position's target is sampled from this many next items, in each epoch again: 1 is the very next."""
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    average: float = 0.998
    """Share of its old value that the running average of the weights keeps at each step; the average is validated."""
    epochs: int = 45
    validate_every: int = 3
    patience: int = 3
    """Validations without a better value before training stops."""


@dataclass
class FittedSequence:
    """A fitted model, on the CPU."""

    encoder: Encoder
    table: Tensor
    """float32 [items, D], unit length."""
    curve: LearningCurve

    def vectors(self, inputs: Sequences) -> NDArray[np.float32]:
        """Returns float32 [inputs, D] of unit length; no input may be empty."""
        inputs = inputs.tail(self.encoder.length)
        self.encoder.eval()
        with torch.no_grad():
            lengths = torch.from_numpy(inputs.lengths)
            hidden = self.encoder(self.table[torch.from_numpy(inputs.items)], lengths)
            vectors: NDArray[np.float32] = F.normalize(hidden[lengths.cumsum(0) - 1], dim=-1).numpy()
        return vectors

    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        """Returns cosines, float32 [inputs, items]."""
        cosines: NDArray[np.float32] = self.vectors(inputs) @ self.table.numpy().T
        return cosines


@dataclass(frozen=True, slots=True)
class _Windows:
    """Holds pieces of histories: entries [start, end) are read; those from `first` on have the next one as target."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    first: NDArray[np.int64]
    row_end: NDArray[np.int64]


def cut_windows(learn: Sequences, length: int) -> _Windows:
    """Cuts histories so that every entry but a row's first is a target once, after half a window where there is one."""
    pieces = []
    stride = max(1, length // 2)
    for start, end in zip(learn.offsets[:-1], learn.offsets[1:], strict=True):
        last = end - 1
        while last > start:
            window_start = max(start, last - length)
            first = start if window_start == start else last - stride
            pieces.append((window_start, last, first, end))
            last = first if window_start > start else start
    table = np.array(pieces, dtype=np.int64).reshape(-1, 4)
    return _Windows(*table.T)


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Holds packed windows and their targets."""

    history: Tensor
    lengths: Tensor
    has_target: Tensor
    """bool [T]: which positions have a target."""
    targets: Tensor
    """int64, one for each position with a target."""


def batches(
    learn: Sequences, windows: _Windows, config: SequenceConfig, rng: np.random.Generator
) -> Iterator[TrainingBatch]:
    """Yields the windows in random order, rows of similar length together, so that there is little padding."""
    lengths = windows.end - windows.start
    order = rng.permutation(len(lengths))
    parts = []
    for chunk in np.array_split(order, max(1, math.ceil(len(order) / (16 * config.batch)))):
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        parts += np.array_split(chunk, max(1, math.ceil(len(chunk) / config.batch)))
    rng.shuffle(parts)
    for rows in parts:
        counts = lengths[rows]
        entries = np.repeat(windows.start[rows] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        has_target = entries >= np.repeat(windows.first[rows], counts)
        remaining = (np.repeat(windows.row_end[rows], counts) - 1 - entries)[has_target]
        ahead = 1 if config.horizon == 1 else 1 + rng.integers(0, np.minimum(remaining, config.horizon))
        yield TrainingBatch(
            torch.from_numpy(learn.items[entries]),
            torch.from_numpy(counts),
            torch.from_numpy(has_target),
            torch.from_numpy(learn.items[entries[has_target] + ahead]),
        )


class NegativeSampler:
    """Samples the items that a batch's targets compete with: the targets and uniform ones, or the whole catalogue.

    An item's logit is lowered by the log probability that it is sampled, so that the loss estimates the one over all
    items (Bengio and Senecal, IEEE Transactions on Neural Networks 2008; mixed negatives as in Yang et al., WWW 2020).
    """

    def __init__(self, learn: Sequences, items: int, count: int) -> None:
        self._all_items, self._items, self._count = items <= 2 * count, items, count
        share = np.bincount(learn.items, minlength=items) / len(learn.items)
        self._log_not_target = np.log1p(-np.minimum(share, 0.999))
        self._log_not_random = count * math.log1p(-1 / max(items, 2))

    def sample(self, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Returns items int64 [C], the column of each target among them, and what is added to the items' logits [C]."""
        if self._all_items:
            return torch.arange(self._items), targets, torch.zeros(self._items)
        sampled = np.concatenate((targets.numpy(), rng.integers(0, self._items, self._count)))
        items, columns = np.unique(sampled, return_inverse=True)
        log_not_sampled = self._log_not_random + len(targets) * self._log_not_target[items]
        shift = -np.log(-np.expm1(log_not_sampled))
        return torch.from_numpy(items), torch.from_numpy(columns[: len(targets)]), torch.from_numpy(shift).float()


def batch_loss(
    model: nn.Module, batch: TrainingBatch, negatives: NegativeSampler, *, temperature: float, rng: np.random.Generator
) -> Tensor:
    """Returns the cross entropy of the targets among the sampled items; logits are cosines divided by the temperature.

    It covers this process's rows of the batch, scaled so that the mean over the processes is the loss of the batch.
    """
    items, columns, shift = negatives.sample(batch.targets, rng)
    is_local = torch.zeros(len(batch.lengths), dtype=torch.bool)
    is_local[local_rows(torch.arange(len(is_local)))] = True
    weight = 1.0
    if not is_local.any():  # a process without a row still takes part in the exchange of gradients
        is_local[0], weight = True, 0.0
    entries = is_local.repeat_interleave(batch.lengths)
    has_target, lengths = batch.has_target[entries], batch.lengths[is_local]
    columns = columns[entries[batch.has_target]]
    device = next(model.parameters()).device
    features = sequence_features(batch.history[entries], lengths, items).to(device)
    hidden, vectors = model(features, lengths.to(device))
    hidden = F.normalize(hidden[has_target.to(device)], dim=-1) / temperature
    loss = cross_entropy(hidden, F.normalize(vectors, dim=-1), columns.to(device), shift.to(device))
    return loss * (weight * len(columns) * loss_scale(len(batch.targets)))


def fit_sequence(
    learn: Sequences,
    *,
    items: int,
    config: SequenceConfig,
    validate: Validate | None,
    device: torch.device,
    seed: int,
    seconds: float = math.inf,
    label: str = "sequence",
    paths: RunPaths | None = None,
) -> FittedSequence:
    """Trains until the validation value stops growing and returns the best epoch; without `validate`, the last epoch.

    No epoch starts once the epochs before took longer than `seconds`. Under torchrun every process calls it, and all
    return the same.
    Raises ValueError when no history has two items.
    """
    windows = cut_windows(learn, config.length)
    if not len(windows.start):
        raise ValueError("there is nothing to learn: no history has two items")
    torch.manual_seed(seed)
    encoder = Encoder(
        width=config.width, blocks=config.blocks, heads=config.heads, dropout=config.dropout, length=config.length
    )
    negatives = NegativeSampler(learn, items, config.negatives)
    with process_group(device):
        model = replicate(SequenceModel(items=items, encoder=encoder), device=device)
        average = AveragedModel(model.module, multi_avg_fn=get_ema_multi_avg_fn(config.average))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

        def epoch(generator: torch.Generator) -> float:
            rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
            losses = []
            for batch in batches(learn, windows, config, rng):
                # bf16 where the GPU has it; at these widths a CPU loses more in conversions than it gains.
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    loss = batch_loss(model, batch, negatives, temperature=config.temperature, rng=rng)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                average.update_parameters(model.module)
                losses.append(loss.item())
            return float(np.mean(losses))

        def negated_mean() -> float:
            assert validate is not None
            fitted = _snapshot(cast(SequenceModel, average.module), LearningCurve())
            return -total(validate(fitted)) / dist.get_world_size()

        curve = fit(
            model, optimizer, epoch=epoch, validate=negated_mean if validate else None, epochs=config.epochs,
            patience=config.patience * config.validate_every, seed=seed, label=label, paths=paths,
            average=average, validate_every=config.validate_every, seconds=seconds,
        )  # fmt: skip
        return _snapshot(model.module, curve)


def _snapshot(model: SequenceModel, curve: LearningCurve) -> FittedSequence:
    """Copies the current weights into a fitted model on the CPU."""
    table = model.embeddings.embeddings[TABLE].weight.detach().float().cpu()
    return FittedSequence(copy.deepcopy(model.encoder).cpu(), F.normalize(table, dim=-1), curve)
