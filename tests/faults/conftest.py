"""How often tests/faults kills each part, and what its moments are drawn from."""

import time

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--rounds", type=int, default=1, help="how often each part is killed")
    group.addoption("--seed", type=int, default=None, help="of the random moments; that of a run is printed")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    # Where the whole suite runs, this file is read too late to add options.
    return int(request.config.getoption("--rounds", 1))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given = request.config.getoption("--seed", None)
    return int(given) if given is not None else int(time.time())
