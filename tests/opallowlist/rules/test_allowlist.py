"""Operator lists: the built-in one, and files in the three forms, read exactly or not at all."""

import pytest

from distill.opallowlist import Allowlist, ListError, check, load_list

C_SOURCE = r"""
/**
 * "Where" is not here, "Split" neither.
 */
#include <string.h>
#include "op_allowlist.h"

static const char *const ALLOWED_OPS[] = {
    /* structural: `mode in ("nearest", "linear")`
     * over two lines */
    "Identity", "Reshape", // "Tile"
    "Conv",
    "Conv",
    NULL,
};

bool vmaf_dnn_op_allowed(const char *op_type)
{
    const char *where = "Where";
    return strcmp(ALLOWED_OPS[0], op_type) == 0;
}
"""


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_built_in_list():
    allowed = load_list("libvmaf")
    assert len(allowed) == 70 and allowed.name == "libvmaf"
    assert {"Conv", "If", "Loop", "Resize", "Gelu"} <= allowed.ops
    assert not {"Scan", "Split", "Where", "Floor", "nearest", "linear"} & allowed.ops


def test_plain_text(tmp_path):
    path = write(tmp_path, "ops.txt", "\ufeff# our fork\nConv, Relu\n\n  Sigmoid # the map\nConv\n")
    assert load_list(path).ops == {"Conv", "Relu", "Sigmoid"}
    assert load_list(str(path)).name == str(path)


def test_a_c_table_is_read_without_its_comments(tmp_path):
    assert load_list(write(tmp_path, "op_allowlist.c", C_SOURCE)).ops == {"Identity", "Reshape", "Conv"}


def test_a_missing_comma_joins_two_names_as_it_does_for_the_compiler(tmp_path):
    path = write(tmp_path, "a.c", C_SOURCE.replace('"Identity", "Reshape"', '"Identity" "Reshape"'))
    assert load_list(path).ops == {"IdentityReshape", "Conv"}


def test_names_after_null_are_out_of_reach(tmp_path):
    path = write(tmp_path, "a.h", 'const char *ops[] = {"Conv", NULL, "Floor", nullptr};')
    assert load_list(path).ops == {"Conv"}


def test_the_table_is_chosen_by_its_name(tmp_path):
    both = 'static const char *DENIED[] = {"Where"};\n' + C_SOURCE
    assert load_list(write(tmp_path, "a.c", both)).ops == {"Identity", "Reshape", "Conv"}
    twice = C_SOURCE + 'static const char *also_allowed[2] = {"Where"};'
    with pytest.raises(ListError, match=r"several tables of strings \(ALLOWED_OPS, also_allowed\)"):
        load_list(write(tmp_path, "b.c", twice))
    neither = 'char *a[] = {"Conv"}; char *b[] = {"Relu"};'
    with pytest.raises(ListError, match=r"several tables of strings \(a, b\)"):
        load_list(write(tmp_path, "c.c", neither))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int main(void) { return 0; }", "no table of strings"),
        ('char *ops[] = {"Conv",\n#ifdef X\n"Where",\n#endif\n};', "a.c:2: preprocessor line"),
        ('char *ops[] = {\n#if 0\n"Where",\n#endif\n};', "a.c:2: preprocessor line"),
        ('char *ops[] = {"Conv",\nOP(Relu),\n};', "a.c:2: 'OP' where only string literals"),
        ('char *ops[] = {"Co\\x6ev"};', "is not an operator name inside ops"),
        ('char *ops[] = {"Conv", "two words"};', "'two words' is not an operator name inside ops"),
        ('char *ops[] = {"Conv", "Relu"', "table ops has no end"),
        ('char *ops[] = {"Conv", /* "Relu" };', "table ops has no end"),
        ('struct op ops[] = {{"Conv", 1}};', "no table of strings"),
        ('char *ops[] = {"Conv", {"Relu"}};', "'{' where only string literals"),
        ("char *ops[] = {NULL};", "no table of strings"),
        ('char *ops[] = {"", NULL};', "'' is not an operator name"),
    ],
)
def test_c_source_without_a_plain_table_is_an_error(tmp_path, text, message):
    with pytest.raises(ListError) as error:
        load_list(write(tmp_path, "a.c", text))
    assert message in str(error.value)


def test_onnx_runtimes_required_operators(tmp_path):
    text = """# made by create_reduced_build_config
!globally_allowed_types;float
ai.onnx;7,13;Conv,Relu{"inputs": {"0": ["float"]}, "custom": ["a,b"]},Add
;17;Mul
ai.onnx.ml;1;Scaler
com.microsoft;1;FusedConv
"""
    assert load_list(write(tmp_path, "required_operators.config", text)).ops == {"Conv", "Relu", "Add", "Mul"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ai.onnx;17;Conv\nRelu\n", "ops:2: expected 'domain;opset;Op,Op'"),
        ("ai.onnx;17;Conv{\n", "ops:1: braces do not match"),
        ("Conv\nRe lu!\n", "ops:2: 'lu!' is not an operator name"),
        ('"Conv",\n', "ops:1: '\"Conv\"' is not an operator name"),
        ("# nothing\n", "no operators in this list"),
        ("com.microsoft;1;FusedConv", "no operators in this list"),
    ],
)
def test_text_that_is_not_a_list_is_an_error(tmp_path, text, message):
    with pytest.raises(ListError) as error:
        load_list(write(tmp_path, "ops", text))
    assert message in str(error.value)


def test_unknown_names_and_unusable_files(tmp_path):
    with pytest.raises(ListError, match=r"'libvmf'; did you mean 'libvmaf'\?"):
        load_list("libvmf")
    with pytest.raises(ListError, match="'nothing/like/it'; built in: libvmaf"):
        load_list("nothing/like/it")
    with pytest.raises(ListError, match="not a file"):
        load_list(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08\xff\xfe")
    with pytest.raises(ListError, match="not text"):
        load_list(tmp_path / "model.onnx")
    (tmp_path / "big").write_bytes(b"Conv " * 300_000)
    with pytest.raises(ListError, match="larger than"):
        load_list(tmp_path / "big")


@pytest.mark.parametrize("text", ["/*" * 200_000, '"' * 400_001, "={" * 200_000, "char *a[] = {" * 60_000 + '"x"'])
def test_strange_source_is_read_in_time(tmp_path, text):
    with pytest.raises(ListError):
        load_list(write(tmp_path, "a.c", text))


def test_a_built_in_name_wins_over_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "libvmaf", "Floor")
    assert len(load_list("libvmaf")) == 70
    assert load_list("./libvmaf").ops == {"Floor"}


def test_check_takes_a_list_by_name_by_file_or_loaded(tmp_path, image):
    path = write(tmp_path, "ops.txt", "Conv")
    assert check(image, allowlist="libvmaf").ok
    assert [v.op_type for v in check(image, allowlist=path).violations] == ["Sigmoid"]
    assert check(image, allowlist=Allowlist("mine", frozenset(["Conv", "Sigmoid"]))).allowlist == "mine"
