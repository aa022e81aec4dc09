"""Identifiers say what they stand for: neither filler words nor the private words of before the glossary."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_house import PYTHON, read

FILLERS = {"one", "told", "found", "place", "places", "who", "mine", "made", "wanted"}
"""Names that fit anything, and so say nothing."""
PRIVATE_WORDS = {"anew", "doorman", "desk", "floor", "floors", "likest", "newcomers"}
"""Words for which docs/glossary.md has the word of the field; also as a part of a longer name."""


def defined_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields (line, name) of everything that the module names itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def banned(name: str) -> bool:
    """Returns whether a name is a filler or has a private word in it.

    >>> banned("found"), banned("_item_desk"), banned("found_items"), banned("desktop")
    (True, True, False, False)
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return name.lower().strip("_") in FILLERS or any(word.lower() in PRIVATE_WORDS for word in words)


@pytest.mark.parametrize("path", PYTHON, ids=str)
def test_names_are_the_things_own(path: Path) -> None:
    names = defined_names(ast.parse(read(path)))
    # A test is a sentence: its words are its own.
    bad = [f"line {line}: {name}" for line, name in names if banned(name) and not name.startswith("test_")]
    assert not bad, f"docs/glossary.md has the words: {bad}"
