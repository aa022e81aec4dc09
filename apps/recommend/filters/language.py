"""Parses the language of filters and of the conditions of rules into a tree of typed nodes.

    price < 20 and category in ['tea', 'coffee'] and not (item_id == '85123A' or title contains 'heart')

Lark parses it (decision 0016); no part of a text is ever run as code. Knows nothing of items.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

MAX_CHARACTERS = 4_000
NUMBERS = ("price",)
TEXTS = ("item_id", "title", "category")

GRAMMAR = r"""
?start: any
?any: all ("or" all)*                       -> any
?all: term ("and" term)*                    -> all
?term: "not" term                           -> negation
     | "(" any ")"
     | NAME ORDER value                     -> comparison
     | NAME "in" list                       -> membership
     | NAME "not" "in" list                 -> absence
     | NAME "contains" STRING               -> containing
list: "[" [value ("," value)*] "]"
value: NUMBER | STRING
ORDER: "==" | "!=" | "<=" | ">=" | "<" | ">"
NAME: /(?!(and|or|not|in|contains)\b)[A-Za-z_][A-Za-z_0-9]*/
NUMBER: /-?\d+(\.\d+)?([eE][+-]?\d+)?/
STRING: /'([^'\\]|\\.)*'|"([^"\\]|\\.)*"/
%ignore /\s+/
"""


class FilterError(ValueError):
    """The filter is not valid; the text names the character (from 1 on) and what could stand there."""


@dataclass(frozen=True, slots=True)
class Compare:
    """The comparison `field op value`; op is one of == != < <= > >=."""

    field: str
    op: str
    value: float | str


@dataclass(frozen=True, slots=True)
class In:
    field: str
    values: tuple[float | str, ...]


@dataclass(frozen=True, slots=True)
class Contains:
    """The field contains the text, whatever the case."""

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Not:
    part: "Node"


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Any_:
    parts: tuple["Node", ...]


Node = Compare | In | Contains | Not | All | Any_


@v_args(inline=True)
class _Build(Transformer[Token, Node]):
    """Turns parse results into nodes, and checks fields and types."""

    def any(self, *parts: Node) -> Node:
        return parts[0] if len(parts) == 1 else Any_(parts)

    def all(self, *parts: Node) -> Node:
        return parts[0] if len(parts) == 1 else All(parts)

    def negation(self, part: Node) -> Node:
        return part.part if isinstance(part, Not) else Not(part)

    def value(self, token: Token) -> Token:
        return token

    def list(self, *values: Token | None) -> tuple[Token, ...]:
        return tuple(value for value in values if value is not None)

    def comparison(self, name: Token, op: Token, value: Token) -> Node:
        if name in TEXTS and op not in ("==", "!="):
            raise _wrong(op, f"{name} is a text: compare it with ==, !=, in or contains")
        return Compare(str(name), str(op), _typed(name, value))

    def membership(self, name: Token, values: tuple[Token, ...]) -> Node:
        return In(str(name), tuple(_typed(name, value) for value in values))

    def absence(self, name: Token, values: tuple[Token, ...]) -> Node:
        return Not(self.membership(name, values))

    def containing(self, name: Token, text: Token) -> Node:
        if name not in TEXTS:
            raise _wrong(name, f"contains is for texts: {', '.join(TEXTS)}" + _unknown(name))
        return Contains(str(name), _text(text))


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", start="start", transformer=_Build())


def parse(text: str) -> Node:
    """Returns the tree of an expression. Raises FilterError.

    >>> parse("price < 20 and not category in ['tea']")
    All(parts=(Compare(field='price', op='<', value=20.0), Not(part=In(field='category', values=('tea',)))))
    >>> parse("price < 'a'")
    Traceback (most recent call last):
    ...
    apps.recommend.filters.language.FilterError: character 9: price is a number, and 'a' is a text
    """
    if len(text) > MAX_CHARACTERS:
        raise FilterError(f"the filter has {len(text):,} characters; at most {MAX_CHARACTERS:,} are taken")
    try:
        tree: Any = _parser().parse(text)
    except VisitError as error:
        raise error.orig_exc from None
    except UnexpectedInput as error:
        raise FilterError(_unexpected(error, text)) from None
    except RecursionError:
        raise FilterError("the filter is nested too deeply; write it flatter") from None
    node: Node = tree
    return node


def _typed(name: Token, value: Token) -> float | str:
    if name in NUMBERS:
        if value.type != "NUMBER":
            raise _wrong(value, f"{name} is a number, and {value} is a text")
        return float(value)
    if name in TEXTS:
        if value.type != "STRING":
            raise _wrong(value, f"{name} is a text: put it in quotes, '{value}'")
        return _text(value)
    raise _wrong(name, _unknown(name).lstrip("; "))


def _unknown(name: str) -> str:
    fields = (*NUMBERS, *TEXTS)
    return "" if name in fields else f"; there is no field {name}; there are {', '.join(fields)}"


def _text(token: Token) -> str:
    """Returns a string without its quotes; a backslash takes the next character as it is."""
    plain, escaped = [], False
    for character in token[1:-1]:
        if character == "\\" and not escaped:
            escaped = True
            continue
        plain.append(character)
        escaped = False
    return "".join(plain)


def _wrong(token: Token, why: str) -> FilterError:
    return FilterError(f"character {(token.start_pos or 0) + 1}: {why}")


EXPECTED = {
    "NAME": "a field", "ORDER": "a comparison", "NUMBER": "a number", "STRING": "a text in quotes", "LPAR": "(",
    "RPAR": ")", "LSQB": "[", "RSQB": "]", "COMMA": ",", "$END": "the end",
}  # fmt: skip


def _unexpected(error: UnexpectedInput, text: str) -> str:
    """Returns which character cannot be, and what could stand there."""
    if isinstance(error, UnexpectedCharacters):
        position = error.pos_in_stream or 0
        expected, actual = error.allowed or set(), repr(text[position])
    elif isinstance(error, UnexpectedToken) and error.token.type != "$END":
        expected = error.accepts or error.expected
        position, actual = error.pos_in_stream or 0, repr(str(error.token))
    else:
        expected = error.accepts or error.expected if isinstance(error, UnexpectedToken) else set()
        position, actual = len(text), "the end"
    names = sorted(EXPECTED.get(name, name.lower()) for name in expected)
    return f"character {position + 1}: {actual} cannot stand here; expected {' or '.join(names)}"
