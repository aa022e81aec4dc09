"""docs/scale.md quotes the capacity model, and the model behaves as a reader expects."""

import itertools
from dataclasses import replace
from pathlib import Path

from infra.bench.capacity import SIZES, Assumed, Measured, guesses, inputs, need, number, table

PAGE = (Path(__file__).parents[3] / "docs" / "scale.md").read_text()


def test_the_page_quotes_inputs_guesses_and_result() -> None:
    for part in (inputs(), guesses(), table(Measured(), Assumed())):
        assert part in PAGE, "put what `python -m infra.bench.capacity` prints into docs/scale.md"


def test_another_cost_gives_another_table() -> None:
    assert table(replace(Measured(), impression_bytes=100), Assumed()) not in PAGE


def test_more_users_need_no_less_of_anything() -> None:
    needs = [vars(need(users, Measured(), Assumed())) for users in SIZES]
    for smaller, larger in itertools.pairwise(needs):
        assert all(larger[name] >= smaller[name] for name in smaller)


def test_each_assumption_changes_what_depends_on_it() -> None:
    usual = need(10**8, Measured(), Assumed())
    assert need(10**8, Measured(), replace(Assumed(), log_days=200)).log_gib == usual.log_gib / 2
    batched = need(10**8, Measured(), replace(Assumed(), events_in_a_post=100))
    assert batched.api_cores < usual.api_cores
    dearer = need(10**8, Measured(), replace(Assumed(), core_hour=0.08))
    assert dearer.money > usual.money
    risky = need(10**8, Measured(), replace(Assumed(), payments_per_visit=30))
    assert risky.scorers > usual.scorers
    assert risky.partitions >= risky.scorers


def test_numbers_are_rounded_to_two_digits() -> None:
    assert [number(value) for value in (0.001, 0.456, 7.0, 42.3, 123.4, 98_765.0)] == [
        "< 0.01", "0.46", "7", "42", "120", "99,000",
    ]  # fmt: skip
