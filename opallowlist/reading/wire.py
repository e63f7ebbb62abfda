"""Decodes an ONNX file at the level of protobuf's wire format, without protobuf.

Why the gate does not use `onnx.load`:

- Memory. Protobuf turns 2 bytes into 100 or more: 5 MB of empty nodes take 372 MB. Here the number of fields is limited,
  and a tensor's elements stay packed.
- One reading. Protobuf silently takes the last of two `op_type` fields, and merges two `graph` fields, where another
  reader may take the first. Here a single-valued field that occurs twice is malformed, and so are groups and overlong
  varints, so every reader agrees on what was checked.
- Start. Importing onnx takes 0.15 s of process time, more than the whole check.

`decode` checks every message of onnx.proto (IR 3 to 13), because a downstream reader would fail on damage in parts that
the gate does not look at. It stores only the fields of the classes in `messages`. Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from distill.opallowlist.reading.messages import SCHEMA, Model

MAX_FIELDS = 1_000_000
"""Fields in one file. A graph of 5,000 nodes with debug metadata has about 300,000."""

MAX_NAME_BYTES = 65_535
"""Bytes of one name, operator or symbol. Tensors and documentation are not names."""

MAX_NESTING = 100
"""Messages inside messages: protobuf's own limit."""


class Malformed(ValueError):
    """The bytes are not an ONNX protobuf, or readers could disagree about them. `offset`: where, in bytes."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what} at byte {offset:,}")
        self.offset = offset


_VARINT, _FIXED64, _LEN, _FIXED32 = 0, 1, 2, 5  # protobuf wire types; 3 and 4 are groups, which ONNX never had

# How the bytes of a field become a value.
_INT, _INT32, _STR, _BYTES, _COUNT, _INTS, _VARINTS, _RUN, _MESSAGE = range(9)


@dataclass(slots=True)
class _Field:
    how: int
    name: str
    keep: bool
    """Whether the message's class has it."""
    once: str | None
    """The slot that may be filled once; None for repeated fields."""
    width: int = 1
    """Bytes per element of fixed-width data."""
    message: _Message | None = None


@dataclass(slots=True)
class _Message:
    make: Any
    """The class; None if the message is only checked."""
    by_tag: dict[int, _Field] = field(default_factory=dict)


_SCALARS: dict[str, list[tuple[int, int, int]]] = {
    # kind -> (wire type, how, element width); repeated scalars may be packed or not, in any mixture, and readers accept all
    "int64": [(_VARINT, _INT, 1)],
    "int64*": [(_VARINT, _INT, 1), (_LEN, _INTS, 1)],
    "int32": [(_VARINT, _INT32, 1)],
    "fixed32": [(_FIXED32, _RUN, 4)],
    "str": [(_LEN, _STR, 1)],
    "str*": [(_LEN, _STR, 1)],
    "bytes": [(_LEN, _BYTES, 1)],
    "bytes*": [(_LEN, _COUNT, 1)],
    # Kept as they would be in one packed field: an unpacked element has the same bytes.
    "varints*": [(_VARINT, _RUN, 1), (_LEN, _VARINTS, 1)],
    "floats*": [(_FIXED32, _RUN, 4), (_LEN, _RUN, 4)],
    "doubles*": [(_FIXED64, _RUN, 8), (_LEN, _RUN, 8)],
}


def _compile() -> _Message:
    messages = {name: _Message(make) for name, (make, _) in SCHEMA.items()}
    for message_name, (make, fields) in SCHEMA.items():
        stored = set(make.__dataclass_fields__) if make else set()
        for number, spec in fields.items():
            kind, _, rest = spec.partition(" ")
            name, _, slot = rest.partition("|")
            once = None if kind.endswith("*") else slot or name
            for wire, how, width in _SCALARS.get(kind, [(_LEN, _MESSAGE, 0)]):
                target = messages[kind.rstrip("*")] if how == _MESSAGE else None
                messages[message_name].by_tag[number << 3 | wire] = _Field(how, name, name in stored, once, width, target)
    return messages["Model"]


_MODEL = _compile()

# Ten bytes hold 64 bits; ten bytes in a row with the continuation bit set are longer than any varint.
_OVERLONG = re.compile(rb"[\x80-\xff]{10}")


def decode(data: bytes) -> Model:
    """The model in `data`, the whole content of an ONNX file.

    Iterative; time and memory are bounded by the file's size and by MAX_FIELDS, whatever lengths the bytes claim.
    Raises Malformed where protobuf would fail to parse, and also for groups, for a single-valued field given twice, for
    names that are not UTF-8, and beyond MAX_FIELDS, MAX_NAME_BYTES or MAX_NESTING.
    """
    model = Model()
    fields_left = MAX_FIELDS
    target: Any = model  # the object to fill, or None
    message, at, end = _MODEL, 0, len(data)
    seen: set[str] = set()
    around: list[tuple[Any, _Message, int, set[str]]] = []  # the messages that the present one is inside of
    while True:
        by_tag = message.by_tag
        while at < end:
            start = at
            fields_left -= 1
            if fields_left < 0:
                raise Malformed(f"more than {MAX_FIELDS:,} fields; no model that the downstream runs has as many", start)
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = _varint(data, start, end, 5)
            wire = tag & 7
            if not 8 <= tag <= 0xFFFFFFFF:
                raise Malformed("no field has number 0" if tag < 8 else "field number out of range", start)
            entry = by_tag.get(tag)
            value_start = at
            if wire == _LEN:
                length = data[at] if at < end else 0x80
                at += 1
                if length >= 0x80:
                    length, at = _varint(data, value_start, end, 5)
                value_start = at
                at += length
                if at > end:
                    raise Malformed(f"truncated: a field claims {length:,} bytes where {end - value_start:,} are left", start)
            elif wire == _VARINT:
                number, at = _varint(data, at, end, 10)
            elif wire == _FIXED32:
                at += 4
            elif wire == _FIXED64:
                at += 8
            else:
                raise Malformed("a protobuf group or unknown wire type, which ONNX does not have", start)
            if at > end:
                raise Malformed("truncated: a field ends beyond its message", start)
            if entry is None:
                continue
            if entry.once is not None:
                if entry.once in seen:
                    raise Malformed(f"field '{entry.name}' is given twice, and readers differ in which one counts", start)
                seen.add(entry.once)
            how = entry.how
            keep = entry.keep and target is not None
            if how == _MESSAGE:
                child = None
                submessage = entry.message
                assert submessage is not None
                if keep and submessage.make is not None:
                    child = submessage.make()
                    _put(target, entry, child)
                if len(around) >= MAX_NESTING:
                    raise Malformed(f"messages nested more than {MAX_NESTING} deep", start)
                if at > value_start:
                    around.append((target, message, end, seen))
                    target, message, at, end, seen = child, submessage, value_start, at, set()
                    by_tag = message.by_tag
                continue
            if how == _RUN and (at - value_start) % entry.width:
                raise Malformed(f"truncated: '{entry.name}' is not a whole number of elements", start)
            if how == _VARINTS or (how == _INTS and not keep):
                _check_varints(data, value_start, at, entry.name)
            if not keep:
                continue
            if how == _STR:
                if at - value_start > MAX_NAME_BYTES:
                    raise Malformed(f"'{entry.name}' is {at - value_start:,} bytes long", start)
                try:
                    name = data[value_start:at].decode("utf-8")
                except UnicodeDecodeError:
                    raise Malformed(f"'{entry.name}' is not UTF-8", start) from None
                _put(target, entry, name)
            elif how == _INT:
                _put(target, entry, number - (1 << 64) if number >> 63 else number)
            elif how == _INT32:
                # int32 and enum fields keep the low 32 bits of a longer varint; so does every protobuf reader.
                number &= 0xFFFFFFFF
                _put(target, entry, number - (1 << 32) if number >> 31 else number)
            elif how == _INTS:
                while value_start < at:
                    fields_left -= 1
                    if fields_left < 0:
                        break  # reported at the next field, or after the loop
                    number, value_start = _varint(data, value_start, at, 10)
                    _put(target, entry, number - (1 << 64) if number >> 63 else number)
            elif how == _COUNT:
                setattr(target, entry.name, getattr(target, entry.name) + 1)
            else:  # _BYTES, _RUN, _VARINTS
                _join(target, entry.name, data[value_start:at])
        if not around:
            break
        target, message, end, seen = around.pop()
    if fields_left < 0:
        raise Malformed(f"more than {MAX_FIELDS:,} fields", len(data))
    return model


def varints(packed: bytes | bytearray, at_most: int) -> list[int]:
    """The first `at_most` int64 of packed varint data that `decode` has accepted."""
    data = bytes(packed[: 10 * at_most])
    found: list[int] = []
    at = 0
    while at < len(data) and len(found) < at_most:
        number, at = _varint(data, at, len(data), 10)
        found.append(number - (1 << 64) if number >> 63 else number)
    return found


def _put(target: Any, entry: _Field, value: Any) -> None:
    if entry.once is not None:
        setattr(target, entry.name, value)
    elif values := getattr(target, entry.name):
        values.append(value)
    else:
        setattr(target, entry.name, [value])  # lists are created with their first element; most fields stay empty


def _join(target: Any, name: str, piece: bytes) -> None:
    """Add a piece of packed data; nearly always it is the only one."""
    earlier = getattr(target, name)
    if isinstance(earlier, bytearray):
        earlier += piece
    else:
        setattr(target, name, piece if earlier is None else bytearray(earlier) + piece)


def _varint(data: bytes, at: int, end: int, longest: int) -> tuple[int, int]:
    start = at
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if at - start >= longest:
            raise Malformed("overlong varint", start)
    raise Malformed("truncated: a varint ends beyond its message", start)


def _check_varints(data: bytes, start: int, end: int, name: str) -> None:
    if end > start and data[end - 1] >= 0x80:
        raise Malformed(f"truncated: the last varint of '{name}' is cut", start)
    if _OVERLONG.search(data, start, end):
        raise Malformed(f"overlong varint in '{name}'", start)
