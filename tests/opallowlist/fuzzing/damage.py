"""Damage without regard to structure: bytes flipped, cut, removed, repeated, overwritten with extremes, or spliced."""

from collections.abc import Sequence
from random import Random


def damaged(rng: Random, seed: bytes, files: Sequence[tuple[str, bytes]]) -> bytes:
    """`seed` with 1 to 16 injuries; splices come from the other `files`."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        [kind] = rng.choices(range(7), (8, 4, 1, 1, 2, 1, 1))  # mostly single bytes, which reach past the parser
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randrange(1, 20)]
        elif kind == 4:
            other = rng.choice(files)[1]
            data[at:] = other[rng.randrange(len(other)) :]
        elif kind == 5:
            data[at:at] = data[rng.randrange(len(data) + 1) :][: rng.randrange(1, 60)]
        else:
            data[at:at] = rng.choice((b"\xff" * 9 + b"\x01", b"\x0a\xff\xff\xff\xff\x07", b"\x3a\x80\x80\x80\x80\x08"))
    return bytes(data)
