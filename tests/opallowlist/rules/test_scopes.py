"""Names in nested graphs and names given twice: the gate's verdict on each, and that nobody refuses what it accepts.

`refused` says whose verdict it is: `checker`, `runtime`, `both`; `crash` is a file that ends ONNX Runtime 1.22,
`luck` one that loads because the runtime happens to take its nodes in the right order.
"""

import itertools
import random

import onnx
import pytest
from onnx import TensorProto, helper

from distill.opallowlist import check

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
value = helper.make_tensor_value_info


def branching(*, then="t = Relu (a)", out="t", given="", other="e = Neg (a)", later="") -> str:
    """A main graph with the inputs x and flag, the initializer w, the value a, then an If that computes y, then `later`."""
    return f"""g (float[1] x, bool flag) => (float[1] y) <float[1] w = {{1}}> {{
      a = Relu (x)
      y = If (flag) <then_branch = b () => (float[1] {out}) {given} {{ {then} }}, else_branch = c () => (float[1] e) {{ {other} }}>
      {later}
    }}"""


def nested(then: str, before: str = "", after: str = "", later: str = "") -> str:
    inner = f"""t = If (flag) <then_branch = d () => (float[1] n) {{ {then} }}, else_branch = f () => (float[1] m) {{ m = Neg (a) }}>"""
    return branching(then=f"{before} {inner} {after}", later=later)


def looping(*, given="p", out="p1", constants="", body="p1 = Add (p, w)", later="") -> str:
    return f"""g (float[1] x, bool flag) => (float[1] y) <float[1] w = {{1}}> {{
      a = Relu (x)
      trips = Constant <value = int64 {{3}}> ()
      y = Loop (trips, flag, a) <body = b (int64 i, bool go, float[1] {given}) => (bool on, float[1] {out}) {constants} {{
        on = Identity (go) {body}
      }}>
      {later}
    }}"""


SECOND = "y2 = If (flag) <then_branch = b2 () => (float[1] t) {{ {} }}, else_branch = c2 () => (float[1] e) {{ e = Neg (a) }}>"
STRAIGHT = "g (float[1] x) => (float[1] y) <float[1] w = {1}> { a = Add (x, w) y = Relu (a) }"

SCOPES = {
    # name: (graph, who refuses, the first message)
    "reads its own If": (branching(then="t = Relu (y)"), "both", "'y' is defined nowhere before"),
    "the other branch reads it": (branching(other="e = Neg (y)"), "both", "'y' is defined nowhere before"),
    "reads the If around its own": (nested("n = Relu (y)"), "both", "'y' is defined nowhere before"),
    "reads its own inner If": (nested("n = Relu (t)"), "both", "'t' is defined nowhere before"),
    "body reads its own Loop": (looping(body="p1 = Add (p, y)"), "both", "'y' is defined nowhere before"),
    "reads a later node": (branching(then="t = Relu (z)", later="z = Neg (x)"), "checker", "'z' is defined nowhere before"),
    "reads a later dependent": (branching(then="t = Relu (z)", later="z = Neg (y)"), "both", "'z' is defined nowhere before"),
    "nested, a later node": (nested("n = Relu (z)", later="z = Neg (x)"), "checker", "'z' is defined nowhere before"),
    "nested, later in between": (nested("n = Relu (q)", after="q = Neg (a)"), "both", "'q' is defined nowhere before"),
    "body reads a later node": (looping(body="p1 = Add (p, z)", later="z = Neg (x)"), "checker", "'z' is defined nowhere before"),
    "reads the other branch": (branching(then="q = Relu (a) t = Neg (q)", other="e = Neg (q)"), "both", "'q' is defined nowhere"),
    "read outside": (branching(then="q = Relu (a) t = Neg (q)", later="z = Neg (q)"), "both", "'q' is defined nowhere before"),
    "redefines a value": (branching(then="a = Relu (x) t = Neg (a)"), "both", "'a' is defined in a graph around this one too"),
    "redefines an input": (branching(then="x = Relu (a) t = Neg (x)"), "both", "'x' is defined in a graph around this one too"),
    "redefines an initializer": (branching(then="w = Relu (a) t = Neg (w)"), "both", "'w' is defined in a graph around"),
    "nested, redefines": (nested("a = Relu (x) n = Neg (a)"), "both", "'a' is defined in a graph around"),
    "nested, redefines between": (nested("q = Relu (a) n = Neg (q)", before="q = Neg (a)"), "both", "'q' is defined in a graph"),
    "body redefines": (looping(body="a = Add (p, w) p1 = Neg (a)"), "both", "'a' is defined in a graph around this one too"),
    "body redefines its input": (looping(body="p = Add (w, w) p1 = Neg (p)"), "both", "'p' is defined twice"),
    "redefines an earlier If": (branching(later=SECOND.format("y = Relu (a) t = Neg (y)")), "checker", "'y' is defined in a graph"),
    "a later node may come first": (
        branching(then="z = Relu (a) t = Neg (z)", later="z = Neg (x)"), "runtime", "'z' is defined inside an earlier node too"
    ),
    "nested, a later node first": (nested("z = Relu (a) n = Neg (z)", later="z = Neg (x)"), "runtime", "'z' is defined inside"),
    "nested, a later node between first": (nested("q = Relu (a) n = Neg (q)", after="q = Neg (a)"), "luck", "'q' is defined inside"),
    "output of outside": (branching(out="a", then="q = Neg (a)"), "both", "output 'a' is computed nowhere in this graph"),
    "output is an outer initializer": (branching(out="w", then=""), "both", "output 'w' is computed nowhere in this graph"),
    "input and initializer of a body": (looping(constants="<float[1] p = {1}>"), "crash", "'p' is an input of a subgraph and"),
    # Everybody reads these alike.
    "siblings": (branching(then="q = Relu (a) t = Neg (q)", other="q = Neg (a) e = Neg (q)"), "", ""),
    "siblings with one output": (branching(then="e = Relu (a)", out="e"), "", ""),
    "two Ifs": (branching(then="q = Relu (a) t = Neg (q)", later=SECOND.format("q = Relu (y) t = Neg (q)")), "", ""),
    "named like its own If": (branching(then="y = Relu (a) t = Neg (y)"), "", ""),
    "nested, named like its own If": (nested("t = Relu (a) n = Neg (t)"), "", ""),
    "nested, named like the outer If": (nested("y = Relu (a) n = Neg (y)"), "", ""),
    "named like a dependent": (branching(then="z = Relu (a) t = Neg (z)", later="u = Neg (y) z = Relu (u)"), "", ""),
    "named like a dependent by capture": (
        branching(then="y2 = Relu (a) t = Neg (y2)", later=SECOND.format("t = Relu (y)")), "", ""
    ),
    "nested, named like a dependent between": (
        nested("q = Relu (a) n = Neg (q)", before="u = Neg (a)", after="v = Neg (t) q = Neg (v)"), "", ""
    ),
    "an initializer hides a value": (branching(given="<float[1] a = {5}>"), "", ""),
    "an initializer hides an input": (branching(given="<float[1] x = {5}>", then="t = Neg (x)"), "", ""),
    "an initializer hides a later value": (branching(given="<float[1] z = {5}>", then="t = Neg (z)", later="z = Neg (x)"), "", ""),
    "output is an initializer": (branching(out="k", given="<float[1] k = {5}>", then=""), "", ""),
    "a body's input hides a value": (looping(given="a", body="p1 = Add (a, w)"), "", ""),
    "a body's input hides its own Loop": (looping(given="y", body="p1 = Add (y, w)"), "", ""),
    "a body's output is its input": (looping(out="p", body="q = Neg (p)"), "", ""),
}  # fmt: skip


def twice(text: str, change) -> onnx.ModelProto:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    change(model.graph)
    return model


def initializer(name: str, number: float = 2.0):
    return lambda graph: graph.initializer.append(helper.make_tensor(name, FLOAT, [1], [number]))


def called(*names: str):
    return lambda graph: [setattr(node, "name", name) for node, name in zip(graph.node, names, strict=False)]


def inside(change):
    """`change` for the first branch."""
    return lambda graph: change(graph.node[1].attribute[0].g)


def declared(*values: onnx.ValueInfoProto):
    return lambda graph: graph.value_info.extend(values)


TWICE = {
    "initializer": (STRAIGHT, initializer("w"), "checker", "'w' is an initializer 2 times"),
    "initializer, same value": (STRAIGHT, initializer("w", 1.0), "checker", "'w' is an initializer 2 times"),
    "initializer of a branch": (
        branching(given="<float[1] k = {5}>"), inside(initializer("k")), "both", "'k' is an initializer 2 times"
    ),
    "input": (STRAIGHT, lambda g: g.input.append(g.input[0]), "both", "'x' is an input 2 times"),
    "output of one node": (STRAIGHT, lambda g: g.node.add(op_type="Dropout", input="a", output="qq"), "both", "'q' is defined twice"),
    "node names": (STRAIGHT, called("k", "k"), "runtime", "2 nodes are called 'k'; ONNX Runtime refuses that"),
    "node names in a body": (looping(), lambda g: called("k", "k")(g.node[2].attribute[0].g), "runtime", "2 nodes are called 'k'"),
    "declared with two types": (STRAIGHT, declared(value("a", FLOAT, [1]), value("a", INT64, [1])), "both", "declares 'a' with two"),
    "declared with two shapes": (STRAIGHT, declared(value("a", FLOAT, [1]), value("a", FLOAT, [2])), "checker", "declares 'a' with two"),
    "declared with two ranks": (STRAIGHT, declared(value("a", FLOAT, [1]), value("a", FLOAT, [1, 1])), "checker", "declares 'a' with"),
    "output, two types": (STRAIGHT, lambda g: g.output.append(value("y", INT64, [1])), "checker", "output 'y' is declared with two"),
    "initializer without a name": (STRAIGHT, initializer(""), "checker", "an initializer has no name"),
    "input without a name": (STRAIGHT, lambda g: g.input.append(value("", FLOAT, [1])), "checker", "an input has no name"),
    # Everybody reads these alike.
    "output": (STRAIGHT, lambda g: g.output.append(g.output[0]), "", ""),
    "output of a branch": (
        branching(), lambda g: (g.node[1].output.append("y2"), [a.g.output.append(a.g.output[0]) for a in g.node[1].attribute]), "", ""
    ),
    "declared alike": (STRAIGHT, declared(value("a", FLOAT, [1]), value("a", FLOAT, ["n"]), value("a", FLOAT, None)), "", ""),
    "declared, but not there": (STRAIGHT, declared(value("q", FLOAT, [1]), value("q", INT64, [1])), "", ""),
    "nodes without names": (STRAIGHT, called("", ""), "", ""),
    "node names in two graphs": (branching(), lambda g: (called("k")(g), *[called("k")(a.g) for a in g.node[1].attribute]), "", ""),
    "node named like a value": (STRAIGHT, called("x", "a"), "", ""),
}  # fmt: skip

CASES = [pytest.param(twice(text, lambda graph: None), *rest, id=name) for name, (text, *rest) in SCOPES.items()]
CASES += [pytest.param(twice(text, change), *rest, id=f"twice: {name}") for name, (text, change, *rest) in TWICE.items()]


@pytest.mark.parametrize(("model", "refused", "message"), CASES)
def test_the_verdict(model, refused, message):
    found = check(model).violations
    assert {violation.rule for violation in found} == ({"wiring"} if refused else set())
    assert not refused or message in found[0].message


@pytest.mark.parametrize(("model", "refused", "message"), CASES)
def test_the_checker_and_the_runtime_agree(model, refused, message):
    if refused == "luck":
        return
    if refused != "runtime":
        if refused:
            with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
                onnx.checker.check_model(model, full_check=True)
        else:
            onnx.checker.check_model(model, full_check=True)
    runtime = pytest.importorskip("onnxruntime")
    if refused == "crash":
        return
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    loads = True
    try:
        runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # its exceptions have no common base
        loads = False
    assert loads == (refused in ("", "checker"))


def test_many_ifs_whose_names_later_nodes_have():
    """The gate tells 64 Ifs apart; it refuses the names of the others, and of none that nothing later has."""
    body = "a = Relu (x)\n" + "\n".join(
        f"y{i} = If (flag) <then_branch = b () => (float[1] t) {{ z{i} = Neg (a) t = Neg (z{i}) }}, "
        f"else_branch = c () => (float[1] e) {{ y{i} = Neg (a) e = Neg (y{i}) }}>"
        for i in range(70)
    )
    dependents = "\n".join(f"z{i} = Relu (y{i})" for i in range(70))
    text = "g (float[1] x, bool flag) => (float[1] {}) {{ {} {} }}"
    assert check(twice(text.format("y69", body, ""), lambda graph: None)).ok
    found = check(twice(text.format("z69", body, dependents), lambda graph: None)).violations
    assert [violation.message.split()[0] for violation in found] == [f"'z{i}'" for i in range(64, 70)]


def generated(seed: int) -> onnx.ModelProto:
    """Nested Ifs and Loops whose values, nodes and initializers draw some names from a small pool."""
    rng = random.Random(seed)
    collisions, wrong = rng.choice([0, 0.05, 0.15, 0.3]), rng.choice([0, 0, 0.03, 0.1])
    pool, numbers = [f"n{i}" for i in range(12)], itertools.count()

    def new(share: float = collisions) -> str:
        return rng.choice(pool) if rng.random() < share else f"v{next(numbers)}"

    def one_of(names: list[str]) -> str:
        return rng.choice(pool if rng.random() < wrong else names)

    def nodes(visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        made: list[onnx.NodeProto] = []
        seen = list(visible)
        for _ in range(rng.randint(1, 3)):
            out, kind = new(), rng.random()
            if depth < 3 and kind < 0.4:
                made.append(
                    helper.make_node("If", ["flag"], [out], then_branch=graph(seen, depth), else_branch=graph(seen, depth))
                )
            elif depth < 3 and kind < 0.5:
                made.append(helper.make_node("Loop", ["trips", "flag", one_of(seen)], [out], body=graph(seen, depth, new(0.4))))
            else:
                made.append(helper.make_node("Add", [one_of(seen), one_of(seen)], [out], name=rng.choice(["", "", "k", out])))
            seen.append(out)
        return made, seen[len(visible) :]

    def graph(visible: list[str], depth: int, carried: str = "") -> onnx.GraphProto:
        constants = [helper.make_tensor(new(0.4), FLOAT, [1], [2])] if rng.random() < 0.3 else []
        inside = [tensor.name for tensor in constants] + [carried] * bool(carried)
        made, names = nodes(visible + inside, depth + 1)
        out = one_of(names + inside)
        if not carried:
            return helper.make_graph(made, "branch", [], [value(out, FLOAT, [1])], constants)
        go, on = f"v{next(numbers)}", f"v{next(numbers)}"
        made.append(helper.make_node("Identity", [go], [on]))
        inputs = [value(f"v{next(numbers)}", INT64, []), value(go, TensorProto.BOOL, []), value(carried, FLOAT, [1])]
        return helper.make_graph(made, "body", inputs, [value(on, TensorProto.BOOL, []), value(out, FLOAT, [1])], constants)

    made, names = nodes(["x"], 0)
    trips = helper.make_node("Constant", [], ["trips"], value=helper.make_tensor("t", INT64, [], [1]))
    inputs = [value("x", FLOAT, [1]), value("flag", TensorProto.BOOL, [])]
    main = helper.make_graph([trips, *made], "main", inputs, [value(names[-1], FLOAT, [1])])
    return helper.make_model(main, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_generated_names(start):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    accepted = 0
    for seed in range(start, start + 100):
        model = generated(seed)
        found = [violation for violation in check(model).violations if violation.rule == "wiring"]
        loads = True
        try:
            onnx.checker.check_model(model, full_check=True)
            runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # their exceptions have no common base
            loads = False
        # The runtime may happen to take the nodes of a refused model in the right order.
        assert loads == (not found) or (found and all("inside an earlier" in violation.message for violation in found)), seed
        accepted += not found
    assert 30 < accepted < 90
