"""Mutations of the bytes as protobuf's wire format: fields given twice, split, packed, overlong, of unknown number or type.

Files are read with a walker of their own, by the descriptors of the onnx package. It shares nothing with the gate's decoder.
A mutation is a function `(rng, fields) -> None` that changes the tree of fields in place, and the file is written from it.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

import onnx

VARINT, FIXED64, LEN, GROUP, END_GROUP, FIXED32, RAW = 0, 1, 2, 3, 4, 5, -1
"""Wire types; RAW bytes are written as they are, without a tag."""


@dataclass
class Field:
    number: int
    wire: int
    value: Any
    """An int (VARINT), bytes, or the list of a message's fields."""
    meaning: Any = None
    """Protobuf's descriptor of the field; None if onnx.proto has no such field."""


Fields: TypeAlias = list[Field]
Mutation: TypeAlias = Callable[[Random, Fields], None]


def varint(value: int, padded_to: int = 0) -> bytes:
    """`value`, of which protobuf keeps 64 bits; `padded_to` more bytes than needed are legal, up to ten."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F or len(out) < padded_to - 1:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def tagged(number: int, wire: int, payload: bytes) -> bytes:
    return varint(number << 3 | wire) + (varint(len(payload)) if wire == LEN else b"") + payload


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def parse(data: bytes, descriptor: Any = onnx.ModelProto.DESCRIPTOR) -> Fields:
    """The fields of an undamaged file."""
    fields, at = [], 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        meaning = descriptor.fields_by_number.get(number)
        value: Any
        if wire == VARINT:
            value, at = read_varint(data, at)
        elif wire == LEN:
            length, at = read_varint(data, at)
            value, at = data[at : at + length], at + length
            if meaning is not None and meaning.message_type is not None:
                value = parse(value, meaning.message_type)
        else:
            width = 8 if wire == FIXED64 else 4
            value, at = data[at : at + width], at + width
        fields.append(Field(number, wire, value, meaning))
    return fields


def encode(fields: Fields) -> bytes:
    return b"".join(encode_field(field) for field in fields)


def encode_field(field: Field) -> bytes:
    if field.wire == RAW:
        return field.value
    if field.wire == VARINT:
        return tagged(field.number, VARINT, varint(field.value))
    return tagged(field.number, field.wire, payload(field))


def payload(field: Field) -> bytes:
    return encode(field.value) if isinstance(field.value, list) else field.value


def places(fields: Fields) -> Iterator[tuple[Fields, int]]:
    """Every field of the tree as (the message that holds it, its position there)."""
    todo = [fields]
    while todo:
        message = todo.pop()
        for position, field in enumerate(message):
            yield message, position
            if isinstance(field.value, list):
                todo.append(field.value)


def pick(rng: Random, fields: Fields, suits: Callable[[Field], bool] = lambda field: True) -> tuple[Fields, int] | None:
    """A random place; kinds of fields are equally likely, so that a model's thousand names do not hide its one shape."""
    found: dict[str, list[tuple[Fields, int]]] = {}
    for message, position in places(fields):
        field = message[position]
        if suits(field):
            found.setdefault(field.meaning.full_name if field.meaning else str(field.number), []).append((message, position))
    return rng.choice(found[rng.choice(sorted(found))]) if found else None


def messages(fields: Fields) -> list[Fields]:
    return [fields, *(m[i].value for m, i in places(fields) if isinstance(m[i].value, list))]


def single(field: Field) -> bool:
    return field.meaning is not None and not field.meaning.is_repeated


def numbers(field: Field) -> bool:
    """Whether it is a repeated field of numbers, which may be packed or not."""
    return field.meaning is not None and field.meaning.is_repeated and field.meaning.cpp_type not in (9, 10)


# --- mutations


def field_twice(rng: Random, fields: Fields) -> None:
    if place := pick(rng, fields, single):
        message, at = place
        field = message[at]
        value = rng.choice((field.value, other_value(rng, field)))
        message.insert(rng.choice((at, at + 1, len(message))), Field(field.number, field.wire, value, field.meaning))


def message_in_two_pieces(rng: Random, fields: Fields) -> None:
    if place := pick(rng, fields, lambda field: isinstance(field.value, list) and single(field)):
        message, at = place
        field = message[at]
        cut = rng.randrange(len(field.value) + 1)
        first, second = field.value[:cut], field.value[cut:]
        message[at] = Field(field.number, LEN, first, field.meaning)
        message.insert(rng.choice((at, at + 1, len(message))), Field(field.number, LEN, second, field.meaning))


def two_files_in_one(rng: Random, fields: Fields) -> None:
    """Protobuf reads concatenated messages as one merged message."""
    fields += [field for field in fields if rng.random() < 0.5]


def fields_in_another_order(rng: Random, fields: Fields) -> None:
    """Legal: only the order of the entries of one repeated field counts."""
    message = rng.choice([m for m in messages(fields) if m])
    rank = {number: rng.random() for number in {field.number for field in message}}
    message.sort(key=lambda field: rank[field.number])


def elements(field: Field) -> list[Field]:
    """A packed or unpacked field of numbers, as unpacked fields."""
    if field.wire != LEN:
        return [field]
    if field.meaning.cpp_type in (5, 6):  # double, float
        wire, width = (FIXED64, 8) if field.meaning.cpp_type == 5 else (FIXED32, 4)
        values = [field.value[i : i + width] for i in range(0, len(field.value), width)]
    else:
        wire, values, at = VARINT, [], 0
        while at < len(field.value):
            value, at = read_varint(field.value, at)
            values.append(value)
    return [Field(field.number, wire, value, field.meaning) for value in values]


def packed(parts: Fields) -> Field:
    value = b"".join(varint(part.value) if part.wire == VARINT else part.value for part in parts)
    return Field(parts[0].number, LEN, value, parts[0].meaning)


def packing(rng: Random, fields: Fields) -> None:
    """Legal: all elements packed, all unpacked, in pieces, or some this way and some that."""
    if place := pick(rng, fields, lambda field: numbers(field) and len(payload(field) if field.wire == LEN else b"1") < 4096):
        message, at = place
        number = message[at].number
        every = [part for field in message if field.number == number for part in elements(field)]
        if not every:
            return
        where = next(i for i, field in enumerate(message) if field.number == number)
        cut = rng.randrange(len(every) + 1)
        halves = [every[:cut], every[cut:]]
        new: Fields = []
        for half in halves:
            new += [packed(half)] if half and rng.random() < 0.5 else half
        message[:] = [field for field in message if field.number != number]
        message[where:where] = new


def unknown_field(rng: Random, fields: Fields) -> None:
    message = rng.choice([m for m in messages(fields) if m and m[0].meaning is not None])
    known = message[0].meaning.containing_type.fields_by_number
    number = rng.choice([n for n in (9, 15, 17, 19, 27, 99, 1000, 19000, (1 << 29) - 1) if n not in known])
    wire = rng.choice((VARINT, FIXED64, LEN, FIXED32))
    content = {VARINT: varint(rng.getrandbits(64)), FIXED64: bytes(8), FIXED32: b"\xff" * 4}
    some = content.get(wire) or encode(rng.choice(messages(fields)))[:200]
    message.insert(rng.randrange(len(message) + 1), Field(0, RAW, tagged(number, wire, some)))


def group(rng: Random, fields: Fields) -> None:
    place = pick(rng, fields)
    message, at = place or (fields, 0)
    number = message[at].number if message and rng.random() < 0.5 else rng.choice((1, 7, 99))
    inside = encode_field(message[at]) if message else b""
    closed = b"" if rng.random() < 0.2 else varint(number << 3 | END_GROUP)
    message.insert(at, Field(0, RAW, varint(number << 3 | GROUP) + inside + closed))
    if rng.random() < 0.5 and len(message) > at + 1:
        del message[at + 1]


def overlong_varint(rng: Random, fields: Fields) -> None:
    """A tag, length or value in more bytes than it needs, which protobuf reads up to five (tag, length) or ten (value)."""
    if place := pick(rng, fields, lambda field: field.wire in (VARINT, LEN)):
        message, at = place
        field = message[at]
        padding = rng.choice((2, 3, 5, 6, 9, 10, 11, 20))
        tag, long_tag = varint(field.number << 3 | field.wire), varint(field.number << 3 | field.wire, padding)
        if field.wire == VARINT:
            raw = rng.choice((long_tag + varint(field.value), tag + varint(field.value, padding)))
        else:
            content = payload(field)
            raw = rng.choice((long_tag + varint(len(content)), tag + varint(len(content), padding))) + content
        message[at] = Field(0, RAW, raw)


def high_bits(rng: Random, fields: Fields) -> None:
    """An int32, enum, tag or length with bits above the 32nd; a bool or an int64 with bits above the 64th."""
    if place := pick(rng, fields, lambda field: field.wire in (VARINT, LEN)):
        message, at = place
        field = message[at]
        if field.wire == LEN or rng.random() < 0.2:
            number = varint((field.number | rng.choice((1 << 29, 1 << 32, 1 << 60))) << 3 | field.wire)
            body = varint(field.value) if field.wire == VARINT else varint(len(payload(field))) + payload(field)
            message[at] = Field(0, RAW, number + body)
        elif rng.random() < 0.5:
            field.value |= rng.choice((1 << 32, 1 << 33, 1 << 63, 0xFFFFFFFF << 32))
        else:
            last = bytes([*(byte | 0x80 for byte in varint(field.value, 9)), rng.choice((0x02, 0x7F, 0x7E))])
            message[at] = Field(0, RAW, varint(field.number << 3) + last)


def wrong_wire_type(rng: Random, fields: Fields) -> None:
    """A field in another wire type than onnx.proto's is unknown to protobuf."""
    if place := pick(rng, fields):
        message, at = place
        field = message[at]
        wire = rng.choice([wire for wire in (VARINT, FIXED64, LEN, FIXED32) if wire != field.wire])
        content = {VARINT: varint(3), FIXED64: bytes(8), LEN: b"\x08\x01", FIXED32: bytes(4)}[wire]
        message[at] = Field(0, RAW, tagged(field.number, wire, content))


def other_field_number(rng: Random, fields: Fields) -> None:
    if place := pick(rng, fields, lambda field: field.meaning is not None):
        message, at = place
        message[at].number = rng.choice(sorted(message[at].meaning.containing_type.fields_by_number))


def field_dropped(rng: Random, fields: Fields) -> None:
    if place := pick(rng, fields):
        message, at = place
        del message[at]


def field_moved(rng: Random, fields: Fields) -> None:
    if place := pick(rng, fields):
        message, at = place
        field = message[at]
        target = rng.choice(messages(fields))
        copied = Field(0, RAW, encode_field(field))
        target.insert(rng.randrange(len(target) + 1), copied)
        if rng.random() < 0.5:
            del message[next(i for i, f in enumerate(message) if f is field)]


def field_replaced(rng: Random, fields: Fields) -> None:
    """By another field of the same meaning, or by an empty one."""
    if place := pick(rng, fields):
        message, at = place
        field = message[at]
        same = [m[i] for m, i in places(fields) if m[i].meaning is field.meaning and m[i].wire == field.wire]
        raw = encode_field(rng.choice(same)) if rng.random() < 0.7 else tagged(field.number, LEN, b"")
        message[at] = Field(0, RAW, raw)


def wrong_length(rng: Random, fields: Fields) -> None:
    if place := pick(rng, fields, lambda field: field.wire == LEN):
        message, at = place
        content = payload(message[at])
        claimed = rng.choice((0, len(content) - 1, len(content) + 1, len(content) + 7, 1 << 31, (1 << 31) - 1, 1 << 35))
        message[at] = Field(0, RAW, varint(message[at].number << 3 | LEN) + varint(claimed) + content)


def other_value(rng: Random, field: Field) -> Any:
    if field.wire == VARINT:
        extremes = (0, 1, 2, 3, 7, 16, 127, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
        return rng.choice((*extremes, max(field.value - 1, 0), field.value + 1))
    if isinstance(field.value, list):
        return rng.choice(([], field.value[: len(field.value) // 2], field.value[::2]))
    if field.wire in (FIXED32, FIXED64):
        return struct.pack("<f" if field.wire == FIXED32 else "<d", rng.choice((0.0, -1.0, float("nan"), float("inf"))))
    bad = (b"", b"\xff", b"\0", field.value + b"\0", field.value[:-1], field.value + b" ", b"x" * 300, b"\xed\xa0\x80")
    return rng.choice(bad)


def extreme_value(rng: Random, fields: Fields) -> None:
    if place := pick(rng, fields):
        message, at = place
        message[at].value = other_value(rng, message[at])


MUTATIONS: dict[str, Mutation] = {
    "field given twice": field_twice,
    "message in two pieces": message_in_two_pieces,
    "two files in one": two_files_in_one,
    "fields in another order": fields_in_another_order,
    "packed and unpacked": packing,
    "unknown field": unknown_field,
    "group": group,
    "overlong varint": overlong_varint,
    "high bits": high_bits,
    "wrong wire type": wrong_wire_type,
    "other field number": other_field_number,
    "field dropped": field_dropped,
    "field moved": field_moved,
    "field replaced": field_replaced,
    "wrong length": wrong_length,
    "extreme value": extreme_value,
}

PRESERVING = {"fields in another order", "packed and unpacked", "unknown field"}
"""Mutations that every protobuf reader must see through: the verdict is the seed's."""
