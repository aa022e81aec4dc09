"""Encodes and decodes the bytes in which Feast's online stores keep rows, a whole column at a time.

A key is Feast's entity key, version 3; a value is the wire format of its protobuf message `Value` holding an
Int64List, a DoubleList or a StringList. The messages are not built: numpy turns a list column of an Arrow table into
bytes, and bytes into arrays. tests/contracts/test_online_store.py holds both ways against Feast itself.
"""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.store.feast_import import Int64List, StringList, Value, WireType

Bytes = NDArray[np.uint8]

OTHER_TYPE = "a stored value has another type than its feature; empty the online store and fill it again"
FEW = 4
"""At most so many rows are decoded one by one."""

_LENGTH_DELIMITED = 2
_ITEM = bytes([1 << 3 | _LENGTH_DELIMITED])
"""Tag of the one field, `val`, of each of the list messages."""


def _tag(field: str) -> bytes:
    return bytes([Value.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED])


TAGS = {np.int64: _tag("int64_list_val"), np.float64: _tag("double_list_val"), object: _tag("string_list_val")}
"""Leading byte of a value, by the dtype that features/history/arrays.py gives its column."""


@dataclass(frozen=True, slots=True)
class Lists:
    """One list column of R rows."""

    offsets: NDArray[np.int64]
    """Shape [R + 1]; row i owns values[offsets[i]:offsets[i + 1]]."""
    values: Any
    """int64 or float64 array, or an Arrow array of strings; shape [entries]."""
    known: NDArray[np.bool_]
    """Shape [R]; False where nothing is stored, which differs from an empty list."""


def entity_keys(join_key: str, ids: Sequence[str], *, project: str = "") -> list[bytes]:
    """Returns Feast's serialised entity keys of rows with one string key; Redis keys end in the project's name."""
    key, end = join_key.encode(), project.encode()
    head = struct.pack("<3I", 1, WireType.STRING, len(key)) + key + struct.pack("<I", WireType.STRING)
    encoded = [name.encode() for name in ids]
    return [head + len(name).to_bytes(4, "little") + name + end for name in encoded]


# Varints: seven bits a byte, the lowest first; the high bit says that more follow.

_SIZES = np.array([1 << 7 * count for count in range(1, 10)], dtype=np.uint64)
_MORE = np.array([int.from_bytes(b"\x80" * min(8, size - 1), "little") for size in range(1, 11)], dtype=np.uint64)
_WHOLE = np.array([int.from_bytes(b"\x7f" * size, "little") for size in range(1, 9)], dtype=np.uint64)
_USED_BYTES = np.arange(10) < np.arange(1, 11)[:, None]


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def encode_varints(values: NDArray[np.int64]) -> tuple[Bytes, NDArray[np.int64]]:
    """Encodes `values` as joined varints (two's complement, as protobuf has int64); also returns the length of each.

    >>> encode_varints(np.array([1, 300]))
    (array([  1, 172,   2], dtype=uint8), array([1, 2]))
    """
    left = np.ascontiguousarray(values, dtype=np.int64).view(np.uint64)
    size = np.searchsorted(_SIZES, left, side="right")
    # Spread the low 56 bits over eight bytes of seven: halves, quarters, eighths.
    low = (left & _u64(0xFFFFFFF)) | ((left & _u64(0xFFFFFFF0000000)) << _u64(4))
    low = (low & _u64(0x3FFF00003FFF)) | ((low & _u64(0xFFFC0000FFFC000)) << _u64(2))
    low = (low & _u64(0x7F007F007F007F)) | ((low & _u64(0x3F803F803F803F80)) << _u64(1))
    table = np.empty((len(left), 10), dtype=np.uint8)
    table[:, :8] = (low | _MORE[size]).astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    table[:, 8] = (left >> _u64(56)) & _u64(0x7F) | np.where(size > 8, 0x80, 0).astype(np.uint64)
    table[:, 9] = left >> _u64(63)
    return table[_USED_BYTES[size]], size + 1


def decode_varints(data: Bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decodes joined varints; also returns where each of them ends (exclusive).

    >>> decode_varints(np.array([1, 172, 2], dtype=np.uint8))
    (array([  1, 300]), array([1, 3]))
    """
    ends = np.flatnonzero(data < 0x80) + 1
    starts = np.concatenate(([0], ends[:-1]))[: len(ends)]
    size = ends - starts
    padded = np.concatenate((data, np.zeros(10, dtype=np.uint8)))
    words: NDArray[np.uint64] = np.ndarray(len(data) + 3, dtype="<u8", buffer=padded, strides=(1,))
    low = words[starts] & _WHOLE[np.minimum(size, 8) - 1]
    low = (low & _u64(0x7F007F007F007F)) | ((low & _u64(0x7F007F007F007F00)) >> _u64(1))
    low = (low & _u64(0x3FFF00003FFF)) | ((low & _u64(0x3FFF00003FFF0000)) >> _u64(2))
    low = (low & _u64(0xFFFFFFF)) | ((low & _u64(0xFFFFFFF00000000)) >> _u64(4))
    long = np.flatnonzero(size > 8)
    if len(long):
        low[long] |= (padded[starts[long] + 8].astype(np.uint64) & _u64(0x7F)) << _u64(56)
        longest = long[size[long] > 9]
        low[longest] |= padded[starts[longest] + 9].astype(np.uint64) << _u64(63)
    return low.view(np.int64), ends


@lru_cache(maxsize=65_536)
def _varint(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


@lru_cache(maxsize=65_536)
def _head(tag: bytes, size: int) -> bytes:
    """Returns the bytes before `size` > 0 bytes of packed numbers; without a tag, those of the list message alone."""
    inner = _ITEM + _varint(size)
    return tag + _varint(len(inner) + size) + inner if tag else inner


@lru_cache(maxsize=65_536)
def _head_size(size: int, *, packed: bool) -> int:
    """Returns how many of the `size` bytes of a value come before its content."""
    outer = next(count for count in range(1, 6) if size - 1 - count < 1 << 7 * count)
    content = size - 1 - outer
    if not packed or content == 0:
        return 1 + outer
    inner = next(count for count in range(1, 6) if content - 1 - count < 1 << 7 * count)
    return 1 + outer + 1 + inner


def encode_lists(lists: pa.Array) -> list[bytes]:
    """Encodes each row of an Arrow list array (of int64, float64, strings or dictionaries of strings) as Feast's Value;
    a null row becomes the empty Value."""
    offsets = lists.offsets.to_numpy()
    used = lists.values.slice(offsets[0], offsets[-1] - offsets[0])  # offsets of a slice are those of the whole
    offsets = offsets - offsets[0]
    if pa.types.is_integer(used.type):
        packed, sizes = encode_varints(used.to_numpy(zero_copy_only=False))
        values = _packed(packed.tobytes(), np.concatenate(([0], np.cumsum(sizes)))[offsets], tag=TAGS[np.int64])
    elif pa.types.is_floating(used.type):
        numbers = used.to_numpy(zero_copy_only=False).astype("<f8", copy=False)
        values = _packed(numbers.tobytes(), offsets * 8, tag=TAGS[np.float64])
    else:
        values = _encode_strings(used, offsets)
    if not lists.null_count:
        return values
    return [value if known else b"" for value, known in zip(values, lists.is_valid().to_pylist(), strict=True)]


def _packed(data: bytes, offsets: NDArray[np.int64], *, tag: bytes) -> list[bytes]:
    """Builds Values of packed numbers: row i has the bytes from offsets[i] to offsets[i + 1]."""
    empty = tag + b"\0"
    return [
        _head(tag, end - start) + data[start:end] if end > start else empty
        for start, end in itertools.pairwise(offsets.tolist())
    ]


def _encode_strings(strings: pa.Array, offsets: NDArray[np.int64]) -> list[bytes]:
    """Builds Values of strings: each word is encoded once and then copied to where it occurs."""
    words = strings if pa.types.is_dictionary(strings.type) else strings.dictionary_encode()
    vocabulary = [word.encode() for word in words.dictionary.to_pylist()]
    encoded = pa.array([_ITEM + _varint(len(word)) + word for word in vocabulary], pa.binary()).take(words.indices)
    _, ends, joined = encoded.buffers()
    data = joined.to_pybytes() if joined else b""
    bounds = np.frombuffer(ends, dtype=np.int32)[encoded.offset :][offsets] if len(encoded) else offsets
    tag = TAGS[object]
    return [tag + _varint(end - start) + data[start:end] for start, end in itertools.pairwise(bounds.tolist())]


def decode_lists(values: Sequence[bytes | None], dtype: Any) -> Lists:
    """Decodes the lists of Values; None and the empty Value are not known. Raises ValueError for another type."""
    tag = TAGS[dtype][0]
    known = np.fromiter(map(bool, values), dtype=np.bool_, count=len(values))
    if any(value[0] != tag for value in values if value):
        raise ValueError(OTHER_TYPE)
    bodies = [value[_head_size(len(value), packed=dtype is not object) :] if value else b"" for value in values]
    ends = np.cumsum(np.fromiter(map(len, bodies), dtype=np.int64, count=len(bodies)))
    joined = b"".join(bodies)
    if dtype is np.float64:
        return Lists(np.concatenate(([0], ends // 8)), np.frombuffer(joined, dtype="<f8"), known)
    if len(values) <= FEW:
        return _decode_few(bodies, dtype, known)
    data = np.frombuffer(joined, dtype=np.uint8)
    if dtype is np.int64:
        numbers, number_ends = decode_varints(data)
        counts = np.searchsorted(number_ends, ends, side="right")
        return Lists(np.concatenate(([0], counts)).astype(np.int64), numbers, known)
    return _decode_strings(data, ends, known) or _decode_few(bodies, dtype, known)


def decode_row(values: Sequence[bytes | None], dtypes: Sequence[Any]) -> list[NDArray[Any]]:
    """Decodes the lists of one row, strings as objects; what is not known is empty. Raises ValueError for another type.

    Does what decode_lists does for each, in a third of the time: a request waits for its one row.
    """
    lists: list[NDArray[Any]] = []
    for value, dtype in zip(values, dtypes, strict=True):
        if not value:
            lists.append(np.empty(0, dtype=dtype))
            continue
        if value[0] != TAGS[dtype][0]:
            raise ValueError(OTHER_TYPE)
        body = value[_head_size(len(value), packed=dtype is not object) :]
        if dtype is np.float64:
            lists.append(np.frombuffer(body, dtype="<f8"))
        elif dtype is np.int64:
            numbers = Int64List.FromString(_head(b"", len(body)) + body).val if body else ()
            lists.append(np.fromiter(numbers, np.int64, len(numbers)))
        else:
            words = StringList.FromString(body).val
            lists.append(np.fromiter(words, object, len(words)))
    return lists


def _decode_few(bodies: Sequence[bytes], dtype: Any, known: NDArray[np.bool_]) -> Lists:
    """Decodes row by row with protobuf: for few numbers this is faster than with arrays."""
    if dtype is object:
        lists: list[Sequence[Any]] = [StringList.FromString(body).val for body in bodies]
    else:
        lists = [Int64List.FromString(_head(b"", len(body)) + body).val if body else () for body in bodies]
    offsets = np.concatenate(([0], np.cumsum([len(values) for values in lists]))).astype(np.int64)
    flat = [value for values in lists for value in values]
    return Lists(offsets, pa.array(flat, pa.string()) if dtype is object else np.array(flat, dtype=np.int64), known)


def _decode_strings(data: Bytes, ends: NDArray[np.int64], known: NDArray[np.bool_]) -> Lists | None:
    """Decodes strings without control characters, such as ids, by the tag before each; None if there are others."""
    tags = data == _ITEM[0]
    tags[1:] &= data[:-1] != _ITEM[0]  # the length of a string of ten bytes equals the tag
    starts = np.flatnonzero(tags)
    padded = np.concatenate((data, np.zeros(3, dtype=np.uint8)))
    wide = padded[starts + 1] >= 0x80
    size = (padded[starts + 1] & 0x7F).astype(np.int64) + np.where(wide, padded[starts + 2].astype(np.int64) << 7, 0)
    first = starts + 2 + wide
    if not np.array_equal(first + size, np.append(starts[1:], len(data))[: len(starts)]) or (len(data) and not tags[0]):
        return None
    text_offsets = np.concatenate(([0], np.cumsum(size))).astype(np.int32)
    inside = np.repeat(first - text_offsets[:-1], size) + np.arange(text_offsets[-1])
    strings = pa.StringArray.from_buffers(
        len(size), pa.py_buffer(text_offsets.tobytes()), pa.py_buffer(data[inside].tobytes())
    )
    counts = np.searchsorted(starts, ends, side="left")
    return Lists(np.concatenate(([0], counts)).astype(np.int64), strings, known)
