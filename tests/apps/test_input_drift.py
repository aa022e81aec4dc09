"""Drift in service: a sample of requests, over a window, that costs the others next to nothing."""

import time

import numpy as np
from numpy.typing import NDArray

from apps.input_drift import MIN_REQUESTS, DriftMonitor
from features.contract.drift import reference_distributions

NAMES = tuple(f"f{number}" for number in range(20))
RNG = np.random.default_rng(5)


def inputs(rows: int, shift: float = 0.0) -> NDArray[np.float32]:
    return (RNG.normal(size=(rows, len(NAMES))) + shift).astype(np.float32)


REFERENCES = reference_distributions(inputs(20_000), NAMES)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def new_monitor(clock: Clock, one_in: int = 1) -> DriftMonitor:
    return DriftMonitor(REFERENCES, NAMES, one_in=one_in, window_seconds=100, clock=clock)


def test_the_same_population_is_quiet_and_another_is_not() -> None:
    same, other = new_monitor(Clock()), new_monitor(Clock())
    for _ in range(MIN_REQUESTS):
        same.observe(inputs(50))
        other.observe(inputs(50, shift=1.0))
    assert max(same.stability_indices().values()) < 0.1
    assert min(other.stability_indices().values()) > 0.25


def test_single_payments_of_the_same_population_raise_no_alarm() -> None:
    for _ in range(10):
        monitor = new_monitor(Clock())
        for _ in range(MIN_REQUESTS):
            monitor.observe(inputs(1))
        assert 0 < max(monitor.stability_indices().values()) < 0.2


def test_few_requests_have_no_index() -> None:
    monitor = new_monitor(Clock())
    for _ in range(MIN_REQUESTS - 1):
        monitor.observe(inputs(100, shift=5.0))
    monitor.observe(inputs(0))
    assert monitor.stability_indices() == {}


def test_what_is_older_than_the_window_is_forgotten() -> None:
    clock = Clock()
    monitor = new_monitor(clock)
    for _ in range(MIN_REQUESTS):
        monitor.observe(inputs(50, shift=1.0))
    clock.now = 60
    assert monitor.stability_indices()
    for _ in range(MIN_REQUESTS):
        monitor.observe(inputs(50))
    clock.now = 110
    assert max(monitor.stability_indices().values()) < 0.1
    clock.now = 1000
    assert monitor.stability_indices() == {}


def test_one_request_in_one_in_is_counted() -> None:
    monitor = new_monitor(Clock(), one_in=10)
    for _ in range(10 * MIN_REQUESTS - 1):
        monitor.observe(inputs(5))
    assert monitor.stability_indices() == {}
    monitor.observe(inputs(5))
    assert monitor.stability_indices()


def test_a_request_pays_little() -> None:
    monitor, matrix = new_monitor(Clock(), one_in=50), inputs(400)
    started = time.process_time()
    for _ in range(5_000):
        monitor.observe(matrix)
    took = (time.process_time() - started) / 5_000
    print(f"\ndrift costs {took * 1e6:.1f} µs a request")
    assert took < 40e-6


def test_a_release_without_references_has_no_index() -> None:
    monitor = DriftMonitor({}, NAMES, one_in=1, window_seconds=100, clock=Clock())
    for _ in range(MIN_REQUESTS):
        monitor.observe(inputs(5))
    assert monitor.stability_indices() == {}
