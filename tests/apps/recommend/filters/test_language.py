"""Filters: the mask of an expression is what plain Python evaluates, and an error points at its character."""

import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.http.errors import Problem
from apps.recommend.filters.evaluation import MAX_CACHED, ItemColumns, ItemFilters, mask_of
from apps.recommend.filters.language import MAX_CHARACTERS, FilterError, parse

WORDS = st.text(alphabet="aAbé '\"\\%_", max_size=3)
PRICES = st.sampled_from([-1.5, 0.0, 0.5, 2.0, 3.25, 100.0])
ITEMS = st.lists(st.tuples(WORDS, WORDS, PRICES), max_size=8)


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


Case = tuple[str, Any]
"""An expression, and a predicate of an item (item_id, title, price, category) that is equivalent."""


def comparison() -> st.SearchStrategy[Case]:
    orders = {
        "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    }  # fmt: skip
    numbers = st.builds(
        lambda op, value: (f"price {op} {value}", lambda item: orders[op](item["price"], value)),
        st.sampled_from(sorted(orders)), PRICES,
    )  # fmt: skip
    fields = st.sampled_from(["item_id", "title", "category"])
    texts = st.builds(
        lambda field, op, value: (f"{field} {op} {quoted(value)}", lambda item: orders[op](item[field], value)),
        fields, st.sampled_from(["==", "!="]), WORDS,
    )  # fmt: skip
    among = st.builds(
        lambda field, values, absent: (
            f"{field} {'not ' * absent}in [{', '.join(map(quoted, values))}]",
            lambda item: (item[field] in values) != absent,
        ),
        fields, st.lists(WORDS, max_size=3), st.booleans(),
    )  # fmt: skip
    priced = st.builds(
        lambda values: (f"price in [{', '.join(map(str, values))}]", lambda item: item["price"] in values),
        st.lists(PRICES, max_size=3),
    )
    containing = st.builds(
        lambda field, text: (f"{field} contains {quoted(text)}", lambda item: text.lower() in item[field].lower()),
        fields, WORDS,
    )  # fmt: skip
    return st.one_of(numbers, texts, among, priced, containing)


def combined(parts: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    def joined(first: Case, second: Case, word: str) -> Case:
        both = (lambda item: first[1](item) and second[1](item)) if word == "and" else (
            lambda item: first[1](item) or second[1](item)
        )  # fmt: skip
        return f"({first[0]}) {word} ({second[0]})", both

    return st.one_of(
        st.builds(joined, parts, parts, st.sampled_from(["and", "or"])),
        st.builds(lambda part: (f"not ({part[0]})", lambda item: not part[1](item)), parts),
    )


@given(items=ITEMS, case=st.recursive(comparison(), combined, max_leaves=6))
def test_the_mask_is_what_plain_python_says_of_each_item(items: list[tuple[str, str, float]], case: Case) -> None:
    text, holds = case
    described = [
        {"item_id": f"i{index}", "title": title, "price": price, "category": category}
        for index, (title, category, price) in enumerate(items)
    ]
    columns = ItemColumns(
        [item["item_id"] for item in described],
        [item["title"] for item in described],
        np.array([item["price"] for item in described], dtype=np.float32),
        [item["category"] for item in described],
    )
    assert mask_of(parse(text), columns).tolist() == [bool(holds(item)) for item in described]


def test_and_binds_more_tightly_than_or_and_not_more_than_both() -> None:
    columns = ItemColumns(("a", "b", "c"), ("", "", ""), np.array([1, 2, 3], dtype=np.float32), ("x", "y", "x"))

    def held(text: str) -> list[bool]:
        return mask_of(parse(text), columns).tolist()

    assert held("price == 1 or price == 2 and category == 'x'") == [True, False, False]
    assert held("not price == 1 and category == 'x'") == [False, False, True]
    assert held("not (price == 1 or price == 2)") == [False, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("price <", "character 8: the end cannot stand here; expected a number or a text in quotes"),
        ("price < 'a'", "character 9: price is a number, and 'a' is a text"),
        ("title == 3", "character 10: title is a text: put it in quotes, '3'"),
        ("title < 'a'", "character 7: title is a text: compare it with ==, !=, in or contains"),
        ("colour == 'red'", "character 1: there is no field colour; there are price, item_id, title, category"),
        ("price contains '1'", "character 1: contains is for texts: item_id, title, category"),
        ("price < 3 price > 1", "character 11: 'price' cannot stand here; expected and or or or the end"),
        ("price in [1, ]", "character 14"),
        ("price < 3 ; drop", "character 11: ';' cannot stand here"),
        ("__import__('os')", "character 11: '(' cannot stand here"),
        ("x" * (MAX_CHARACTERS + 1), "at most 4,000 are taken"),
    ],
)
def test_an_error_says_where_it_is_and_what_could_stand_there(text: str, message: str) -> None:
    with pytest.raises(FilterError) as raised:
        parse(text)
    assert message in str(raised.value)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused_in_words(text: str) -> None:
    try:
        parse(text)
    except FilterError as error:
        message = str(error)
    else:
        return
    assert message.startswith("character ")


def test_deep_nesting_is_evaluated_or_refused() -> None:
    text = "(" * 1_900 + "price < 1" + ")" * 1_900
    columns = ItemColumns(("a",), ("",), np.zeros(1, dtype=np.float32), ())
    assert mask_of(parse(text), columns).tolist() == [True]
    alternating = "price<1 or(price<1 and(" * 150 + "price<1" + "))" * 150
    assert mask_of(parse(alternating), columns).tolist() == [True]

    def deep_in_a_server(frames: int) -> None:
        if frames:
            deep_in_a_server(frames - 1)
        else:
            ItemFilters(columns).allowed(alternating)

    with pytest.raises(Problem, match="nested too deeply"):
        deep_in_a_server(600)


def test_a_filter_is_evaluated_once_and_the_least_used_is_forgotten() -> None:
    filters = ItemFilters(ItemColumns(("a", "b"), ("", ""), np.array([1, 2], dtype=np.float32), ()))
    first = filters.allowed("price < 2")
    assert first is not None
    assert first.count == 1
    assert filters.allowed("price < 2") is first
    for number in range(MAX_CACHED):
        filters.allowed(f"price < {number + 10}")
    assert filters.allowed("price < 2") is not first
    assert filters.allowed(None) is filters.allowed("  ") is None
    with pytest.raises(Problem, match=r"filter: character 1"):
        filters.allowed("colour == 'red'")
