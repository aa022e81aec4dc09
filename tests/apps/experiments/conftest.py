"""Definitions and unit tables made on the spot."""

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from apps.experiments.report import UNITS_SCHEMA
from apps.experiments.schemas import ExperimentDefinition

Row = dict[str, Any]


@pytest.fixture
def define() -> Callable[..., ExperimentDefinition]:
    def make(*, names: Sequence[str] = ("A", "B"), weights: Sequence[float] | None = None, **more: Any) -> Any:
        shares = weights or [1 / len(names)] * len(names)
        variations = [{"key": name, "weight": share} for name, share in zip(names, shares, strict=True)]
        return ExperimentDefinition.model_validate({"key": "test", "surface": "home", "variations": variations} | more)

    return make


@pytest.fixture
def units_of() -> Callable[[Sequence[Row]], pa.Table]:
    """A table of unit rows; what a row leaves out is one exposure of ten items on 1 November and nothing more."""

    def make(rows: Sequence[Row]) -> pa.Table:
        usual: Row = dict.fromkeys(UNITS_SCHEMA.names, 0)
        usual |= {"experiment": "test", "day": date(2026, 11, 1), "exposures": 1, "shown": 10}
        return pa.Table.from_pylist([usual | row for row in rows], schema=UNITS_SCHEMA)

    return make
