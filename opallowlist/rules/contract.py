"""The student's contracts: the names and shapes of inputs and outputs that consumers of a saliency model rely on.

- `saliency-image`: one input `input` float32 [1, 3, H, W], one output `saliency_map` float32 [1, 1, H, W].
- `saliency-step`: also `state_in` float32 [1, C, h, w], optional because an initializer of zeros backs it; the second
  output is `state_out`.
- `saliency-luma`: one input `input` float32 [1, 1, H, W], one output `saliency_map` of the same shape, H and W fixed: for
  consumers with luma frames of one size.
- `saliency-yuv420`, `saliency-fixed`: see `variants`.
- `saliency`: one of these; yuv420 if an input is called `y`, step if the graph names `state_in` or `state_out`, luma if `input` has
  one channel; never fixed, which most consumers do not accept.

Except for luma and those of `variants`, H and W are dynamic. The batch is 1, because a state belongs to one stream. h and w may
be fixed (a fixed working resolution) or dynamic. No other tensor may share the state's symbolic dimension names: ONNX Runtime's
memory planner assumes that equal names mean equal sizes, and fails when the state grows. Inside, no Unsqueeze makes a tensor of
rank 5: a time axis would mean a model of clips, and consumers feed frames. (Reshape may, as for a pixel shuffle.)
"""

from collections.abc import Iterator, Mapping, Sequence

from distill.opallowlist.reading import messages
from distill.opallowlist.report import Violation, short
from distill.opallowlist.rules.interface import FIRST_OPTIONAL_IR, check_state, dims_of, float_dims, listed, misshapen, wrong
from distill.opallowlist.rules.variants import VARIANTS, check_variant

CONTRACTS = ("saliency-image", "saliency-step", "saliency-luma", *VARIANTS, "saliency")


def resolve(contract: str, model: messages.Model) -> str:
    """`contract` itself, or which of its forms `saliency` means for this model."""
    if contract != "saliency":
        return contract
    graph = model.graph or messages.Graph()
    names = {value.name for value in (*graph.input, *graph.output)}
    if any(value.name == "y" for value in graph.input):
        return "saliency-yuv420"
    if names & {"state_in", "state_out"}:
        return "saliency-step"
    shapes = [dims_of(value) or () for value in graph.input if value.name == "input"]
    luma = any(len(dims) == 4 and dims[1].value == 1 for dims in shapes)
    return "saliency-luma" if luma else "saliency-image"


def check_contract(model: messages.Model, contract: str) -> Iterator[Violation]:
    """Every deviation of the main graph's interface from `contract`, a name of CONTRACTS other than `saliency`."""
    graph = model.graph
    if graph is None:
        return
    if contract in VARIANTS:
        yield from check_variant(model, graph, contract)
        yield from _check_rank(graph)
        return
    step = contract == "saliency-step"
    yield from _check_names(model, graph, step)
    inputs, outputs = (("input", "state_in"), ("saliency_map", "state_out")) if step else (("input",), ("saliency_map",))
    values = {value.name: value for value in graph.input if value.name in inputs}
    values |= {value.name: value for value in graph.output if value.name in outputs}
    shapes: dict[str, Sequence[messages.Dim]] = {}
    for value in values.values():
        dims = float_dims(value)
        if isinstance(dims, Violation):
            yield dims
        else:
            shapes[value.name] = dims
    if contract == "saliency-luma":
        yield from _check_luma(shapes)
    else:
        yield from _check_image(shapes)
    if "state_in" in shapes:
        yield from check_state(graph, shapes)
    yield from _check_rank(graph)


def _check_names(model: messages.Model, graph: messages.Graph, step: bool) -> Iterator[Violation]:
    backed = {tensor.name for tensor in graph.initializer}
    backed |= {sparse.values.name for sparse in graph.sparse_initializer if sparse.values is not None}
    required = [value.name for value in graph.input if value.name not in backed]
    optional = [value.name for value in graph.input if value.name in backed]
    outputs = [value.name for value in graph.output]
    if required != ["input"]:
        hint = "back it with a zero initializer named 'state_in'" if "state_in" in required else "rename or fold inputs"
        message = f"required inputs are {listed(required)}; the contract has 'input' alone"
        yield wrong("contract-inputs", message, hint)
    if step and "state_in" not in required:
        if model.ir_version < FIRST_OPTIONAL_IR:
            message = f"IR version {model.ir_version} has no optional inputs; 'state_in' needs {FIRST_OPTIONAL_IR} or more"
            yield wrong("contract-state", message, "save with model.ir_version = 8")
        elif optional != ["state_in"]:
            message = f"optional inputs are {listed(optional)}; the contract has 'state_in' alone"
            hint = "list state_in in graph.input and give it an initializer of that name"
            yield wrong("contract-state", message, hint)
    elif not step and optional and model.ir_version >= FIRST_OPTIONAL_IR:
        message = f"optional inputs {listed(optional)}; an image model has only the input 'input'"
        hint = "take initializers out of graph.input, so that they are constants"
        if "state_in" in optional:
            hint = "this is a step file: check it with --contract saliency-step"
        yield wrong("contract-inputs", message, hint)
    expected = ["saliency_map", "state_out"] if step else ["saliency_map"]
    if outputs != expected:
        message = f"outputs are {listed(outputs)}; the contract has {listed(expected)}, in this order"
        yield wrong("contract-outputs", message, "rename or reorder them; consumers read the first as the map")


def _check_image(shapes: Mapping[str, Sequence[messages.Dim]]) -> Iterator[Violation]:
    for name, channels in (("input", 3), ("saliency_map", 1)):
        if name not in shapes:
            continue
        dims = shapes[name]
        batch, channel, height, width = dims
        if batch.value != 1 or channel.value != channels:
            yield misshapen(name, dims, f"the contract has [1,{channels},H,W]", "export with batch 1")
        if height.value is not None or width.value is not None:
            hint = "mark both as dynamic axes; consumers feed any frame size"
            yield misshapen(name, dims, "height and width must be dynamic", hint)
        elif height.param and height.param == width.param:
            what = "height and width share a name, which says that frames are square"
            yield misshapen(name, dims, what, "give each its own name")


def _check_luma(shapes: Mapping[str, Sequence[messages.Dim]]) -> Iterator[Violation]:
    """Both must be [1,1,H,W] of one fixed size; _check_names reports missing ones."""
    sizes = set()
    for name, dims in shapes.items():
        batch, channel, height, width = dims
        if batch.value != 1 or channel.value != 1:
            yield misshapen(name, dims, "the contract has [1,1,H,W]", "export with batch 1, for luma")
        if any(dim.value is None or dim.value < 1 for dim in (height, width)):
            hint = "export for the one frame size; the consumer knows no other"
            yield misshapen(name, dims, "height and width must be fixed", hint)
        else:
            sizes.add((height.value, width.value))
    if len(sizes) > 1:
        yield wrong("contract-shape", "'input' and 'saliency_map' differ in size", "give a value for every pixel")


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
    ranks |= {value.name: len(dims) for value in graph.input if (dims := dims_of(value)) is not None}
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
