"""The contracts of a student's variants, for consumers that want other inputs than RGB frames of any size.

- `saliency-yuv420`: the planes of a decoder, uint8 (uint16 for more than 8 bits): `y` [1, 1, H, W], and either `u` and `v`
  [1, 1, ceil(H/2), ceil(W/2)] or `uv` [1, ceil(H/2), ceil(W/2), 2]. All sizes are dynamic, or all fixed.
- `saliency-fixed`: `input` float32 [1, 3, H, W] of one fixed size.

The first output of both is `saliency_map` float32 [1, 1, H, W], or `block_map` float32 [1, 1, ceil(H/16), ceil(W/16)]. With
`state_in` comes the second output `state_out`. An initializer of zeros may back `state_in`, and need not where its size is fixed:
runtimes for fixed sizes take an input that has an initializer for a constant.
"""

from collections.abc import Iterator, Sequence

from distill.opallowlist.reading import messages
from distill.opallowlist.report import Violation
from distill.opallowlist.rules.interface import (
    FIRST_OPTIONAL_IR,
    FLOAT,
    UINT8,
    UINT16,
    check_state,
    listed,
    misshapen,
    typed_dims,
    wrong,
)

VARIANTS = ("saliency-yuv420", "saliency-fixed")

BLOCK = 16  # px a side of a block of `block_map`
_FRAMES = {"saliency-yuv420": (["y", "u", "v"], ["y", "uv"]), "saliency-fixed": (["input"],)}
_MAPS = ("saliency_map", "block_map")
_SMALLER_BY = {"u": 2, "v": 2, "uv": 2, "block_map": BLOCK}  # times than the frame, in height and width


def check_variant(model: messages.Model, graph: messages.Graph, contract: str) -> Iterator[Violation]:
    """Every deviation of the main graph's interface from `contract`, a name of VARIANTS."""
    yield from _check_names(model, graph, contract)
    frame_names = {name for names in _FRAMES[contract] for name in names}
    shapes: dict[str, Sequence[messages.Dim]] = {}
    kinds: set[int] = set()
    for value in (*graph.input, *graph.output):
        integer = value.name in frame_names and value.name != "input"
        if not integer and value.name not in ("input", "state_in", "state_out", *_MAPS):
            continue  # _check_names reports it
        dims = typed_dims(value, (UINT8, UINT16) if integer else (FLOAT,))
        if isinstance(dims, Violation):
            yield dims
            continue
        shapes[value.name] = dims
        if integer and value.type is not None and value.type.tensor is not None:
            kinds.add(value.type.tensor.elem_type)
    if len(kinds) > 1:
        yield wrong("contract-type", "the planes are uint8 and uint16", "give all planes one type")
    yield from _check_sizes(shapes, contract)
    if "state_in" in shapes:
        yield from check_state(graph, shapes)
        state, backed = shapes["state_in"], any(tensor.name == "state_in" for tensor in graph.initializer)
        if not backed and any(dim.value is None for dim in state):
            what = "a required state needs a fixed shape, so that callers can feed zeros"
            yield misshapen("state_in", state, what, "fix its axes, or back it with an initializer of zeros")


def _check_names(model: messages.Model, graph: messages.Graph, contract: str) -> Iterator[Violation]:
    backed = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in backed or model.ir_version >= FIRST_OPTIONAL_IR]
    outputs = [value.name for value in graph.output]
    state = "state_in" in inputs
    allowed = [[*names, *(["state_in"] if state else [])] for names in _FRAMES[contract]]
    if inputs not in allowed or backed & set(inputs) - {"state_in"}:
        message = f"inputs are {listed(inputs)}; the contract has {' or '.join(map(listed, _FRAMES[contract]))}, and perhaps 'state_in'"
        yield wrong("contract-inputs", message, "rename or fold inputs")
    if outputs not in [[name, *(["state_out"] if state else [])] for name in _MAPS]:
        message = (
            f"outputs are {listed(outputs)}; the contract has 'saliency_map' or 'block_map', then 'state_out' with a state"
        )
        yield wrong("contract-outputs", message, "rename or reorder them; consumers read the first as the map")


def _check_sizes(shapes: dict[str, Sequence[messages.Dim]], contract: str) -> Iterator[Violation]:
    """The frame's size, fixed or dynamic, and those that follow from it; where the frame itself is wrong, that is reported already."""
    first = "y" if contract == "saliency-yuv420" else "input"
    frame = shapes.get(first)
    if frame is None:
        return
    size, names = [dim.value for dim in frame[2:]], {dim.param for dim in frame[2:] if dim.param}
    fixed = None not in size
    for name, dims in shapes.items():
        if name in ("state_in", "state_out"):
            continue
        batch, channel, *sides = dims if name != "uv" else (dims[0], dims[3], *dims[1:3])
        channels = {"input": 3, "uv": 2}.get(name, 1)
        if batch.value != 1 or channel.value != channels:
            axes = "[1,h,w,2]" if name == "uv" else f"[1,{channels},H,W]"
            yield misshapen(name, dims, f"the contract has {axes}", "export with batch 1")
        if not fixed and (contract == "saliency-fixed" or any(dim.value is not None for dim in sides)):
            what = "height and width must be fixed" if contract == "saliency-fixed" else "all sizes are dynamic, or all fixed"
            yield misshapen(name, dims, what, "export for the one frame size, or for any")
        elif fixed:
            by = _SMALLER_BY.get(name, 1)
            expected = [-(-side // by) for side in size if side is not None]
            if [dim.value for dim in sides] != expected or min(expected) < 1:
                shown = "x".join(map(str, expected))
                yield misshapen(name, dims, f"height and width are {shown} for this frame", "export for one frame size")
        elif sides[0].param and sides[0].param == sides[1].param:
            what = "height and width share a name, which says that frames are square"
            yield misshapen(name, dims, what, "give each its own name")
        elif name in _SMALLER_BY and names & {dim.param for dim in sides}:
            what = f"an axis has a name of '{first}', which says that it is as long"
            yield misshapen(name, dims, what, "give it its own name")
