"""Tests fits of the sequence model: they learn, resume after a kill, and keep the golden loss curve."""

import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.benchmark.sequence_worker import CONFIG, CPU, ITEMS, ring
from training.benchmark.interactions import Sequences
from training.benchmark.sequence import (
    FittedSequence,
    NegativeSampler,
    SequenceConfig,
    Validate,
    batch_loss,
    batches,
    cut_windows,
    fit_sequence,
)
from training.core.checkpoints import load
from training.core.sharding import process_group
from training.core.trainer import RunPaths
from training.models.sequence import Encoder, SequenceModel

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "sequence_loss.json"
WORKER = [sys.executable, "-W", "ignore", "-m", "tests.training.benchmark.sequence_worker"]


def fit(config: SequenceConfig, *, validate: Validate | None, paths: RunPaths | None = None) -> FittedSequence:
    return fit_sequence(ring(), items=ITEMS, config=config, validate=validate, device=CPU, seed=5, paths=paths)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 12))
def test_every_entry_but_a_rows_first_is_a_target_once(lengths: list[int], length: int) -> None:
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    learn = Sequences(offsets, np.arange(offsets[-1]), np.arange(offsets[-1]))
    windows = cut_windows(learn, length)
    config = replace(CONFIG, length=length, batch=3)
    learnt = (
        [batch.targets for batch in batches(learn, windows, config, np.random.default_rng(1))]
        if len(windows.start)
        else []
    )
    expected = [entry for entry in range(offsets[-1]) if entry not in offsets]
    assert sorted(torch.cat(learnt).tolist() if learnt else []) == expected
    assert ((windows.end - windows.start) <= length).all()


def test_the_encoder_sees_no_later_item_and_no_other_row() -> None:
    torch.manual_seed(0)
    encoder = Encoder(width=8, blocks=2, heads=2, dropout=0.0, length=6).eval()
    embedded = torch.randn(5, 8)
    alone = encoder(embedded[:3], torch.tensor([3]))
    beside = encoder(embedded, torch.tensor([3, 2]))
    torch.testing.assert_close(alone, beside[:3])
    # Causal: moving the last item moves only what comes after it.
    changed = embedded.clone()
    changed[2] = torch.randn(8)
    moved = encoder(changed, torch.tensor([3, 2]))
    torch.testing.assert_close(moved[:2], beside[:2])
    assert not torch.allclose(moved[2], beside[2])


def test_sampled_negatives_estimate_the_loss_over_all_items() -> None:
    """They are corrected by their probabilities; without the correction the estimate would be far off."""
    learn = ring(40)
    torch.manual_seed(1)
    encoder = Encoder(width=16, blocks=1, heads=1, dropout=0.0, length=8)
    model = SequenceModel(items=1000, encoder=encoder)
    batch = next(batches(learn, cut_windows(learn, 8), replace(CONFIG, batch=64), np.random.default_rng(0)))
    rng = np.random.default_rng(0)
    with torch.no_grad(), process_group(CPU):
        exact, estimate, estimate_of_few = (
            np.mean([batch_loss(model, batch, negatives, temperature=1.0, rng=rng).item() for _ in range(20)])
            for negatives in (
                NegativeSampler(learn, 1000, 500),
                NegativeSampler(learn, 1000, 499),
                NegativeSampler(learn, 1000, 100),
            )
        )
    assert estimate == pytest.approx(exact, abs=0.01)
    assert estimate_of_few == pytest.approx(exact, abs=0.05)


def test_a_resumed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "unfinished", tmp_path / "curves", {})
    whole = fit(CONFIG, validate=None)
    fit(replace(CONFIG, epochs=2), validate=None, paths=paths)
    resumed_fit = fit(CONFIG, validate=None, paths=paths)
    assert resumed_fit.curve.losses == pytest.approx(whole.curve.losses)
    torch.testing.assert_close(resumed_fit.table, whole.table)
    other = fit_sequence(ring(), items=ITEMS, config=CONFIG, validate=None, device=CPU, seed=6, paths=paths)
    alone = fit_sequence(ring(), items=ITEMS, config=CONFIG, validate=None, device=CPU, seed=6)
    assert other.curve.losses == pytest.approx(alone.curve.losses), "it resumed from the checkpoint of another seed"


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_curve(tmp_path: Path) -> None:
    undisturbed, resumed, unfinished = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "unfinished"
    words = [*WORKER, str(resumed), "--epochs", "40", "--unfinished", str(unfinished)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL) as running:
        checkpoint, end = unfinished / "sequence.0.safetensors", time.monotonic() + 120
        while not ((saved := load(checkpoint)) and len(saved[1]["curve"]["losses"]) >= 3):
            assert time.monotonic() < end, f"{checkpoint} did not reach epoch 3"
            time.sleep(0.02)
        running.kill()
    assert not resumed.exists(), "it ended before it was killed"
    for out, more in ((undisturbed, []), (resumed, ["--unfinished", str(unfinished)])):
        subprocess.run([*WORKER, str(out), "--epochs", "40", *more], cwd=ROOT, check=True, capture_output=True)
    expected, actual = json.loads(undisturbed.read_text()), json.loads(resumed.read_text())
    assert actual["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert actual["values"] == expected["values"]
    assert actual["best_epoch"] == expected["best_epoch"]
    np.testing.assert_allclose(actual["table"], expected["table"], atol=1e-4)


def validation_values(*values: float) -> Validate:
    """Returns these values one after the other, the first before any epoch; then the last one again and again."""
    rest = itertools.chain(values, itertools.repeat(values[-1]))
    return lambda _: next(rest)


def test_early_stopping_keeps_the_best_epoch() -> None:
    config = replace(CONFIG, epochs=30, patience=2)
    fitted = fit(config, validate=validation_values(0.0, 0.1, 0.3, 0.2))
    assert fitted.curve.best_epoch == 2
    assert fitted.curve.best == -0.3
    assert len(fitted.curve.losses) == 4
    torch.testing.assert_close(fitted.table, fit(replace(CONFIG, epochs=2), validate=None).table)


def test_validation_is_every_so_many_epochs_and_after_the_last() -> None:
    config = replace(CONFIG, epochs=7, validate_every=3, patience=3)
    curve = fit(config, validate=validation_values(0.0, 0.1, 0.3, 0.2)).curve
    assert curve.values == [None, None, -0.1, None, None, -0.3, -0.2]
    assert curve.best_epoch == 6
    patient = replace(CONFIG, epochs=30, validate_every=3, patience=2)
    assert len(fit(patient, validate=validation_values(0.0, 0.3, 0.2)).curve.losses) == 9


def test_no_epoch_starts_after_the_time_limit() -> None:
    config = replace(CONFIG, validate_every=3)
    fitted = fit_sequence(
        ring(), items=ITEMS, config=config, validate=validation_values(0.1, 0.5), device=CPU, seed=5, seconds=0.0
    )
    assert len(fitted.curve.losses) == 1
    assert fitted.curve.best == -0.5


def test_the_loss_curve_is_the_golden_one() -> None:
    """A change of the mathematics renews the file (`python -m tests.training.benchmark.test_sequence`) and says why."""
    losses = fit(CONFIG, validate=None).curve.losses
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-3)
    assert losses[-1] < losses[0] - 0.5


if __name__ == "__main__":
    curve = fit(CONFIG, validate=None).curve.losses
    GOLDEN.write_text(json.dumps([round(value, 6) for value in curve]) + "\n")
