"""Options of tests/faults: how often each part is killed, and the seed of the random moments."""

import time

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--rounds", type=int, default=1, help="how often each part is killed")
    group.addoption("--seed", type=int, default=None, help="seed of the random moments; each run prints its own")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    # When the whole suite runs, pytest reads this file too late to add options.
    return int(request.config.getoption("--rounds", 1))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given = request.config.getoption("--seed", None)
    return int(given) if given is not None else int(time.time())
