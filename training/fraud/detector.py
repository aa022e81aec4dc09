"""Trains the fraud detector, compares it with logistic regression on later time, and exports the better one.

Time is split as it would have passed: training | validation | gap | test | too recent to be evaluated. A label counts
only if it was known when the test began; the gap is the delay of labels; payments younger than that delay at the end
of the data are left out, since most of their frauds are not known yet. Knows nothing of Feast, releases or the live
scorer.
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
from training.core.ranges import Count, Dropout, Fraction, Natural, Positive, Weight, Widths
from training.fraud.metrics import LabelledPayments, alert_thresholds, fraud_metrics
from training.models.fraud import FraudDetector, Logistic, Scaling, ServedDetector

logger = logging.getLogger(__name__)

MODEL, BASELINE = "dcn_v2", "logistic_regression"
METRIC = "average_precision"
LABEL_TIME = "label_time"


class TooFewFraudsError(Exception):
    """Raised where a part of the time split holds no fraud, or nothing else: nothing can be learnt or evaluated."""


@dataclass(frozen=True, slots=True)
class FraudConfig:
    """Settings of the fraud detector in one training run."""

    test_days: Count = 14
    validation_days: Count = 10
    label_delay_days: Natural = 14
    """Age at which payments have their label; also the gap before the test."""
    cross_layers: Count = 2
    hidden: Widths = (64, 32)
    dropout: Dropout = 0.3
    noise: Weight = 0.3
    """Standard deviation of noise on scaled features in training, so that terminals are not recognised by traffic."""
    members: Count = 2
    """Networks whose logits are averaged."""
    epochs: Count = 8
    patience: Count = 4
    batch_rows: Count = 1024
    learning_rate: Positive = 3e-3
    weight_decay: Weight = 0.1
    fraud_weight: Positive = 1.0
    """Weight of a fraud in the loss, beside 1 for a legitimate payment; calibration corrects for it."""
    alert_share: Fraction = 0.01
    """Alert budget as a share of the payments."""
    decline_precision: Fraction = 0.9
    """Least share of fraud among declined payments, on validation."""
    feature_service: str = "fraud_v1"


@dataclass(frozen=True, slots=True)
class FraudSplit:
    """Holds the rows of training, validation and test; only labels known by `test_start` may be learnt from."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    test_start: int
    """Milliseconds since the epoch."""


def load_examples(settings: Settings) -> pa.Table:
    """Reads the features and labels of every payment: see `join_labels`."""
    offline = settings.offline_dir
    features = ds.dataset(offline / views.TRANSACTION_FEATURES, format="parquet").to_table()
    return join_labels(features, ds.dataset(offline / columns.LABELS, format="parquet").to_table())


def join_labels(features: pa.Table, labels: pa.Table) -> pa.Table:
    """Joins features and labels: one row for each transaction, by time, with its newest features and newest label.

    features: transaction_id, event_timestamp, created_timestamp, card_id and FEATURES; labels: transaction_id,
    event_time (int64 ms, when known), fraud. Adds fraud (false without a label) and LABEL_TIME (int64 ms, null without
    a label).
    """
    rows = _latest_rows(features, columns.TRANSACTION, columns.CREATED_TIMESTAMP)
    newest = _latest_rows(labels, columns.TRANSACTION, "event_time").select(
        [columns.TRANSACTION, "fraud", "event_time"]
    )
    newest = newest.rename_columns([columns.TRANSACTION, "fraud", LABEL_TIME])
    joined = rows.join(newest, keys=columns.TRANSACTION, join_type="left outer")
    joined = joined.set_column(
        joined.column_names.index("fraud"), "fraud", joined["fraud"].combine_chunks().fill_null(False)
    )
    return joined.sort_by([(columns.EVENT_TIMESTAMP, "ascending"), (columns.TRANSACTION, "ascending")])


def _latest_rows(table: pa.Table, key: str, moment: str) -> pa.Table:
    """Returns the last row by `moment` of each `key`."""
    ordered = table.sort_by([(moment, "ascending")])
    numbered = pa.table({"key": ordered[key], "row": np.arange(ordered.num_rows)})
    return ordered.take(numbered.group_by("key").aggregate([("row", "max")])["row_max"])


def split_by_time(times: NDArray[np.int64], config: FraudConfig) -> FraudSplit:
    """Splits ascending `times` (int64 ms, shape [N]); the last moment is the end of the data."""
    delay = config.label_delay_days * DAY
    test_end = int(times[-1]) - delay
    test_start = test_end - config.test_days * DAY
    known_end = test_start - delay
    cuts = np.searchsorted(times, [known_end - config.validation_days * DAY, known_end, test_start, test_end])
    rows = np.arange(len(times))
    return FraudSplit(rows[: cuts[0]], rows[cuts[0] : cuts[1]], rows[cuts[2] : cuts[3]], test_start)


def train_fraud(config: FraudConfig, *, examples: pa.Table, out: Path, seed: int) -> FraudModelCard:
    """Trains the detector and its baseline, compares them, and exports the one to be served into the folder `out`.

    Writes ONNX (input `features`, float32 [batch, F]; output `probability`, float32 [batch]) and the weights as
    safetensors. examples: as from `join_labels`. The detector is served if its average precision on the test days is
    above the baseline's, else the baseline. Raises TooFewFraudsError.
    """
    started = time.perf_counter()
    features, payments = _arrays(examples)
    split = split_by_time(payments.times, config)
    known_fraud = payments.is_fraud & (payments.label_times <= split.test_start)
    for name, rows in (("train", split.train), ("validation", split.validation), ("test", split.test)):
        frauds = int((payments.is_fraud if name == "test" else known_fraud)[rows].sum())
        if not 0 < frauds < len(rows):
            raise TooFewFraudsError(
                f"the {name} days hold {len(rows)} payments, of which {frauds} are frauds; both frauds and others are "
                "needed: import more days"
            )
    scaling = Scaling(torch.from_numpy(features[split.train]), skewed_indices())
    models = fit_models(config, scaling, features=features, known_fraud=known_fraud, split=split, seed=seed)
    budget = config.alert_share * len(split.validation) / config.validation_days
    metrics = {
        name: fraud_metrics(
            probabilities(model, features[split.test]), payments, test=split.test, alerts_per_day=budget
        )
        for name, model in models.items()
    }
    gate = _gate(metrics)
    served = models[gate.served]
    review, decline = alert_thresholds(
        probabilities(served, features[split.validation]),
        known_fraud[split.validation],
        alerts=round(budget * config.validation_days),
        decline_precision=config.decline_precision,
    )
    out.mkdir(parents=True, exist_ok=True)
    sample = torch.from_numpy(features[split.validation][:512])
    export(served, out / FRAUD, {"features": sample}, output="probability")
    for name, values in metrics.items():
        logger.info("fraud %s: %s", name, ", ".join(f"{metric} {value:.3f}" for metric, value in values.items()))
    logger.info("fraud: %s is served; took %.1f s", gate.served, time.perf_counter() - started)
    legitimate = features[split.train][~known_fraud[split.train]]
    return FraudModelCard(
        feature_service=config.feature_service,
        gate=gate,
        features=FEATURES,
        reference_values=tuple(float(value) for value in np.median(legitimate, axis=0)),
        review_threshold=review,
        decline_threshold=decline,
        alert_budget_per_day=budget,
        references=reference_distributions(features[split.train], FEATURES),
    )


def payment_times(examples: pa.Table) -> NDArray[np.int64]:
    """Returns the time of each payment, int64 milliseconds since the epoch."""
    stamps = examples[columns.EVENT_TIMESTAMP].cast(pa.timestamp("ms", tz="UTC"), safe=False)
    times: NDArray[np.int64] = stamps.cast(pa.int64()).to_numpy()
    return times


def _arrays(examples: pa.Table) -> tuple[NDArray[np.float32], LabelledPayments]:
    """Converts examples to features, float32 [N, F], and labelled payments."""
    features = np.column_stack([examples[name].to_numpy().astype(np.float32) for name in FEATURES])
    payments = LabelledPayments(
        payment_times(examples),
        np.asarray(examples[columns.CARD].to_pylist(), dtype=object),
        examples["fraud"].to_numpy().astype(bool),
        examples[LABEL_TIME].fill_null(np.iinfo(np.int64).max).to_numpy(),
    )
    return features, payments


def skewed_indices() -> Tensor:
    """Returns the indices of SKEWED in FEATURES, int64."""
    return torch.tensor([number for number, name in enumerate(FEATURES) if name in SKEWED])


def fit_models(
    config: FraudConfig,
    scaling: Scaling,
    *,
    features: NDArray[np.float32],
    known_fraud: NDArray[np.bool_],
    split: FraudSplit,
    seed: int,
) -> dict[str, ServedDetector]:
    """Fits the detector and its baseline on split.train, chooses the epoch on split.validation; returns both by name.

    features: float32 [N, F]. known_fraud: bool [N], frauds that were known when the test began.
    """
    baseline = _fit_baseline(scaling, features[split.train], known_fraud[split.train])
    threads = torch.get_num_threads()
    # Matrices this small are multiplied faster by one thread than shared among several.
    torch.set_num_threads(1)
    try:
        detector = _fit_detector(
            config, scaling, baseline, features=features, known_fraud=known_fraud, split=split, seed=seed
        )
    finally:
        torch.set_num_threads(threads)
    return {MODEL: detector, BASELINE: ServedDetector(scaling, [baseline]).eval()}


def _fit_baseline(scaling: Scaling, features: NDArray[np.float32], known_fraud: NDArray[np.bool_]) -> Logistic:
    """Fits logistic regression on scaled features."""
    with torch.no_grad():
        scaled = scaling(torch.from_numpy(features)).numpy()
    regression = LogisticRegression(max_iter=1_000).fit(scaled, known_fraud)
    return Logistic(
        torch.tensor(regression.coef_[0], dtype=torch.float32), torch.tensor(regression.intercept_, dtype=torch.float32)
    )


def _fit_detector(
    config: FraudConfig,
    scaling: Scaling,
    baseline: Logistic,
    *,
    features: NDArray[np.float32],
    known_fraud: NDArray[np.bool_],
    split: FraudSplit,
    seed: int,
) -> ServedDetector:
    """Fits the members of the detector, and calibrates their mean on the validation days."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        training, validation = (
            scaling(torch.from_numpy(features[rows])).to(device) for rows in (split.train, split.validation)
        )
    targets = torch.from_numpy(known_fraud[split.train]).float().to(device)
    members: list[nn.Module] = [
        _fit_member(config, baseline, training, targets, validation, known_fraud[split.validation], seed=seed + number)
        for number in range(config.members)
    ]
    served = ServedDetector(scaling, members).eval()
    with torch.no_grad():
        logits = served.logits(torch.from_numpy(features[split.validation])).numpy()
    # Platt's calibration; nearly no penalty, since two numbers cannot overfit.
    calibration = LogisticRegression(C=1e3).fit(logits[:, None], known_fraud[split.validation])
    served.slope.fill_(float(calibration.coef_[0, 0]))
    served.shift.fill_(float(calibration.intercept_[0]))
    return served


def _batches(rows: int, size: int, *, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields the row numbers in random order, `size` at a time."""
    yield from torch.split(torch.randperm(rows, generator=generator), size)


def _fit_member(
    config: FraudConfig,
    baseline: Logistic,
    training: Tensor,
    targets: Tensor,
    validation: Tensor,
    validation_targets: NDArray[np.bool_],
    *,
    seed: int,
) -> nn.Module:
    """Trains one network; returns the epoch with the best validation average precision, on the CPU, in evaluation mode.

    training, validation: scaled features, float32 [rows, F]; targets: float32 [rows].
    """
    torch.manual_seed(seed)
    device = training.device
    net = FraudDetector(
        baseline, training.shape[1], cross_layers=config.cross_layers, hidden=config.hidden, dropout=config.dropout
    ).to(device)
    trainable = [weights for weights in net.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(training) // config.batch_rows)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=max(steps, 2))
    bce_loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(config.fraud_weight, device=device))
    generator = torch.Generator().manual_seed(seed)
    best, best_epoch, state = -1.0, 0, net.state_dict()
    for epoch in range(config.epochs):
        net.train()
        for batch in _batches(len(training), config.batch_rows, generator=generator):
            rows = batch.to(device)
            scaled = training[rows]
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                logits = net(scaled + config.noise * torch.randn_like(scaled))
            loss = bce_loss(logits.float(), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            score = float(average_precision_score(validation_targets, net(validation).float().cpu().numpy()))
        if score > best:
            best, best_epoch = score, epoch
            state = {name: value.detach().clone() for name, value in net.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    net.load_state_dict(state)
    return net.cpu().eval()


def probabilities(model: ServedDetector, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the scores of raw features float32 [N, F], shape [N]."""
    with torch.no_grad():
        scores: NDArray[np.float64] = model(torch.from_numpy(features)).numpy().astype(np.float64)
    return scores


def _gate(metrics: dict[str, dict[str, float]]) -> GateResult:
    """Compares the detector with its baseline by average precision."""
    scores = {name: values[METRIC] for name, values in metrics.items()}
    served = MODEL if scores[MODEL] > scores[BASELINE] else BASELINE
    return GateResult(metric=METRIC, scores=scores, model=MODEL, best_baseline=BASELINE, served=served, metrics=metrics)
