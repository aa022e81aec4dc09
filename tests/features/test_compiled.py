"""Loops are machine code from import on, kept on disk where that can be, else compiled for one process."""

import numba
import numpy as np
import pytest

from features import drawing
from features.compiled import NUMBER, NUMBERS, compiled


def total(values: np.ndarray, start: int) -> int:
    for value in values:
        start += value
    return start


def test_what_is_compiled_takes_arrays_that_cannot_be_written_and_no_other_type() -> None:
    quick = compiled(NUMBERS, NUMBER)(total)
    values = np.arange(5)
    assert quick(values, 1) == 11
    values.flags.writeable = False
    assert quick(values, 1) == 11
    with pytest.raises(TypeError):
        quick(values.astype(np.float64), 1)


def test_without_a_folder_to_write_to_each_process_compiles_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def refusing(*arguments: object, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*arguments, **options)

    monkeypatch.setattr(numba, "njit", refusing)
    assert compiled(NUMBERS, NUMBER)(total)(np.arange(5), 1) == 11


@pytest.mark.parametrize("name", ["latest", "bought_with", "own", "highest", "first", "united", "described", "habits"])
def test_the_first_request_compiles_nothing(name: str) -> None:
    function = getattr(drawing, name)
    assert len(function.signatures) == 1
    assert not function._can_compile
