"""Ranks of the main graph's tensors, as far as they follow from declarations without shape inference.

The contracts need them to refuse models that stack frames along a fifth axis. A rank is known only if the operator's
definition allows no other. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator

from distill.opallowlist import messages

# The output has the first input's rank, whatever the attributes.
_SAME = frozenset((
    "Abs", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "ConvTranspose", "DequantizeLinear",
    "Dropout", "Elu", "Erf", "Exp", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
    "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "MaxPool", "Neg", "PRelu", "Pad",
    "QuantizeLinear", "Reciprocal", "Relu", "Resize", "ScatterND", "Selu", "Sigmoid", "Slice", "Softmax", "Softplus",
    "Softsign", "Sqrt", "Tanh", "Transpose",
))  # fmt: skip
# Broadcasting: the output has the highest rank among the inputs.
_WIDEST = frozenset(("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum"))


def unsqueezed_beyond(graph: messages.Graph, limit: int) -> Iterator[tuple[messages.Node, int, int]]:
    """Every Unsqueeze of the main graph whose result is known to have a rank over `limit`: (node, index, rank)."""
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    sizes = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 1}
    for value in graph.input:
        tensor = value.type.tensor if value.type is not None else None
        if tensor is not None and tensor.shape is not None:
            ranks[value.name] = len(tensor.shape.dim)
    for index, node in enumerate(graph.node):
        if not node.output:
            continue
        constant = _constant(node)
        if constant is not None:
            ranks[node.output[0]] = len(constant.dims)
            if len(constant.dims) == 1:
                sizes[node.output[0]] = constant.dims[0]
            continue
        rank = _rank(node, ranks, sizes)
        if rank is not None:
            ranks[node.output[0]] = rank
            if node.op_type == "Unsqueeze" and rank > limit:
                yield node, index, rank


def _constant(node: messages.Node) -> messages.Tensor | None:
    return next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None


def _rank(node: messages.Node, ranks: dict[str, int], sizes: dict[str, int]) -> int | None:
    inputs = [ranks.get(name) for name in node.input if name]
    first = inputs[0] if inputs else None
    if node.op_type in _SAME:
        return first
    if node.op_type in _WIDEST:
        known = [rank for rank in inputs if rank is not None]
        return max(known) if known and len(known) == len(inputs) else None
    if node.op_type in ("Unsqueeze", "Squeeze") and first is not None:
        axes = _axes(node, sizes)
        if axes is not None:
            return first + axes if node.op_type == "Unsqueeze" else first - axes
    return None


def _axes(node: messages.Node, sizes: dict[str, int]) -> int | None:
    """The number of axes; from opset 13 on they are the second input."""
    if len(node.input) > 1:
        return sizes.get(node.input[1])
    return next((len(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), None)
