"""Trains the fraud detector, judges it against logistic regression on later time, and exports what may be served.

Time is cut as it would have been lived: train | validation | gap | test | too young to be judged. A label counts only
if it was known when the test began; the gap is the time that labels take; payments younger than that at the data's
end are left out, since most of their frauds are not known yet. Knows nothing of Feast, releases or the live scorer.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from features.contract import columns
from features.contract.drift import reference_distributions
from features.contract.release import FRAUD, FraudModelCard, GateResult
from features.contract.timestamps import DAY
from features.fraud.velocity import FEATURES, SKEWED
from features.store import views
from infra.settings import Settings
from training.core.export import export
from training.core.ranges import Count, Dropout, Natural, Part, Positive, Weight, Widths
from training.fraud.metrics import Outcomes, alert_thresholds, quality
from training.models.fraud import FraudDetector, Logistic, Scaling, ServedDetector

logger = logging.getLogger(__name__)

MODEL, BASELINE = "dcn_v2", "logistic_regression"
METRIC = "average_precision"
LABEL_TIME = "label_time"


class TooFewFraudsError(Exception):
    """A part of the time split holds no fraud, or nothing else: nothing can be learned or judged."""


@dataclass(frozen=True, slots=True)
class FraudConfig:
    """One run, whole."""

    test_days: Count = 14
    validation_days: Count = 10
    label_delay_days: Natural = 14
    """Payments this old have their label; also the gap before the test."""
    cross_layers: Count = 2
    hidden: Widths = (64, 32)
    dropout: Dropout = 0.3
    noise: Weight = 0.3
    """Deviation of the noise on scaled features in training: keeps the net from knowing terminals by their traffic."""
    members: Count = 2
    """Networks whose logits are averaged."""
    epochs: Count = 8
    patience: Count = 4
    batch_rows: Count = 1024
    learning_rate: Positive = 3e-3
    weight_decay: Weight = 0.1
    fraud_weight: Positive = 1.0
    """How many honest payments one fraud weighs in the loss; calibration takes it out again."""
    alert_share: Part = 0.01
    """Alerts that the risk team can look at, as a share of the payments."""
    decline_precision: Part = 0.9
    """Share of fraud among declined payments on validation that declining asks for."""
    feature_service: str = "fraud_v1"


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers of the parts; all of the time before the test is `labels_known` by its start."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    test_start: int
    """Milliseconds since the epoch."""


def load_examples(settings: Settings) -> pa.Table:
    """Every payment's features beside what is known of it: see `labelled`."""
    offline = settings.offline_dir
    features = ds.dataset(offline / views.TRANSACTION_FEATURES, format="parquet").to_table()
    return labelled(features, ds.dataset(offline / columns.LABELS, format="parquet").to_table())


def labelled(features: pa.Table, labels: pa.Table) -> pa.Table:
    """One row a transaction, in time order, with its newest features and newest label.

    features: transaction_id, event_timestamp, created_timestamp, card_id and FEATURES; labels: transaction_id,
    event_time (int64 ms, when known), fraud. Adds fraud (false where nothing is known) and LABEL_TIME (int64 ms, null
    where nothing is known).
    """
    rows = _newest(features, columns.TRANSACTION, columns.CREATED_TIMESTAMP)
    told = _newest(labels, columns.TRANSACTION, "event_time").select([columns.TRANSACTION, "fraud", "event_time"])
    told = told.rename_columns([columns.TRANSACTION, "fraud", LABEL_TIME])
    joined = rows.join(told, keys=columns.TRANSACTION, join_type="left outer")
    joined = joined.set_column(
        joined.column_names.index("fraud"), "fraud", joined["fraud"].combine_chunks().fill_null(False)
    )
    return joined.sort_by([(columns.EVENT_TIMESTAMP, "ascending"), (columns.TRANSACTION, "ascending")])


def _newest(table: pa.Table, key: str, moment: str) -> pa.Table:
    """The last row by `moment` of each `key`."""
    ordered = table.sort_by([(moment, "ascending")])
    numbered = pa.table({"key": ordered[key], "row": np.arange(ordered.num_rows)})
    return ordered.take(numbered.group_by("key").aggregate([("row", "max")])["row_max"])


def split(times: NDArray[np.int64], config: FraudConfig) -> Split:
    """Cut ascending `times` (int64 ms, shape [N]) into the parts of one run; the last moment is the data's end."""
    delay = config.label_delay_days * DAY
    test_end = int(times[-1]) - delay
    test_start = test_end - config.test_days * DAY
    known_end = test_start - delay
    cuts = np.searchsorted(times, [known_end - config.validation_days * DAY, known_end, test_start, test_end])
    rows = np.arange(len(times))
    return Split(rows[: cuts[0]], rows[cuts[0] : cuts[1]], rows[cuts[2] : cuts[3]], test_start)


def train_fraud(config: FraudConfig, *, examples: pa.Table, out: Path, seed: int) -> FraudModelCard:
    """Train, judge and export into the folder `out`: the ONNX of what may be served (input `features`,
    float32 [batch, F]; output `probability`, float32 [batch]) and its weights as safetensors.

    examples: as `labelled` gives them. What is served is the detector if its average precision on the test days is
    above the floor's, else the floor. Raises TooFewFraudsError.
    """
    started = time.perf_counter()
    features, outcomes = _arrays(examples)
    parts = split(outcomes.times, config)
    known = outcomes.truth & (outcomes.known_times <= parts.test_start)
    for name, rows in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
        frauds = int((outcomes.truth if name == "test" else known)[rows].sum())
        if not 0 < frauds < len(rows):
            raise TooFewFraudsError(f"the {name} days hold {len(rows)} payments and {frauds} frauds; give more days")
    scaling = Scaling(torch.from_numpy(features[parts.train]), skewed_features())
    candidates = fit_candidates(config, scaling, features=features, known=known, parts=parts, seed=seed)
    budget = config.alert_share * len(parts.validation) / config.validation_days
    metrics = {
        name: quality(probabilities(model, features[parts.test]), outcomes, test=parts.test, alerts_per_day=budget)
        for name, model in candidates.items()
    }
    gate = _gate(metrics)
    served = candidates[gate.served]
    review, decline = alert_thresholds(
        probabilities(served, features[parts.validation]),
        known[parts.validation],
        alerts=round(budget * config.validation_days),
        decline_precision=config.decline_precision,
    )
    out.mkdir(parents=True, exist_ok=True)
    sample = torch.from_numpy(features[parts.validation][:512])
    export(served, out / FRAUD, {"features": sample}, output="probability")
    for name, values in metrics.items():
        logger.info("fraud %s: %s", name, ", ".join(f"{metric} {value:.3f}" for metric, value in values.items()))
    logger.info("fraud: %s is served; took %.1f s", gate.served, time.perf_counter() - started)
    honest = features[parts.train][~known[parts.train]]
    return FraudModelCard(
        feature_service=config.feature_service,
        gate=gate,
        features=FEATURES,
        reference_values=tuple(float(value) for value in np.median(honest, axis=0)),
        review_threshold=review,
        decline_threshold=decline,
        alert_budget_per_day=budget,
        references=reference_distributions(features[parts.train], FEATURES),
    )


def moments(examples: pa.Table) -> NDArray[np.int64]:
    """When each payment happened, milliseconds since the epoch."""
    stamps = examples[columns.EVENT_TIMESTAMP].cast(pa.timestamp("ms", tz="UTC"), safe=False)
    times: NDArray[np.int64] = stamps.cast(pa.int64()).to_numpy()
    return times


def _arrays(examples: pa.Table) -> tuple[NDArray[np.float32], Outcomes]:
    """Features [N, F], and what came of each payment."""
    features = np.column_stack([examples[name].to_numpy().astype(np.float32) for name in FEATURES])
    outcomes = Outcomes(
        moments(examples),
        np.asarray(examples[columns.CARD].to_pylist(), dtype=object),
        examples["fraud"].to_numpy().astype(bool),
        examples[LABEL_TIME].fill_null(np.iinfo(np.int64).max).to_numpy(),
    )
    return features, outcomes


def skewed_features() -> Tensor:
    """Indices of SKEWED in FEATURES, int64."""
    return torch.tensor([number for number, name in enumerate(FEATURES) if name in SKEWED])


def fit_candidates(
    config: FraudConfig,
    scaling: Scaling,
    *,
    features: NDArray[np.float32],
    known: NDArray[np.bool_],
    parts: Split,
    seed: int,
) -> dict[str, ServedDetector]:
    """The detector and its floor by name, learned from the rows parts.train; parts.validation chooses the epoch."""
    floor = _fit_baseline(scaling, features[parts.train], known[parts.train])
    threads = torch.get_num_threads()
    # Matrices this small are multiplied faster by one thread than shared among several.
    torch.set_num_threads(1)
    try:
        detector = _fit_detector(config, scaling, floor, features=features, known=known, parts=parts, seed=seed)
    finally:
        torch.set_num_threads(threads)
    return {MODEL: detector, BASELINE: ServedDetector(scaling, [floor]).eval()}


def _fit_baseline(scaling: Scaling, features: NDArray[np.float32], known: NDArray[np.bool_]) -> Logistic:
    with torch.no_grad():
        scaled = scaling(torch.from_numpy(features)).numpy()
    learned = LogisticRegression(max_iter=1_000).fit(scaled, known)
    return Logistic(
        torch.tensor(learned.coef_[0], dtype=torch.float32), torch.tensor(learned.intercept_, dtype=torch.float32)
    )


def _fit_detector(
    config: FraudConfig,
    scaling: Scaling,
    floor: Logistic,
    *,
    features: NDArray[np.float32],
    known: NDArray[np.bool_],
    parts: Split,
    seed: int,
) -> ServedDetector:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        learn, check = (
            scaling(torch.from_numpy(features[rows])).to(device) for rows in (parts.train, parts.validation)
        )
    targets = torch.from_numpy(known[parts.train]).float().to(device)
    members: list[nn.Module] = [
        _fit_member(config, floor, learn, targets, check, known[parts.validation], seed=seed + number)
        for number in range(config.members)
    ]
    served = ServedDetector(scaling, members).eval()
    with torch.no_grad():
        logits = served.logits(torch.from_numpy(features[parts.validation])).numpy()
    # Platt's calibration; nearly no penalty, since two numbers cannot overfit.
    calibration = LogisticRegression(C=1e3).fit(logits[:, None], known[parts.validation])
    served.slope.fill_(float(calibration.coef_[0, 0]))
    served.shift.fill_(float(calibration.intercept_[0]))
    return served


def _batches(rows: int, size: int, *, generator: torch.Generator) -> Iterator[Tensor]:
    yield from torch.split(torch.randperm(rows, generator=generator), size)


def _fit_member(
    config: FraudConfig,
    floor: Logistic,
    learn: Tensor,
    targets: Tensor,
    check: Tensor,
    check_targets: NDArray[np.bool_],
    *,
    seed: int,
) -> nn.Module:
    """The network of the epoch with the best average precision on validation, on the CPU, in evaluation mode."""
    torch.manual_seed(seed)
    device = learn.device
    net = FraudDetector(
        floor, learn.shape[1], cross_layers=config.cross_layers, hidden=config.hidden, dropout=config.dropout
    ).to(device)
    trained = [weights for weights in net.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(learn) // config.batch_rows)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=max(steps, 2))
    loss_of = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(config.fraud_weight, device=device))
    generator = torch.Generator().manual_seed(seed)
    best, best_epoch, state = -1.0, 0, net.state_dict()
    for epoch in range(config.epochs):
        net.train()
        for batch in _batches(len(learn), config.batch_rows, generator=generator):
            rows = batch.to(device)
            scaled = learn[rows]
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                logits = net(scaled + config.noise * torch.randn_like(scaled))
            loss = loss_of(logits.float(), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            score = float(average_precision_score(check_targets, net(check).float().cpu().numpy()))
        if score > best:
            best, best_epoch = score, epoch
            state = {name: value.detach().clone() for name, value in net.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    net.load_state_dict(state)
    return net.cpu().eval()


def probabilities(model: ServedDetector, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores of raw features, shape [N]."""
    with torch.no_grad():
        scores: NDArray[np.float64] = model(torch.from_numpy(features)).numpy().astype(np.float64)
    return scores


def _gate(metrics: dict[str, dict[str, float]]) -> GateResult:
    scores = {name: values[METRIC] for name, values in metrics.items()}
    served = MODEL if scores[MODEL] > scores[BASELINE] else BASELINE
    return GateResult(metric=METRIC, scores=scores, model=MODEL, best_baseline=BASELINE, served=served, metrics=metrics)
