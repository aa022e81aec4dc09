"""Types that state the range of a number in a configuration, checked when settings are read from a file.

A range is worded as in the message that refuses a number outside it. Knows nothing of files or models.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

OUT_OF_RANGE = "out_of_range"
"""The `type` of pydantic's error for a number outside its range."""


def _within(words: str, holds: Callable[[Any], bool]) -> AfterValidator:
    """Returns a validator that refuses values for which `holds` is false; `words` describe the range."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise PydanticCustomError(OUT_OF_RANGE, "must be {words}", {"words": words})
        return value

    return AfterValidator(check)


Count = Annotated[int, _within("a whole number of at least 1", lambda value: value >= 1)]
Natural = Annotated[int, _within("a whole number of at least 0", lambda value: value >= 0)]
Widths = Annotated[tuple[Count, ...], _within("a list of one or more whole numbers of at least 1", bool)]
Dropout = Annotated[float, _within("a number of at least 0 and below 1", lambda value: 0 <= value < 1)]
Fraction = Annotated[float, _within("a number above 0 and below 1", lambda value: 0 < value < 1)]
Weight = Annotated[float, _within("a number of at least 0", lambda value: 0 <= value < math.inf)]
Positive = Annotated[float, _within("a number above 0", lambda value: 0 < value < math.inf)]
