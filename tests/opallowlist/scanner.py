"""The downstream's scanner as its facts describe it: operator names, nesting depth and the number of Loops, no more.

It reads the wire format on its own, so that the gate's reader is compared with another.
"""

from distill.opallowlist import load_list

ALLOWED = load_list("libvmaf").ops


def scan(data: bytes) -> str:
    """Why the downstream refuses `data`, or "" if it accepts."""
    loops = 0
    graphs = 0

    def fields(start: int, end: int):
        at = start
        while at < end:
            tag, at = varint(at, end)
            number, wire = (tag & 0xFFFFFFFFFFFFFFFF) >> 3 & 0xFFFFFFFF, tag & 7
            if wire == 0:
                _, after = varint(at, end)
            elif wire in (1, 5):
                after = at + (8 if wire == 1 else 4)
            elif wire == 2:
                length, at = varint(at, end)
                after = at + length
            else:
                raise ValueError("group")
            if after > end:
                raise ValueError("truncated")
            yield number, wire, at, after
            at = after

    def varint(at: int, end: int) -> tuple[int, int]:
        value = 0
        for count in range(10):
            if at >= end:
                raise ValueError("truncated varint")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << 7 * count
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
        raise ValueError("overlong varint")

    def graph(start: int, end: int, depth: int) -> None:
        nonlocal loops
        if depth > 8:
            raise ValueError("depth")
        for number, wire, at, after in fields(start, end):
            if (number, wire) != (1, 2):
                continue
            for node_field, node_wire, begin, stop in fields(at, after):
                if (node_field, node_wire) == (4, 2):
                    name = data[begin:stop]
                    # A C string ends at its first zero byte.
                    word = name.split(b"\0")[0].decode("latin-1")
                    if not 0 < len(name) <= 127 or word not in ALLOWED:
                        raise ValueError(f"op {name[:40]!r}")
                    loops += word == "Loop"
                    if loops > 16:
                        raise ValueError("op Loop")
                elif (node_field, node_wire) == (5, 2):
                    for number_, wire_, begin_, stop_ in fields(begin, stop):
                        if number_ in (6, 11) and wire_ == 2:
                            graph(begin_, stop_, depth + 1)

    try:
        if not 0 < len(data) <= 50 * 1024 * 1024:
            raise ValueError("size")
        for number, wire, at, after in fields(0, len(data)):
            if (number, wire) == (7, 2):
                graphs += 1
                graph(at, after, 0)
        if not graphs:
            raise ValueError("no graph")
    except ValueError as error:
        return str(error)
    return ""
