"""Content rules: what is refused in which graph, where the report says it is, and what it offers instead."""

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from distill.opallowlist import Allowlist, check
from distill.opallowlist.rules.scan import MAX_FINDINGS


def rules(report):
    return [violation.rule for violation in report.violations]


def only(report):
    assert len(report.violations) == 1, [str(violation) for violation in report.violations]
    return report.violations[0]


def body(nodes: str, header: str = '<ir_version: 8, opset_import: ["" : 17]>') -> onnx.ModelProto:
    graph = f"agraph (float[1,3,H,W] x) => (float[1,3,H,W] y) <bool cond = {{1}}, float k = {{2}}> {{ {nodes} }}"
    return onnx.parser.parse_model(header + graph)


def test_an_allowed_model_is_accepted_with_its_facts(image):
    report = check(image)
    assert report.ok and not report.warnings
    assert (report.facts.opset, report.facts.ir_version, report.facts.nodes) == (17, 8, 2)
    assert report.facts.ops == {"Conv": 1, "Sigmoid": 1}
    assert report.facts.bytes == image.ByteSize() and len(report.facts.sha256) == 64
    assert report.source == "<memory>" and report.allowlist == "libvmaf" and report.allowed == 70


def test_a_refused_operator_is_named_with_its_place_and_a_remedy():
    model = body("m = Relu (x)  n = Greater (m, k)  y = Where (n, m, x)")
    model.graph.node[2].name = "/gate/Where"
    greater, where = check(model).violations
    assert (greater.rule, greater.op_type, greater.path, greater.node, greater.index) == ("op", "Greater", "main", "", 1)
    assert greater.place == "main: Greater_1"
    assert (where.op_type, where.node, where.index, where.place) == ("Where", "/gate/Where", 2, "main: /gate/Where")
    assert "m * a + (1 - m) * b" in where.remedy


def test_names_are_compared_case_by_case():
    violation = only(check(body("y = relu (x)")))
    assert violation.rule == "op" and "'Relu'" in violation.remedy


@pytest.mark.parametrize("name", ["", "A" * 128, "ä" * 64])
def test_empty_and_overlong_names(name):
    model = body("y = Relu (x)")
    model.graph.node[0].op_type = name
    allowed = Allowlist("all", frozenset([name, "Relu"]))
    assert rules(check(model, allowlist=allowed)) == ["op-name"]


def test_a_name_of_127_bytes_is_only_not_on_the_list():
    model = body("y = Relu (x)")
    model.graph.node[0].op_type = "A" * 127
    assert rules(check(model)) == ["op"]


def test_operators_inside_subgraphs_are_found_where_they_are():
    model = body(
        """a = Relu (x)
        y = If (cond) <then_branch: graph = t () => (float[1,3,H,W] t) { t = Tanh (a) },
                       else_branch: graph = e () => (float[1,3,H,W] e) {
                           u = Identity (a)
                           e = If (cond) <then_branch: graph = tt () => (float[1,3,H,W] tt) { tt = Floor (u) },
                                          else_branch: graph = ee () => (float[1,3,H,W] ee) { ee = Ceil (u) }> }>"""
    )
    places = {violation.op_type: violation.path for violation in check(model).violations}
    assert places == {"Floor": "main/If_1.else_branch/If_1.then_branch", "Ceil": "main/If_1.else_branch/If_1.else_branch"}


def test_graph_lists_are_searched_on_any_operator():
    model = body("y = Relu (x)")
    hidden = helper.make_graph([helper.make_node("Floor", ["x"], ["y"])], "hidden", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("extra", [helper.make_graph([], "g", [], []), hidden]))
    [violation] = [violation for violation in check(model).violations if violation.rule == "op"]
    assert violation.path == "main/Relu_0.extra[1]"


def test_a_graph_is_searched_whatever_its_attribute_says_its_type_is():
    model = body("y = Relu (x)")
    attribute = model.graph.node[0].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT)
    attribute.g.name = "hidden"
    attribute.g.node.add(op_type="Floor")
    rules = {"definition": "Relu", "attribute": "Relu", "op": "Floor"}
    assert {v.rule: v.op_type for v in check(model).violations} == rules


def test_local_functions_are_refused_and_searched():
    header = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
    graph = "agraph (float[N] x) => (float[N] y) { y = local.Softsign (x) }"
    function = '<domain: "local", opset_import: ["" : 17]> Softsign (a) => (b) { c = Relu (a)  b = Floor (c) }'
    violations = check(onnx.parser.parse_model(f"{header} {graph} {function}")).violations
    assert [(v.rule, v.path, v.op_type) for v in violations] == [
        ("local-function", "functions/local.Softsign", ""),
        ("custom-domain", "main", "Softsign"),
        ("op", "functions/local.Softsign", "Floor"),
    ]


def test_function_attribute_defaults_are_searched():
    model = body("y = Relu (x)")
    function = model.functions.add(name="F")
    default = function.attribute_proto.add(name="body", type=onnx.AttributeProto.GRAPH)
    default.g.node.add(op_type="Floor")
    default.t.external_data.add(key="location", value="w.bin")
    assert sorted(rules(check(model))) == ["external-data", "local-function", "op"]


def test_training_graphs_are_refused_and_searched():
    model = body("y = Relu (x)")
    model.training_info.add().algorithm.node.add(op_type="Gradient", domain="ai.onnx.preview.training")
    violations = check(model).violations
    assert [(v.rule, v.path) for v in violations] == [
        ("training-info", "training_info[0]"),
        ("custom-domain", "training_info[0].algorithm"),
    ]


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "com.evil", " "])
def test_custom_domains_are_refused_even_with_a_listed_name(domain):
    model = body("y = Relu (x)")
    model.graph.node[0].domain = domain
    violation = only(check(model))
    assert violation.rule == "custom-domain" and repr(domain) in violation.message


def test_the_default_domain_may_be_spelled_out():
    model = body("y = Relu (x)", '<ir_version: 8, opset_import: ["ai.onnx" : 17]>')
    model.graph.node[0].domain = "ai.onnx"
    assert check(model).ok and loads(model)


def test_the_default_domain_is_not_spelled_out_in_subgraphs():
    branches = "then_branch: graph = t () => (float[1,3,H,W] t) { t = Tanh (x) }"
    branches += ", else_branch: graph = e () => (float[1,3,H,W] e) { e = Relu (x) }"
    model = body(f"y = If (cond) <{branches}>")
    model.graph.node[0].domain = "ai.onnx"
    assert check(model).ok and loads(model)
    model.graph.node[0].attribute[1].g.node[0].domain = "ai.onnx"
    assert rules(check(model)) == ["custom-domain"] and not loads(model)


def test_an_unused_import_of_a_domain_is_a_warning():
    report = check(body("y = Relu (x)", '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'))
    assert report.ok and [warning.rule for warning in report.warnings] == ["unused-domain"]


@pytest.mark.parametrize(("opset", "accepted"), [(6, False), (7, True), (17, True), (21, True), (22, False)])
def test_opsets(opset, accepted):
    report = check(body("y = Relu (x)", f'<ir_version: 8, opset_import: ["" : {opset}]>'))
    assert report.ok == accepted
    assert [w.rule for w in report.warnings] == (["house-opset"] if accepted and opset != 17 else [])


def test_missing_and_contradictory_opsets_are_refused():
    model = body("y = Relu (x)")
    model.opset_import.add(domain="ai.onnx", version=18)
    assert "opset 17 and 18" in only(check(model)).message
    del model.opset_import[:]
    assert rules(check(model)) == ["opset"]


@pytest.mark.parametrize("opset", [0, -1, -(1 << 63), (1 << 32) + 17, (1 << 63) - 1])
def test_opsets_that_are_none(opset):
    model = body("y = Relu (x)")
    model.opset_import[0].version = opset
    assert rules(check(model)) == ["opset"] and f"opset {opset}" in only(check(model)).message


def test_the_same_opset_twice_is_one_and_many_are_not_all_listed():
    model = body("y = Relu (x)")
    model.opset_import.add(domain="ai.onnx", version=17)
    assert check(model).ok
    for version in range(1000):
        model.opset_import.add(version=version)
    assert "opset 0 and 1 and 2 and more" in only(check(model)).message


@pytest.mark.parametrize(
    ("domain", "version", "accepted"),
    [("ai.onnx.ml", 5, True), ("ai.onnx.ml", 6, False), ("com.microsoft", 1, True), ("com.microsoft", 2, False),
     ("local", 99, True), ("local", 0, False), ("local", -1, False), ("local", 1 << 31, False)],
)  # fmt: skip
def test_versions_of_other_domains(domain, version, accepted):
    """ONNX Runtime loads no model that imports a version from its future, even if nothing of it is used."""
    model = body("y = Relu (x)")
    model.opset_import.add(domain=domain, version=version)
    assert rules(check(model)) == ([] if accepted else ["opset"])


def declared(of: str, elem_type: int = TensorProto.FLOAT) -> onnx.TypeProto:
    """A type, from the inside out: `optional sequence tensor`."""
    made = onnx.TypeProto()
    at = made
    for word in of.split():
        if word == "tensor":
            at.tensor_type.elem_type = elem_type
        else:
            at = (at.optional_type if word == "optional" else at.sequence_type).elem_type
    return made


@pytest.mark.parametrize(
    ("of", "elem_type", "accepted"),
    [
        ("tensor", TensorProto.FLOAT, True),
        ("tensor", TensorProto.INT4, True),
        ("sequence tensor", TensorProto.STRING, True),
        ("optional sequence tensor", TensorProto.FLOAT, True),
        ("", 0, False),
        ("tensor", 0, False),
        ("tensor", 99, False),
        ("tensor", TensorProto.COMPLEX64, False),
        ("sequence tensor", 99, False),
        ("sequence sequence tensor", TensorProto.FLOAT, False),
        ("optional optional tensor", TensorProto.FLOAT, False),
    ],
)
def test_types_of_inputs_and_values(of, elem_type, accepted):
    for kind in ("input", "value_info"):
        model = body("y = Relu (x)")
        getattr(model.graph, kind).add(name="v").type.CopyFrom(declared(of, elem_type))
        fine = accepted or (not of and kind == "value_info")
        assert rules(check(model)) == ([] if fine else ["value-type"]), kind


@pytest.mark.parametrize(("ir", "accepted"), [(0, False), (2, False), (3, True), (8, True), (10, True), (11, False)])
def test_ir_versions(ir, accepted):
    model = body("y = Relu (x)")
    model.ir_version = ir
    report = check(model)
    assert report.ok == accepted
    assert [w.rule for w in report.warnings] == (["house-ir"] if accepted and ir != 8 else [])


@pytest.mark.parametrize(("ir", "expected"), [(3, ["ir-version"]), (4, [])])
def test_subgraphs_have_initializers_from_ir_4_on(ir, expected):
    branch = "graph = t () => (float[1,3,H,W] t) <float two = {2}> { t = Mul (x, two) }"
    other = "graph = e () => (float[1,3,H,W] e) { e = Mul (x, k) }"
    model = body(f"y = If (cond) <then_branch: {branch}, else_branch: {other}>")
    model.ir_version = ir
    assert rules(check(model)) == expected
    assert loads(model) == (not expected)


def test_subgraphs_have_names():
    """ONNX Runtime wants one of them, but not of the main graph."""
    branches = "then_branch: graph = t () => (float[1,3,H,W] t) { t = Tanh (x) }"
    branches += ", else_branch: graph = e () => (float[1,3,H,W] e) { e = Relu (x) }"
    model = body(f"y = If (cond) <{branches}>")
    model.graph.name = ""
    assert check(model).ok and loads(model)
    model.graph.node[0].attribute[1].g.name = ""
    assert rules(check(model)) == ["wiring"] and not loads(model)


def loads(model: onnx.ModelProto) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options)
    except Exception:  # its exceptions have no common base
        return False
    return True


def test_an_operator_must_exist_in_the_opset():
    violation = only(check(body("y = Gelu (x)")))
    assert violation.rule == "op-opset" and "opset 20" in violation.message
    assert check(body("y = Gelu (x)", '<ir_version: 8, opset_import: ["" : 20]>')).ok


LOOP = """<body: graph = b (int64 i, bool c, float[1,3,H,W] v) => (bool d, float[1,3,H,W] w) {
    d = Identity (c)  w = Relu (v) }>"""


def loop_fed_by(constant: str) -> onnx.ModelProto:
    return body(f"{constant}  y = Loop (m, cond, x) {LOOP}")


@pytest.mark.parametrize("count", [0, 1, 1024])
def test_constant_trip_counts(count):
    assert check(loop_fed_by(f"m = Constant <value = int64 {{{count}}}> ()")).ok
    typed = helper.make_tensor("t", TensorProto.INT64, [1], [count])
    assert typed.int64_data
    model = loop_fed_by("m = Constant <value = int64 {1}> ()")
    model.graph.node[0].attribute[0].t.CopyFrom(typed)
    assert check(model).ok


@pytest.mark.parametrize(
    ("constant", "why"),
    [
        ("m = Constant <value = int64 {1025}> ()", "trip count 1,025"),
        ("m = Constant <value = int64 {-1}> ()", "trip count -1"),
        ("m = Constant <value = int32 {4}> ()", "not a single int64"),
        ("m = Constant <value = int64[2] {1, 2}> ()", "not a single int64"),
        ("m = Constant <value_int = 4> ()", "not a single int64"),
        ("k1 = Constant <value = int64 {4}> ()  m = Identity (k1)", "computed by Identity"),
    ],
)
def test_other_trip_counts_are_refused(constant, why):
    violation = only(check(loop_fed_by(constant)))
    assert violation.rule == "loop-trip-count" and why in violation.message and "Constant node" in violation.remedy


def test_a_trip_count_from_an_initializer_is_refused():
    model = loop_fed_by("m = Constant <value = int64 {4}> ()")
    model.graph.initializer.add().CopyFrom(model.graph.node[0].attribute[0].t)
    model.graph.initializer[-1].name = "m"
    del model.graph.node[0]
    assert "not a Constant of this graph" in only(check(model)).message


def test_a_trip_count_with_two_values_is_refused():
    model = loop_fed_by("m = Constant <value = int64 {4}> ()")
    tensor = model.graph.node[0].attribute[0].t
    tensor.raw_data = (4).to_bytes(8, "little")
    tensor.int64_data[:] = [10**9]
    assert rules(check(model)) == ["tensor-data", "loop-trip-count"]


@pytest.mark.parametrize("kind", [*range(15), 99])
def test_a_trip_count_has_the_type_of_a_tensor(kind):
    """Whatever else the attribute holds, and also if it holds nothing else: ONNX Runtime goes by the type."""
    for fields in ({}, {"i": 50_000}, {"ints": [50_000]}, {"f": 5e4}, {"s": b"50000"}, {"ref_attr_name": "n"}):
        model = loop_fed_by("m = Constant <value = int64 {4}> ()")
        old = model.graph.node[0].attribute[0]
        new = onnx.AttributeProto(name="value", t=old.t, **fields).SerializeToString() + b"\xa0\x01" + bytes([kind])
        old.CopyFrom(onnx.AttributeProto.FromString(new))
        fine = kind == onnx.AttributeProto.TENSOR and not fields
        assert set(rules(check(model))) == (set() if fine else {"attribute", "loop-trip-count"}), fields


def test_a_trip_count_computed_twice_is_refused():
    model = loop_fed_by("m = Constant <value = int64 {4}> ()")
    model.graph.node.insert(0, helper.make_node("Identity", ["x"], ["m"]))
    assert rules(check(model)) == ["loop-trip-count", "wiring"]


def test_a_loop_without_a_trip_count_is_refused():
    assert "for ever" in only(check(body(f"y = Loop (, cond, x) {LOOP}"))).message
    model = body("y = Relu (x)")
    model.graph.node[0].op_type = "Loop"
    del model.graph.node[0].input[:]
    assert set(rules(check(model))) == {"definition", "loop-trip-count"}


def test_the_trip_count_must_be_in_the_loops_own_graph():
    inner = f"t = Loop (m, cond, x) {LOOP}"
    branch = f"graph = t () => (float[1,3,H,W] t) {{ {inner} }}"
    other = "graph = e () => (float[1,3,H,W] e) { e = Relu (x) }"
    model = body(f"m = Constant <value = int64 {{4}}> ()  y = If (cond) <then_branch: {branch}, else_branch: {other}>")
    violation = only(check(model))
    assert (violation.rule, violation.path) == ("loop-trip-count", "main/If_1.then_branch")


@pytest.mark.parametrize(("loops", "expected"), [(16, []), (17, ["loop-count"]), (40, ["loop-count"])])
def test_loops_are_counted_over_the_whole_model(loops, expected):
    nodes = "m = Constant <value = int64 {1}> ()" + "".join(f"v{i} = Loop (m, cond, x) {LOOP}" for i in range(loops - 1))
    branch = f"m2 = Constant <value = int64 {{1}}> ()  t = Loop (m2, cond, x) {LOOP}"
    other = "else_branch: graph = e () => (float[1,3,H,W] e) { e = Relu (x) }"
    model = body(f"{nodes} y = If (cond) <then_branch: graph = t () => (float[1,3,H,W] t) {{ {branch} }}, {other}>")
    assert rules(check(model)) == expected


def nested_loops(outer: int, inner: int) -> onnx.ModelProto:
    """An If between the Loops: it does not hide the outer count."""
    branch = f"n = Constant <value = int64 {{{inner}}}> ()  t = Loop (n, go, a) {LOOP}"
    choice = f"""If (go) <then_branch: graph = t () => (float[1,3,H,W] t) {{ {branch} }},
                          else_branch: graph = e () => (float[1,3,H,W] e) {{ e = Relu (a) }}>"""
    loop = f"""<body: graph = o (int64 j, bool on, float[1,3,H,W] a) => (bool go, float[1,3,H,W] z) {{
        go = Identity (on)  z = {choice} }}>"""
    return body(f"m = Constant <value = int64 {{{outer}}}> ()  y = Loop (m, cond, x) {loop}")


@pytest.mark.parametrize(("outer", "inner", "accepted"), [(32, 32, True), (0, 1024, True), (1, 1024, True), (1024, 2, False)])
def test_nested_loops_multiply_their_trip_counts(outer, inner, accepted):
    report = check(nested_loops(outer, inner))
    assert report.ok == accepted
    if not accepted:
        violation = only(report)
        assert violation.rule == "loop-trip-count" and "2,048 iterations" in violation.message
        assert violation.path == "main/Loop_1.body/If_1.then_branch"


@pytest.mark.parametrize(("bound", "accepted"), [("float {2}", True), ("float[1] {2}", True), ("float[0] {}", False)])
def test_a_bound_of_clip_has_an_element(bound, accepted):
    """ONNX Runtime 1.22 dies while it loads an empty one behind a Conv or a Relu; the checker and 1.32 load it."""
    expected = [] if accepted else ["definition"]
    for use in ("Clip (r, b)", "Clip (r, , b)"):
        assert rules(check(body(f"b = Constant <value = {bound}> ()  r = Relu (x)  y = {use}"))) == expected
    kind, values = bound.split()
    graph = f"agraph (float[1,3,H,W] x) => (float[1,3,H,W] y) <{kind} b = {values}> {{ r = Relu (x)  y = Clip (r, b) }}"
    assert rules(check(onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + graph))) == expected


def test_a_bound_of_clip_from_an_empty_list():
    assert rules(check(body("b = Constant <value_floats = [2.0]> ()  r = Relu (x)  y = Clip (r, b)"))) == []
    model = body("b = Constant <value_floats = [2.0]> ()  r = Relu (x)  y = Clip (r, b)")
    del model.graph.node[0].attribute[0].floats[:]
    assert rules(check(model)) == ["definition"]


def test_scan_is_refused_even_if_a_list_has_it():
    allowed = Allowlist("lax", frozenset(["Scan", "Relu"]))
    assert rules(check(body("y = Scan (x)"), allowlist=allowed)) == ["scan"]


def nested(depth: int, innermost: str = "Relu") -> onnx.ModelProto:
    node = helper.make_node(innermost, ["x"], ["y"])
    for _ in range(depth):
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        empty = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "e", [], [y])
        graph = helper.make_graph([node], "t", [], [y])
        node = helper.make_node("If", ["cond"], ["y"], then_branch=graph, else_branch=empty)
    model = body("y = Relu (x)")
    model.graph.node[0].CopyFrom(node)
    return model


def test_subgraphs_are_followed_to_depth_8():
    assert check(nested(8)).ok
    path = "main" + "/If_0.then_branch" * 8
    assert only(check(nested(8, "Floor"))).path == path
    violations = check(nested(9)).violations
    assert {violation.rule for violation in violations} == {"subgraph-depth"}
    assert {violation.path for violation in violations} == {f"{path}/If_0.else_branch", f"{path}/If_0.then_branch"}


@pytest.mark.parametrize(("mode", "accepted"), [("", True), ('mode = "nearest"', True), ('mode = "linear"', True)])
def test_resize_modes_that_are_accepted(mode, accepted):
    assert check(body(f"y = Resize {f'<{mode}>' if mode else ''} (x, , k)")).ok == accepted


def test_resize_modes_that_are_refused():
    assert "cubic" in only(check(body('y = Resize <mode = "cubic"> (x, , k)'))).message
    model = body('y = Resize <mode = "linear"> (x, , k)')
    model.graph.node[0].attribute.append(helper.make_attribute("mode", "cubic"))
    assert sorted(rules(check(model))) == ["attribute", "resize-mode"], "a second attribute of the name counts too"
    model = body("y = Resize <mode = 1> (x, , k)")
    assert rules(check(model)) == ["definition", "resize-mode"]


def external(tensor: TensorProto, *, by_location: bool) -> None:
    if by_location:
        tensor.data_location = TensorProto.EXTERNAL
    else:
        tensor.external_data.add(key="location", value="../secrets/w.bin")


@pytest.mark.parametrize("by_location", [True, False])
def test_external_data_is_found_wherever_a_tensor_can_be(by_location):
    model = body("y = Relu (x)")
    graph, node = model.graph, model.graph.node[0]
    tensors = [
        graph.initializer[0],
        node.attribute.add(name="a", type=onnx.AttributeProto.TENSOR).t,
        node.attribute.add(name="b", type=onnx.AttributeProto.TENSORS).tensors.add(),
        node.attribute.add(name="c", type=onnx.AttributeProto.GRAPH).g.initializer.add(),
    ]
    for tensor in tensors:
        external(tensor, by_location=by_location)
    violations = [violation for violation in check(model).violations if violation.rule == "external-data"]
    assert len(violations) == len(tensors)
    assert violations[0].place == "main: cond"
    if not by_location:
        assert "'w.bin'" in violations[0].message


def sparse_type(value: onnx.TypeProto) -> None:
    value.sparse_tensor_type.elem_type = TensorProto.FLOAT


def sparse_data(tensor: onnx.SparseTensorProto) -> None:
    tensor.values.CopyFrom(helper.make_tensor("s", TensorProto.FLOAT, [1], [1]))
    tensor.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [0]))
    tensor.dims.append(4)


SPARSE = {
    "initializer": lambda graph, attribute: sparse_data(graph.sparse_initializer.add()),
    "attribute": lambda graph, attribute: sparse_data(attribute("SPARSE_TENSOR").sparse_tensor),
    "attribute list": lambda graph, attribute: sparse_data(attribute("SPARSE_TENSORS").sparse_tensors.add()),
    "subgraph": lambda graph, attribute: sparse_data(attribute("GRAPH").g.sparse_initializer.add()),
    "input": lambda graph, attribute: sparse_type(graph.input.add(name="s").type),
    "value": lambda graph, attribute: sparse_type(graph.value_info.add(name="s").type),
    "sequence": lambda graph, attribute: sparse_type(graph.value_info.add(name="s").type.sequence_type.elem_type),
    "optional": lambda graph, attribute: sparse_type(
        graph.value_info.add(name="s").type.optional_type.elem_type.sequence_type.elem_type
    ),
    "map": lambda graph, attribute: sparse_type(graph.value_info.add(name="s").type.map_type.value_type),
    "type attribute": lambda graph, attribute: sparse_type(attribute("TYPE_PROTO").tp),
    "type attribute list": lambda graph, attribute: sparse_type(attribute("TYPE_PROTOS").type_protos.add()),
    "input of a subgraph": lambda graph, attribute: sparse_type(attribute("GRAPH").g.input.add(name="s").type),
}


@pytest.mark.parametrize("place", SPARSE)
def test_sparse_tensors_are_refused_wherever_they_are(place):
    model = body("y = Relu (x)")
    node = model.graph.node[0]
    SPARSE[place](model.graph, lambda kind: node.attribute.add(name="a", type=onnx.AttributeProto.AttributeType.Value(kind)))
    assert ("value-type" if place == "map" else "sparse") in rules(check(model))


def test_a_model_without_a_graph_is_refused():
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.add(version=17)
    assert rules(check(model)) == ["no-graph"]
    model.graph.name = "g"
    assert rules(check(model)) == ["no-graph"]
    model.graph.output.extend(body("y = Relu (x)").graph.input)
    assert rules(check(model)) == ["wiring"]


def test_thousands_of_findings_are_truncated_with_a_warning():
    model = body("y = Relu (x)")
    for _ in range(MAX_FINDINGS + 234):
        model.graph.node.add(op_type="Floor")
    report = check(model)
    assert len(report.violations) == MAX_FINDINGS
    assert report.warnings[-1].message == "234 more violations are not listed"


def test_names_of_any_length_stay_short_in_the_report():
    model = body("y = Relu (x)")
    model.graph.node[0].domain = "d" * 60_000
    violation = only(check(model))
    assert len(str(violation)) < 400
    assert max(map(len, check(model).facts.ops)) < 200


def test_a_violation_prints_as_one_line():
    model = body("y = Floor (x)")
    model.graph.node[0].name = "a\n\x1b[31mb"
    text = str(only(check(model)))
    assert text.startswith(r"op: Floor: not on the list 'libvmaf' (main: a\n\x1b[31mb); try: ")
