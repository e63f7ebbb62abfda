"""Models for the gate's tests, written in ONNX's own text format."""

from collections.abc import Callable

import onnx
import onnx.parser
import pytest

from tests.opallowlist.scanner import scan

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
    """The downstream's scanner: why it refuses a file, or "" if it accepts."""
    return scan
