"""Files of the student that ships, pictures for them, and a stream of pictures through a runtime."""

from collections.abc import Sequence

import cv2
import numpy as np
import onnx

from distill.export import release_model
from distill.export.core import require_state
from distill.export.runner import IMAGENET_MEAN, IMAGENET_STD, largest_gap
from distill.export.variants import Variant, variant_graph
from tests.runtimes.sessions import Feed, Session

FRAMES = 30


def student(kind: str, size: tuple[int, int] | None) -> onnx.ModelProto:
    """A file of the student that ships: `image`, or the input and perhaps the output of a variant. size: height, width; None for any.

    The state is a required input in all of them: OpenVINO takes the default of an optional one for a constant, and ONNX Runtime
    for the web refuses it.
    """
    source, _, output = kind.partition(" ")
    model = onnx.load(release_model("image" if source in ("image", "luma") else "step"))
    source = "rgb" if source == "image" else source
    if size or output or source != "rgb":
        model = variant_graph(model, Variant(source, size, output or "map"))
    require_state(model)
    return model


def pictures(model: onnx.ModelProto, size: tuple[int, int], count: int = FRAMES) -> list[Feed]:
    """What the model takes for each frame, without the state: two soft textures that move, with a cut between them."""
    rng, (height, width) = np.random.default_rng(0), size
    large = (width + 2 * count, height + count)
    textures = [cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), large, interpolation=cv2.INTER_CUBIC) for _ in range(2)]
    inputs, feeds = {value.name: value.type.tensor_type.shape for value in model.graph.input}, []
    for t in range(count):
        picture = textures[2 * t // count][t : t + height, 2 * t : 2 * t + width]
        u, v = (np.ascontiguousarray(picture[::2, ::2, channel])[None, None] for channel in (1, 2))
        if "input" not in inputs:
            chroma = {"uv": np.stack([u[0], v[0]], -1)} if "uv" in inputs else {"u": u, "v": v}
            feeds.append({"y": np.ascontiguousarray(picture[..., 0])[None, None], **chroma})
        elif inputs["input"].dim[1].dim_value == 1:
            feeds.append({"input": (picture[..., 0] / np.float32(255))[None, None]})
        else:
            rgb = (picture / np.float32(255) - IMAGENET_MEAN.ravel()) / IMAGENET_STD.ravel()
            feeds.append({"input": np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], np.float32)})
    return feeds


def streamed(session: Session, model: onnx.ModelProto, feeds: Sequence[Feed]) -> tuple[list[np.ndarray], list[float]]:
    """The maps of all frames, and the seconds that each took; the state starts with zeros."""
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    state = {"state_in": np.zeros(shapes["state_in"], np.float32)} if "state_in" in shapes else {}
    maps, seconds = [], []
    for feed in feeds:
        before = session.clock()
        saliency, *states = session.run({**feed, **state})
        seconds.append(session.clock() - before)
        maps.append(saliency)
        state = {"state_in": states[0]} if states else {}
    return maps, seconds


def largest_difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Over all values of all maps; shapes must agree."""
    assert all(a.shape == b.shape for a, b in zip(ours, theirs, strict=True))
    return largest_gap(ours, theirs)
