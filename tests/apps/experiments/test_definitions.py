"""Definitions are in the log: everybody sees the last of a key, and none that would spoil a comparison is stored."""

import pytest
from pydantic import ValidationError

from apps.experiments.definitions import DefinitionRefusedError, ExperimentStore
from apps.experiments.schemas import ExperimentDefinition
from infra import topics
from infra.log.client import LogUnreachableError
from infra.log.files import FileLog


class Clock:
    seconds = 1_000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(tmp_path, clock):
    return FileLog(tmp_path / "log", clock=clock)


@pytest.fixture
def experiments(log, clock):
    return ExperimentStore(log, clock)


def test_what_was_put_is_returned_and_survives_a_restart(experiments, log, clock, define):
    assert experiments.put(define(key="first")) is True
    assert experiments.get("first") == define(key="first")
    assert ExperimentStore(log, clock).all() == [define(key="first")]
    assert experiments.get("other") is None


def test_the_last_definition_of_a_key_holds(experiments, define):
    experiments.put(define())
    assert experiments.put(define(status="stopped")) is False
    assert experiments.all() == [define(status="stopped")]


def test_putting_the_same_again_writes_nothing(experiments, log, define):
    experiments.put(define())
    end = log.end(topics.EXPERIMENTS)
    assert experiments.put(define()) is False
    assert log.end(topics.EXPERIMENTS) == end


def test_another_process_sees_it_within_a_second_and_reads_no_more_often(experiments, log, clock, define):
    other = ExperimentStore(log, clock)
    assert other.running_for("home") is None
    experiments.put(define())
    clock.seconds += 0.9
    assert other.running_for("home") is None
    clock.seconds += 0.1
    assert other.running_for("home") == define()
    assert other.running_for("basket") is None


def test_an_unreadable_record_is_skipped(experiments, log, define, caplog):
    log.append(topics.EXPERIMENTS, [("x", b'{"type": "experiment"}')])
    experiments.put(define())
    assert experiments.all() == [define()]
    assert "unreadable experiment" in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": "another"}, "assigns the units again"),
        ({"weights": (0.2, 0.8)}, "from one variation to another"),
        ({"names": ("A", "C")}, "from one variation to another"),
        ({"unit": "session"}, "new unit"),
        ({"surface": "basket"}, "two placements"),
        ({"metric": "value"}, "made to win"),
        ({"coverage": 0.2}, "already counted"),
    ],
)
def test_what_would_spoil_the_comparison_is_refused_with_the_reason(experiments, define, change, reason):
    experiments.put(define(coverage=0.5))
    experiments.put(define(coverage=0.5, status="stopped"))
    with pytest.raises(DefinitionRefusedError, match=f"{reason}.*another key"):
        experiments.put(define(**({"coverage": 0.5} | change)))
    assert experiments.get("test") == define(coverage=0.5, status="stopped")


def test_stopping_describing_and_covering_more_are_allowed(experiments, define):
    experiments.put(define(coverage=0.5))
    experiments.put(define(coverage=0.8, description="ramped up"))
    experiments.put(define(coverage=0.8, status="stopped"))
    experiments.put(define(coverage=0.8))
    assert experiments.running_for("home") == define(coverage=0.8)


def test_a_draft_that_never_ran_may_change(experiments, define):
    experiments.put(define(status="stopped"))
    experiments.put(define(status="stopped", weights=(0.1, 0.9), seed="new"))
    assert experiments.get("test").variations[0].weight == 0.1


def test_a_surface_has_one_running_experiment(experiments, define):
    experiments.put(define(key="first"))
    with pytest.raises(DefinitionRefusedError, match="stop first first"):
        experiments.put(define(key="second"))
    experiments.put(define(key="first", status="stopped"))
    experiments.put(define(key="second"))
    assert experiments.running_for("home").key == "second"


def test_the_seed_is_the_key_unless_given(define):
    assert define(key="k").seed == "k"
    assert define(key="k", seed="s").seed == "s"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("A",), "weights": (1.0,)}, "at least two, this one has 1"),
        ({"weights": (0.5, 0.4)}, "these sum to 0.9"),
        ({"names": ("A", "A")}, "A stands more often"),
        ({"weights": (1.0, 0.0)}, "greater than 0"),
        ({"key": "no spaces"}, "key"),
        ({"coverage": 1.2}, "coverage"),
    ],
)
def test_a_definition_that_is_no_comparison_is_invalid(define, change, message):
    with pytest.raises(ValidationError, match=message):
        define(**change)


def test_the_documented_example_is_valid():
    for example in ExperimentDefinition.model_config["json_schema_extra"]["examples"]:
        ExperimentDefinition.model_validate(example)


def test_a_log_that_cannot_be_read_leaves_the_experiments_as_they_were(experiments, log, clock, define, monkeypatch):
    experiments.put(define(key="first"))
    reads = []

    def unreachable(*arguments):
        reads.append(arguments)
        raise LogUnreachableError("cannot reach it")

    with monkeypatch.context() as patch:
        patch.setattr(log, "read", unreachable)
        for _ in range(5):
            clock.seconds += 1.1
            assert experiments.get("first") == define(key="first")
        assert len(reads) == 1  # a request a second must not wait for it
        with pytest.raises(LogUnreachableError):
            experiments.put(define(key="second", surface="other"))
    clock.seconds += 10
    assert experiments.put(define(key="second", surface="other")) is True
