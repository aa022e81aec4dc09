"""What a number of a configuration may be, beside the number: a type that says its range, for the file of settings.

A range is said in the words of the message that refuses a number outside it. Knows nothing of files or models.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

OUT_OF_RANGE = "out_of_range"


def _within(words: str, holds: Callable[[Any], bool]) -> AfterValidator:
    def check(value: Any) -> Any:
        if not holds(value):
            raise PydanticCustomError(OUT_OF_RANGE, "must be {words}", {"words": words})
        return value

    return AfterValidator(check)


Count = Annotated[int, _within("a whole number from 1 on", lambda value: value >= 1)]
Natural = Annotated[int, _within("a whole number from 0 on", lambda value: value >= 0)]
Widths = Annotated[tuple[Count, ...], _within("a list of one or more whole numbers from 1 on", bool)]
Dropout = Annotated[float, _within("a number from 0 on and below 1", lambda value: 0 <= value < 1)]
Part = Annotated[float, _within("a number above 0 and below 1", lambda value: 0 < value < 1)]
Weight = Annotated[float, _within("a number from 0 on", lambda value: 0 <= value < math.inf)]
Positive = Annotated[float, _within("a number above 0", lambda value: 0 < value < math.inf)]
