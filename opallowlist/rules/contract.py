"""The student's contracts: the names and shapes of inputs and outputs that consumers of a saliency model rely on.

- `saliency-image`: one input `input` float32 [1, 3, H, W], one output `saliency_map` float32 [1, 1, H, W].
- `saliency-step`: also `state_in` float32 [1, C, h, w], optional because an initializer of zeros backs it; the second
  output is `state_out`.
- `saliency-luma`: one input `input` float32 [1, 1, H, W], one output `saliency_map` of the same shape, H and W fixed: for
  consumers with luma frames of one size.
- `saliency`: one of the three; step if the graph names `state_in` or `state_out`, luma if `input` has one channel.

Except for luma, H and W are dynamic. The batch is 1, because a state belongs to one stream. h and w may be fixed (a fixed
working resolution) or dynamic. No other tensor may share the state's symbolic dimension names: ONNX Runtime's memory planner
assumes that equal names mean equal sizes, and fails when the state grows. Inside, no Unsqueeze makes a tensor of rank 5: a
time axis would mean a model of clips, and consumers feed frames. (Reshape may, as for a pixel shuffle.)
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from distill.opallowlist.reading import messages
from distill.opallowlist.report import Violation, short

CONTRACTS = ("saliency-image", "saliency-step", "saliency-luma", "saliency")

_FLOAT = 1  # TensorProto.DataType
_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 11: "float64", 16: "bfloat16"}
_FIRST_OPTIONAL_IR = 4  # below it every initializer must also be an input, and none can be overridden


def resolve(contract: str, model: messages.Model) -> str:
    """`contract` itself, or which of its three forms `saliency` means for this model."""
    if contract != "saliency":
        return contract
    graph = model.graph or messages.Graph()
    names = {value.name for value in (*graph.input, *graph.output)}
    if names & {"state_in", "state_out"}:
        return "saliency-step"
    shapes = [_dims(value) or () for value in graph.input if value.name == "input"]
    luma = any(len(dims) == 4 and dims[1].value == 1 for dims in shapes)
    return "saliency-luma" if luma else "saliency-image"


def check_contract(model: messages.Model, contract: str) -> Iterator[Violation]:
    """Every deviation of the main graph's interface from `contract`, a name of CONTRACTS other than `saliency`."""
    graph = model.graph
    if graph is None:
        return
    step = contract == "saliency-step"
    yield from _check_names(model, graph, step)
    inputs, outputs = (("input", "state_in"), ("saliency_map", "state_out")) if step else (("input",), ("saliency_map",))
    values = {value.name: value for value in graph.input if value.name in inputs}
    values |= {value.name: value for value in graph.output if value.name in outputs}
    shapes: dict[str, Sequence[messages.Dim]] = {}
    for value in values.values():
        dims = _float_dims(value)
        if isinstance(dims, Violation):
            yield dims
        else:
            shapes[value.name] = dims
    if contract == "saliency-luma":
        yield from _check_luma(shapes)
    else:
        yield from _check_image(shapes)
    if "state_in" in shapes:
        yield from _check_state(graph, shapes)
    yield from _check_rank(graph)


def _check_names(model: messages.Model, graph: messages.Graph, step: bool) -> Iterator[Violation]:
    backed = {tensor.name for tensor in graph.initializer}
    backed |= {sparse.values.name for sparse in graph.sparse_initializer if sparse.values is not None}
    required = [value.name for value in graph.input if value.name not in backed]
    optional = [value.name for value in graph.input if value.name in backed]
    outputs = [value.name for value in graph.output]
    if required != ["input"]:
        hint = "back it with a zero initializer named 'state_in'" if "state_in" in required else "rename or fold inputs"
        message = f"required inputs are {_listed(required)}; the contract has 'input' alone"
        yield _wrong("contract-inputs", message, hint)
    if step and "state_in" not in required:
        if model.ir_version < _FIRST_OPTIONAL_IR:
            message = f"IR version {model.ir_version} has no optional inputs; 'state_in' needs {_FIRST_OPTIONAL_IR} or more"
            yield _wrong("contract-state", message, "save with model.ir_version = 8")
        elif optional != ["state_in"]:
            message = f"optional inputs are {_listed(optional)}; the contract has 'state_in' alone"
            hint = "list state_in in graph.input and give it an initializer of that name"
            yield _wrong("contract-state", message, hint)
    elif not step and optional and model.ir_version >= _FIRST_OPTIONAL_IR:
        message = f"optional inputs {_listed(optional)}; an image model has only the input 'input'"
        hint = "take initializers out of graph.input, so that they are constants"
        if "state_in" in optional:
            hint = "this is a step file: check it with --contract saliency-step"
        yield _wrong("contract-inputs", message, hint)
    expected = ["saliency_map", "state_out"] if step else ["saliency_map"]
    if outputs != expected:
        message = f"outputs are {_listed(outputs)}; the contract has {_listed(expected)}, in this order"
        yield _wrong("contract-outputs", message, "rename or reorder them; consumers read the first as the map")


def _check_image(shapes: Mapping[str, Sequence[messages.Dim]]) -> Iterator[Violation]:
    for name, channels in (("input", 3), ("saliency_map", 1)):
        if name not in shapes:
            continue
        dims = shapes[name]
        batch, channel, height, width = dims
        if batch.value != 1 or channel.value != channels:
            yield _misshapen(name, dims, f"the contract has [1,{channels},H,W]", "export with batch 1")
        if height.value is not None or width.value is not None:
            hint = "mark both as dynamic axes; consumers feed any frame size"
            yield _misshapen(name, dims, "height and width must be dynamic", hint)
        elif height.param and height.param == width.param:
            what = "height and width share a name, which says that frames are square"
            yield _misshapen(name, dims, what, "give each its own name")


def _check_luma(shapes: Mapping[str, Sequence[messages.Dim]]) -> Iterator[Violation]:
    """Both must be [1,1,H,W] of one fixed size; _check_names reports missing ones."""
    sizes = set()
    for name, dims in shapes.items():
        batch, channel, height, width = dims
        if batch.value != 1 or channel.value != 1:
            yield _misshapen(name, dims, "the contract has [1,1,H,W]", "export with batch 1, for luma")
        if any(dim.value is None or dim.value < 1 for dim in (height, width)):
            hint = "export for the one frame size; the consumer knows no other"
            yield _misshapen(name, dims, "height and width must be fixed", hint)
        else:
            sizes.add((height.value, width.value))
    if len(sizes) > 1:
        yield _wrong("contract-shape", "'input' and 'saliency_map' differ in size", "give a value for every pixel")


def _check_state(graph: messages.Graph, shapes: Mapping[str, Sequence[messages.Dim]]) -> Iterator[Violation]:
    for name in ("state_in", "state_out"):
        dims = shapes.get(name)
        if dims is None:
            continue
        if dims[0].value != 1 or not dims[1].value or dims[1].value < 1:
            yield _misshapen(name, dims, "the contract has [1,C,h,w] with C fixed", "fix batch and channels of the state")
        if any(dim.value is not None and dim.value < 1 for dim in dims[2:]):
            yield _misshapen(name, dims, "a fixed axis is at least 1", "leave a dynamic axis unset or name it")
    given, made = shapes["state_in"], shapes.get("state_out")
    yield from _check_default(graph, given)
    if made is not None and any(a.value is not None and a.value != b.value for a, b in zip(given, made, strict=True)):
        message = f"'state_out' {_shown(made)} cannot be fed back into 'state_in' {_shown(given)}"
        yield _wrong("contract-state", message, "declare axes of state_in dynamic unless state_out has the same size")
    yield from _check_own_names(graph)


def _check_default(graph: messages.Graph, dims: Sequence[messages.Dim]) -> Iterator[Violation]:
    tensors = [tensor for tensor in graph.initializer if tensor.name == "state_in"]
    sparse = any(s.values is not None and s.values.name == "state_in" for s in graph.sparse_initializer)
    if len(tensors) != 1 or sparse:
        if tensors or sparse:  # _check_names reports it if there is none
            message = "'state_in' is backed by a sparse or a second initializer"
            yield _wrong("contract-state", message, "back it with one dense tensor of zeros")
        return
    tensor = tensors[0]
    fits = len(tensor.dims) == len(dims) and all(
        size == dim.value if dim.value is not None else size >= 1 for size, dim in zip(tensor.dims, dims, strict=True)
    )
    if tensor.data_type != _FLOAT or not fits:
        has = f"{_TYPES.get(tensor.data_type, 'another type')} {list(tensor.dims[:8])}"
        message = f"the initializer of 'state_in' is {has}, the input is float32 {_shown(dims)}"
        hint = "make it float32 zeros of the declared shape, 1 where an axis is dynamic"
        yield _wrong("contract-state", message, hint)
    elif not _all_zero(tensor):
        message = "the initializer of 'state_in' is not all zero"
        yield _wrong("contract-state", message, "start from zeros; zero state means no history")


def _all_zero(tensor: messages.Tensor) -> bool:
    """Whether the float32 tensor has as many elements as its dims say, all of them +0.0."""
    data = tensor.raw_data if tensor.float_data is None else tensor.float_data
    if data is None or (tensor.raw_data is not None and tensor.float_data is not None):
        return False
    return len(data) == 4 * math.prod(tensor.dims) and not bytes(data).strip(b"\0")


def _check_own_names(graph: messages.Graph) -> Iterator[Violation]:
    """The state's symbolic dimension names must occur only once in the main graph's declarations."""
    places: dict[str, list[tuple[str, int]]] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis, dim in enumerate(_dims(value) or ()):
            if dim.param:
                places.setdefault(dim.param, []).append((value.name, axis))
    for name, where in places.items():
        if len(where) > 1 and any(value in ("state_in", "state_out") for value, _ in where):
            shown = ", ".join(f"{short(value)}[{axis}]" for value, axis in where[:4])
            message = f"dimension name '{short(name)}' occurs at {shown}{', ...' if len(where) > 4 else ''}"
            hint = "name the state's axes apart or leave them unset; clear value_info"
            yield _wrong("contract-dim-names", message, hint)


def _float_dims(value: messages.Value) -> Sequence[messages.Dim] | Violation:
    """The four axes of a float32 tensor, or the violation if it is something else."""
    tensor = value.type.tensor if value.type is not None else None
    elem_type = tensor.elem_type if tensor is not None else 0
    if tensor is None or elem_type != _FLOAT:
        kind = "no tensor" if tensor is None else _TYPES.get(elem_type, f"element type {elem_type}")
        return _wrong("contract-type", f"'{value.name}' is {kind}; the contract has float32", "cast inside the graph")
    dims = _dims(value)
    if dims is None or len(dims) != 4:
        rank = "no declared shape" if dims is None else f"rank {len(dims)}"
        return _wrong("contract-type", f"'{value.name}' has {rank}; the contract has rank 4", "declare [1,C,H,W]")
    return dims


def _dims(value: messages.Value) -> Sequence[messages.Dim] | None:
    tensor = value.type.tensor if value.type is not None else None
    return tensor.shape.dim if tensor is not None and tensor.shape is not None else None


def _misshapen(name: str, dims: Sequence[messages.Dim], what: str, remedy: str) -> Violation:
    return _wrong("contract-shape", f"'{name}' is {_shown(dims)}; {what}", remedy)


def _wrong(rule: str, message: str, remedy: str) -> Violation:
    return Violation(rule, message, "main", remedy=remedy)


def _listed(names: list[str]) -> str:
    return ", ".join([f"'{short(name)}'" for name in names[:6]] + ["..."] * (len(names) > 6)) or "none"


def _shown(dims: Sequence[messages.Dim]) -> str:
    axes = ("?" if d.value is None and not d.param else short(d.param or str(d.value)) for d in dims)
    return f"[{','.join(axes)}]"


# Operators whose output has the first input's rank, whatever the attributes.
_SAME_RANK = frozenset((
    "Abs", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "ConvTranspose", "DequantizeLinear",
    "Dropout", "Elu", "Erf", "Exp", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
    "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "MaxPool", "Neg", "PRelu", "Pad",
    "QuantizeLinear", "Reciprocal", "Relu", "Resize", "ScatterND", "Selu", "Sigmoid", "Slice", "Softmax", "Softplus",
    "Softsign", "Sqrt", "Tanh", "Transpose",
))  # fmt: skip
# Broadcasting: the output has the highest rank among the inputs.
_WIDEST_RANK = frozenset(("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum"))


def _check_rank(graph: messages.Graph) -> Iterator[Violation]:
    """No Unsqueeze of the main graph may make a tensor whose rank is known to be over 4.

    Ranks follow from declarations and constants without shape inference; one is known only if the operator's definition
    allows no other.
    """
    ranks: dict[str, int] = {}
    sizes: dict[str, int] = {}

    def store(name: str, tensor: messages.Tensor) -> None:
        ranks[name] = len(tensor.dims)
        if len(tensor.dims) == 1:
            sizes[name] = tensor.dims[0]

    for tensor in graph.initializer:
        store(tensor.name, tensor)
    ranks |= {value.name: len(dims) for value in graph.input if (dims := _dims(value)) is not None}
    for index, node in enumerate(graph.node):
        constant = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if not node.output:
            continue
        if constant is not None:
            store(node.output[0], constant)
        elif (rank := _rank(node, ranks, sizes)) is not None:
            ranks[node.output[0]] = rank
            if node.op_type == "Unsqueeze" and rank > 4:
                message = f"makes a tensor of rank {rank}; a model of single frames stays at rank 4"
                way_out = "carry time in the state, and export the model for one frame"
                yield Violation("contract-rank", message, "main", short(node.name), node.op_type, index, way_out)


def _rank(node: messages.Node, ranks: Mapping[str, int], sizes: Mapping[str, int]) -> int | None:
    inputs = [ranks.get(name) for name in node.input if name]
    first = inputs[0] if inputs else None
    if node.op_type in _SAME_RANK:
        return first
    known = [rank for rank in inputs if rank is not None]
    if node.op_type in _WIDEST_RANK:
        return max(known) if known and len(known) == len(inputs) else None
    if node.op_type not in ("Unsqueeze", "Squeeze") or first is None:
        return None
    # The number of axes; from opset 13 on they are the second input.
    declared = next((len(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), None)
    axes = sizes.get(node.input[1]) if len(node.input) > 1 else declared
    if axes is None:
        return None
    return first + axes if node.op_type == "Unsqueeze" else first - axes
