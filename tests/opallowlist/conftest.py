"""Models for the gate's tests, written in ONNX's own text format."""

from collections.abc import Callable

import onnx
import onnx.parser
import pytest

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
IMAGE = """
agraph (float[1,3,H,W] input) => (float[1,1,H,W] saliency_map) <float[1,3,1,1] w = {0.1, 0.1, 0.1}> {
  c = Conv (input, w)
  saliency_map = Sigmoid (c)
}
"""
STEP = """
agraph (float[1,3,H,W] input, float[1,1,h,w] state_in) => (float[1,1,H,W] saliency_map, float[1,1,p,q] state_out)
<float[1,3,1,1] k = {0.1, 0.1, 0.1}, float[1,1,1,1] state_in = {0}> {
  c = Conv (input, k)
  state_out = Add (c, state_in)
  saliency_map = Sigmoid (state_out)
}
"""


@pytest.fixture(scope="session")
def parse() -> Callable[..., onnx.ModelProto]:
    """Text to model: a graph, with the house header unless one is given; local functions may follow it."""

    def from_text(text: str, header: str = HEADER) -> onnx.ModelProto:
        return onnx.parser.parse_model(header + text)

    return from_text


@pytest.fixture
def image(parse: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """The smallest model that keeps the `saliency-image` contract."""
    return parse(IMAGE)


@pytest.fixture
def step(parse: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """The smallest model that keeps the `saliency-step` contract."""
    return parse(STEP)


@pytest.fixture(scope="session")
def scanner() -> Callable[[bytes], str]:
    """The downstream's scanner as its facts describe it: why it refuses, or "" if it accepts.

    It reads the wire format independently, and only operator names, nesting depth and the number of Loops.
    """
    from distill.opallowlist import load_list

    return lambda data: _scan(data, load_list("libvmaf").ops)


def _scan(data: bytes, allowed: frozenset[str]) -> str:
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
                    if not 0 < len(name) <= 127 or word not in allowed:
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
