"""What the contracts have in common: the axes of a declared value, the state, and how a deviation is said."""

import math
from collections.abc import Iterator, Mapping, Sequence

from distill.opallowlist.reading import messages
from distill.opallowlist.report import Violation, short

FLOAT, UINT8, UINT16 = 1, 2, 4  # TensorProto.DataType
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 6: "int32", 7: "int64", 10: "float16", 11: "float64", 16: "bfloat16",
}  # fmt: skip
FIRST_OPTIONAL_IR = 4  # below it every initializer must also be an input, and none can be overridden


def check_state(graph: messages.Graph, shapes: Mapping[str, Sequence[messages.Dim]]) -> Iterator[Violation]:
    """What is wrong with `state_in`, whose axes `shapes` has, and `state_out`."""
    for name in ("state_in", "state_out"):
        dims = shapes.get(name)
        if dims is None:
            continue
        if dims[0].value != 1 or not dims[1].value or dims[1].value < 1:
            yield misshapen(name, dims, "the contract has [1,C,h,w] with C fixed", "fix batch and channels of the state")
        if any(dim.value is not None and dim.value < 1 for dim in dims[2:]):
            yield misshapen(name, dims, "a fixed axis is at least 1", "leave a dynamic axis unset or name it")
    given, made = shapes["state_in"], shapes.get("state_out")
    yield from _check_default(graph, given)
    if made is not None and any(a.value is not None and a.value != b.value for a, b in zip(given, made, strict=True)):
        message = f"'state_out' {shown_dims(made)} cannot be fed back into 'state_in' {shown_dims(given)}"
        yield wrong("contract-state", message, "declare axes of state_in dynamic unless state_out has the same size")
    yield from _check_own_names(graph)


def _check_default(graph: messages.Graph, dims: Sequence[messages.Dim]) -> Iterator[Violation]:
    tensors = [tensor for tensor in graph.initializer if tensor.name == "state_in"]
    sparse = any(s.values is not None and s.values.name == "state_in" for s in graph.sparse_initializer)
    if len(tensors) != 1 or sparse:
        if tensors or sparse:  # _check_names reports it if there is none
            message = "'state_in' is backed by a sparse or a second initializer"
            yield wrong("contract-state", message, "back it with one dense tensor of zeros")
        return
    tensor = tensors[0]
    fits = len(tensor.dims) == len(dims) and all(
        size == dim.value if dim.value is not None else size >= 1 for size, dim in zip(tensor.dims, dims, strict=True)
    )
    if tensor.data_type != FLOAT or not fits:
        has = f"{TYPES.get(tensor.data_type, 'another type')} {list(tensor.dims[:8])}"
        message = f"the initializer of 'state_in' is {has}, the input is float32 {shown_dims(dims)}"
        hint = "make it float32 zeros of the declared shape, 1 where an axis is dynamic"
        yield wrong("contract-state", message, hint)
    elif not _all_zero(tensor):
        message = "the initializer of 'state_in' is not all zero"
        yield wrong("contract-state", message, "start from zeros; zero state means no history")


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
        for axis, dim in enumerate(dims_of(value) or ()):
            if dim.param:
                places.setdefault(dim.param, []).append((value.name, axis))
    for name, where in places.items():
        if len(where) > 1 and any(value in ("state_in", "state_out") for value, _ in where):
            shown = ", ".join(f"{short(value)}[{axis}]" for value, axis in where[:4])
            message = f"dimension name '{short(name)}' occurs at {shown}{', ...' if len(where) > 4 else ''}"
            hint = "name the state's axes apart or leave them unset; clear value_info"
            yield wrong("contract-dim-names", message, hint)


def float_dims(value: messages.Value) -> Sequence[messages.Dim] | Violation:
    """The four axes of a float32 tensor, or the violation if it is something else."""
    return typed_dims(value, (FLOAT,))


def typed_dims(value: messages.Value, types: tuple[int, ...]) -> Sequence[messages.Dim] | Violation:
    """The four axes of a tensor of one of `types`, or the violation if it is something else."""
    tensor = value.type.tensor if value.type is not None else None
    elem_type = tensor.elem_type if tensor is not None else 0
    if tensor is None or elem_type not in types:
        kind = "no tensor" if tensor is None else TYPES.get(elem_type, f"element type {elem_type}")
        message = f"'{value.name}' is {kind}; the contract has {' or '.join(TYPES[t] for t in types)}"
        return wrong("contract-type", message, "cast inside the graph")
    dims = dims_of(value)
    if dims is None or len(dims) != 4:
        rank = "no declared shape" if dims is None else f"rank {len(dims)}"
        return wrong("contract-type", f"'{value.name}' has {rank}; the contract has rank 4", "declare four axes, as [1,C,H,W]")
    return dims


def dims_of(value: messages.Value) -> Sequence[messages.Dim] | None:
    tensor = value.type.tensor if value.type is not None else None
    return tensor.shape.dim if tensor is not None and tensor.shape is not None else None


def misshapen(name: str, dims: Sequence[messages.Dim], what: str, remedy: str) -> Violation:
    return wrong("contract-shape", f"'{name}' is {shown_dims(dims)}; {what}", remedy)


def wrong(rule: str, message: str, remedy: str) -> Violation:
    return Violation(rule, message, "main", remedy=remedy)


def listed(names: list[str]) -> str:
    return ", ".join([f"'{short(name)}'" for name in names[:6]] + ["..."] * (len(names) > 6)) or "none"


def shown_dims(dims: Sequence[messages.Dim]) -> str:
    axes = ("?" if d.value is None and not d.param else short(d.param or str(d.value)) for d in dims)
    return f"[{','.join(axes)}]"
