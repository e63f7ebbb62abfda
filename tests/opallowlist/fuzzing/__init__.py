"""Mutated ONNX files: case N of a level is always the same file.

    case("structured", 17)     mutations of the model and of its wire format, by kind
    case("bytes", 17)          bytes flipped, cut, removed, repeated, overwritten, spliced

`benchmarks/gate_fuzz.py` runs tens of thousands against the checker and ONNX Runtime, `test_fuzz.py` a few hundred.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import onnx

from tests.opallowlist.fuzzing import damage, structure, values, wire

IN_MODEL = structure.MUTATIONS | values.MUTATIONS
KINDS = [*IN_MODEL, *wire.MUTATIONS]
FURTHER = sorted(IN_MODEL.keys() - {"much of one thing"})
"""Kinds that are combined with others; much of one thing would only take time."""
PRESERVING = {"harmless"} | wire.PRESERVING
"""Kinds that change nothing that counts: the verdict is that of the seed."""


class Case(NamedTuple):
    kind: str
    """The mutation, or the first of several."""
    file: str
    """The name of the file that was mutated."""
    data: bytes
    more: tuple[str, ...] = ()
    """Further mutations that were applied."""
    unchanged: bytes | None = None
    """The file before, if the mutation changes nothing that counts: the verdict has to be the same."""


def case(level: str, number: int, seed: int, files: Sequence[tuple[str, bytes]]) -> Case:
    """Case `number` of the run `seed`, made from one of `files` (name, content)."""
    rng = Random(f"{level} {seed} {number}")
    name, data = rng.choice(files)
    if level == "bytes":
        return Case("bytes", name, damage.damaged(rng, data, files))
    kind = KINDS[number % len(KINDS)]
    if kind in PRESERVING:
        return Case(kind, name, mutated(kind, rng, data), (), data)
    more = tuple(rng.choices(FURTHER, k=rng.choice((0, 0, 0, 1, 2))))
    for step in sorted((kind, *more), key=lambda step: step not in IN_MODEL):  # a file that is damaged cannot be parsed again
        data = mutated(step, rng, data)
    return Case(kind, name, data, more)


def mutated(kind: str, rng: Random, data: bytes) -> bytes:
    """`data` after one mutation of `kind`."""
    if kind in IN_MODEL:
        model = onnx.ModelProto.FromString(data)
        IN_MODEL[kind](rng, model)
        return model.SerializeToString()
    fields = wire.parse(data)
    wire.MUTATIONS[kind](rng, fields)
    return wire.encode(fields)
