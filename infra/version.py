"""Finds the version of Headrace, which stands in pyproject.toml alone."""

import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
"""Beside the code of a clone and of an image; an installed package has its metadata instead."""


@cache
def version() -> str:
    """Returns the version of the code that runs, which may be newer than what an editable installation recorded."""
    if PYPROJECT.exists():
        return str(tomllib.loads(PYPROJECT.read_text())["project"]["version"])
    return metadata.version("headrace")
