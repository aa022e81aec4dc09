"""Progress bars on a terminal; nothing where stderr is a file or a pipe."""

from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar, overload

from tqdm import tqdm

T = TypeVar("T")


@overload
def progress_bar(iterable: Iterable[T], *, disable: bool = ..., **options: Any) -> "tqdm[T]": ...


@overload
def progress_bar(iterable: None = ..., *, disable: bool = ..., **options: Any) -> "tqdm[NoReturn]": ...


def progress_bar(iterable: Iterable[T] | None = None, *, disable: bool = False, **options: Any) -> "tqdm[Any]":
    """Returns a bar that goes away when it is full. `options` are those of tqdm."""
    # With None tqdm looks whether stderr is a terminal.
    return tqdm(iterable, leave=False, disable=True if disable else None, **options)
