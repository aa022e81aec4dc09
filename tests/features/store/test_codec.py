"""The quick way to one row says what the way to many rows says."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.store.codec import decode_lists, decode_row, encode_lists


@given(
    rows=st.lists(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(max_size=5)), max_size=9), max_size=3),
    unknown=st.booleans(),
)
def test_one_row_is_decoded_as_many_are(rows: list[list[tuple[int, str]]], unknown: bool) -> None:
    for row in rows:
        numbers, words = [number for number, _ in row], [word for _, word in row]
        halves = [number / 2 for number in numbers]
        dtypes = [np.int64, object, np.float64]
        values: list[bytes | None] = [
            encode_lists(pa.array([values], kind))[0]
            for values, kind in (
                (numbers, pa.list_(pa.int64())), (words, pa.list_(pa.string())), (halves, pa.list_(pa.float64())),
            )
        ]  # fmt: skip
        if unknown:
            values[0] = None
        row = decode_row(values, dtypes)
        assert [column.tolist() for column in row] == [[] if unknown else numbers, words, halves]
        many = [decode_lists([value], dtype) for value, dtype in zip(values, dtypes, strict=True)]
        assert [list(column.values.tolist()) for column in many] == [column.tolist() for column in row]
    with pytest.raises(ValueError, match="another type"):
        decode_row(encode_lists(pa.array([["a"]])), [np.int64])
