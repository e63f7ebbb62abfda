"""`check` and `assert_allowed` from Python: what they take, what they return, what they raise."""

import gzip
import hashlib
import re

import onnx
import pytest

from distill.opallowlist import MAX_BYTES, Report, Unreadable, assert_allowed, check


def test_paths_bytes_and_models_get_the_same_verdict(tmp_path, image):
    data = image.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    by_path, by_text, by_bytes, by_model = check(path), check(str(path)), check(data), check(image)
    assert by_path.facts == by_text.facts == by_bytes.facts == by_model.facts
    assert by_path.facts.sha256 == hashlib.sha256(data).hexdigest()
    assert (by_path.source, by_bytes.source) == (str(path), "<memory>")
    assert check(bytearray(data)).ok and check(memoryview(data)).ok


def test_other_things_are_a_type_error(image):
    for thing in (None, 3, image.graph.node):
        with pytest.raises(TypeError, match="a path, bytes or an onnx"):
            check(thing)


def test_unreadable_files_raise(tmp_path):
    with pytest.raises(Unreadable, match=r"none\.onnx: cannot be read \(No such file or directory\)"):
        check(tmp_path / "none.onnx")
    (tmp_path / "link.onnx").symlink_to("nowhere.onnx")
    with pytest.raises(OSError, match="cannot be read"):
        check(tmp_path / "link.onnx")
    with pytest.raises(Unreadable):
        check("a\0b")


def test_links_to_files_are_followed(tmp_path, image):
    (tmp_path / "m.onnx").write_bytes(image.SerializeToString())
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    assert check(tmp_path / "link.onnx").ok


def test_size_limits(image):
    size = image.ByteSize()
    assert check(image, max_bytes=size).ok
    for model in (image, image.SerializeToString()):
        [violation] = check(model, max_bytes=size - 1).violations
        assert violation.rule == "too-large"
    assert MAX_BYTES == 52_428_800


@pytest.mark.parametrize(("size", "expected"), [(MAX_BYTES, []), (MAX_BYTES + 1, ["too-large"])])
def test_the_downstreams_limit_is_inclusive(tmp_path, image, size, expected):
    data = image.SerializeToString()
    length = size - len(data) - 6  # of an unknown field, after its tag of two bytes and its length of four
    head = b"\xfa\x3e" + bytes(length >> shift & 0x7F | (0x80 if shift < 21 else 0) for shift in (0, 7, 14, 21))
    with (tmp_path / "m.onnx").open("wb") as file:
        file.write(data + head)
        file.truncate(size)
    assert [violation.rule for violation in check(tmp_path / "m.onnx").violations] == expected


def test_a_model_of_gigabytes_is_not_serialised_to_be_refused():
    class Huge:
        def ByteSize(self):
            return 3 << 30

        def SerializeToString(self):
            raise AssertionError

    assert check(Huge()).violations[0].message == "3,221,225,472 bytes; at most 52,428,800 are loaded"


def test_compressed_models_are_named(image):
    [violation] = check(gzip.compress(image.SerializeToString())).violations
    assert "gzip archive" in violation.message and violation.remedy == "unpack it"


def test_assert_allowed_returns_the_report(image):
    report = assert_allowed(image, contract="saliency-image")
    assert isinstance(report, Report) and report.ok


def test_assert_allowed_raises_with_the_whole_report(image):
    image.graph.node[0].op_type = "Where"
    image.graph.output[0].name = "out"
    with pytest.raises(AssertionError, match="model refused\n<memory>: refused") as error:
        assert_allowed(image, contract="saliency-image")
    text = str(error.value)
    assert "✗ Where" in text and "try: m * a" in text and "contract-outputs" in text


def test_assert_allowed_takes_a_list_a_contract_and_a_size(tmp_path, image):
    (tmp_path / "ops.txt").write_text("Conv")
    with pytest.raises(AssertionError, match="Sigmoid"):
        assert_allowed(image, allowlist=tmp_path / "ops.txt")
    with pytest.raises(AssertionError, match="too-large"):
        assert_allowed(image, max_bytes=10)
    with pytest.raises(ValueError, match="unknown contract"):
        assert_allowed(image, contract="x")


def test_reports_are_values(image):
    report = check(image)
    with pytest.raises(AttributeError):
        report.violations = ()
    assert report == check(image) and re.fullmatch("[0-9a-f]{64}", report.to_dict()["facts"]["sha256"])


def test_checking_leaves_the_model_alone(image):
    before = image.SerializeToString()
    check(image)
    assert image.SerializeToString() == before and isinstance(image, onnx.ModelProto)
