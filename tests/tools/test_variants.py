"""`distill variant` and `distill luma`: a separate package for other inputs or one frame size."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from distill.export.graph import image_graph, step_graph
from distill.export.quantize import quantise
from distill.export.runner import Predictor
from distill.export.variant_parity import grey
from distill.export.variants import Variant
from distill.export.yuv import Colour
from distill.opallowlist import check
from distill.run.errors import GateFailed, UsageError
from distill.tools.variants import write_variants
from tests.downstream import c_opens, c_reads, session_of, validate
from tests.helpers import distill, invoke, lively, moving_blobs

SAID = {
    "license": "MIT",
    "license_chain": '[["corpus a", "CC BY 4.0"]]',
    "metrics": '{"image": {"nss": 2}, "step": {"nss": 2.5}}',
    "metrics_protocol": "mit",
}


def write_luma(model, sizes, out, narrator):
    return write_variants(model, Variant("luma"), sizes, out, narrator)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "student.onnx"
    onnx.save(image_graph(lively(), SAID), path)
    return path


def test_every_size_gets_a_package_that_the_downstream_accepts(model, tmp_path, narrator):
    made = write_luma(model, ["131x97", "96x64", "131x97"], None, narrator)
    assert [one["size"] for one in made] == ["131x97", "96x64"] and json.loads(json.dumps(made)) == made
    for one, (width, height) in zip(made, ((131, 97), (96, 64)), strict=True):
        name = f"student_luma_{width}x{height}"
        path = tmp_path / f"{name}.onnx"
        assert set(one["files"]) == {str(tmp_path / f"{name}{end}") for end in (".onnx", ".json", ".registry.json")}
        assert check(path, contract="saliency-luma").ok and check(path, contract="saliency").ok
        [entry] = validate(tmp_path / f"{name}.registry.json").values()
        assert entry["license"] == "MIT" and entry["id"] == name and c_opens(path) == path
        sidecar = json.loads((tmp_path / f"{name}.json").read_text())
        assert c_reads(tmp_path / f"{name}.json", "name") == f"vmaf_tiny_{name}"
        assert (
            sidecar["license_chain"] == [{"part": "corpus a", "license": "CC BY 4.0"}] and sidecar["frame_size"] == one["size"]
        )
    assert len(list(tmp_path.iterdir())) == 7


def test_colour_scores_are_not_copied(model, tmp_path, narrator):
    [one] = write_luma(model, ["64x64"], tmp_path / "out", narrator)
    props = {p.key: p.value for p in onnx.load(one["file"]).metadata_props}
    assert props["metrics"] == "not evaluated on luma" and "metrics_protocol" not in props and props["license"] == "MIT"
    assert props["luma_size"] == "64x64" and "limited range" in props["input"]
    assert str(tmp_path) not in str(props)


def vmaf_roi(path, plane):
    """`run_luma8`: the plane over 255 into the first input, of exactly this shape; the first output times 255, rounded."""
    session = session_of(c_opens(path))
    [given], [made] = session.get_inputs(), session.get_outputs()
    assert given.shape == made.shape == [1, 1, *plane.shape] and given.type == made.type == "tensor(float)"
    out = session.run([made.name], {given.name: plane[None, None].astype(np.float32) / 255})[0]
    return np.uint8(np.clip(out[0, 0] * 255 + 0.5, 0, 255))


def test_vmaf_roi_gets_the_image_files_map_of_the_grey_frame(model, narrator):
    [one] = write_luma(model, ["131x97"], None, narrator)
    plane = np.random.default_rng(0).integers(16, 236, (97, 131), np.uint8)
    theirs = Predictor(model).run(grey(plane))[0, 0] * 255
    ours = vmaf_roi(Path(one["file"]), plane)
    assert np.abs(ours - theirs).max() <= 0.51
    with pytest.raises(AssertionError):
        vmaf_roi(model, plane)  # neither luma nor static


@pytest.mark.parametrize(
    "size",
    [
        *("", "0x0", "0x64", "64x0", "64", "x", "64x", "x64", "-64x64", "64x64x64", "64.5x64", "1e3x64", "wide", "64 x 64"),
        *(
            "15x64",
            "64x15",
            "4097x64",
            "64x100000",
            "99999999999999999999x64",
            "9" * 5000 + "x64",
            "²x64",
            "٦٤x٦٤",
            "../a",
            "64x64\n",
        ),
    ],
)
def test_a_hostile_size_is_refused_before_anything_is_written(model, tmp_path, narrator, size):
    with pytest.raises(UsageError, match="--size") as caught:
        write_luma(model, ["64x64", size], tmp_path / "out", narrator)
    assert len(str(caught.value)) < 200 and not (tmp_path / "out").exists()


def test_a_side_that_is_too_long_is_told_the_limit_of_variants(model, tmp_path, narrator):
    with pytest.raises(UsageError, match="at most 4096 pixels a side; got '8000x64'"):
        write_luma(model, ["8000x64"], tmp_path / "out", narrator)


def test_the_smallest_and_the_widest(model, tmp_path, narrator):
    made = write_luma(model, ["16x16", "4096x16", "0064x064"], tmp_path / "out", narrator)
    assert [one["size"] for one in made] == ["16x16", "4096x16", "64x64"]


def test_wrong_models_are_one_line_errors_and_leave_nothing(model, tmp_path, narrator, golden):
    step = tmp_path / "student_step.onnx"
    onnx.save(step_graph(lively(), 25.0, {}), step)
    long = model.rename(tmp_path / f"{'a' * 60}.onnx")
    odd = tmp_path / "____.onnx"
    odd.write_bytes(long.read_bytes())
    for path, message in (
        (tmp_path / "none.onnx", "no model at"),
        (step, "is a step file"),
        (golden / "scanner" / "mal_text.onnx", "does not load"),
        (long, "shorter one"),
        (odd, "neither letters"),
    ):
        with pytest.raises(UsageError, match=message):
            write_luma(path, ["64x64"], tmp_path / "out", narrator)
    with pytest.raises(UsageError, match="give it with --size"):
        write_luma(long, [], None, narrator)
    assert not (tmp_path / "out").exists()


def test_a_name_that_the_registry_does_not_take_is_mapped(model, tmp_path, narrator):
    path = model.rename(tmp_path / "Mein Student.int8.onnx")
    [one] = write_luma(path, ["64x64"], None, narrator)
    assert one["file"] == str(tmp_path / "mein_student_int8_luma_64x64.onnx")
    validate(tmp_path / "mein_student_int8_luma_64x64.registry.json")


def test_a_graph_refused_by_the_gate_leaves_no_file(model, tmp_path, narrator, monkeypatch):
    monkeypatch.setattr("distill.export.verification.MAX_BYTES", 10)
    with pytest.raises(GateFailed, match=r"student_luma_64x64: .* more than the 10 of the contract; no file was written"):
        write_luma(model, ["64x64"], tmp_path / "out", narrator)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_and_reports(model, tmp_path):
    result = distill("luma", model, "--size", "96x64", "-o", tmp_path / "out", "--quiet")
    assert result.returncode == 0, result.stderr
    first, *files = result.stdout.splitlines()
    assert first.startswith("96x64: ") and "from the source file's maps at most" in first
    assert files[0] == str(tmp_path / "out" / "student_luma_96x64.onnx") and len(files) == 3
    answer = json.loads(distill("luma", model, "--size", "96x64", "--json", "--quiet").stdout)
    assert answer["made"][0]["parity"]["max_abs"] <= 1e-5
    refused = invoke("luma", model, "--size", "0x64", "--json")
    assert refused.returncode == json.loads(refused.stdout)["exit_code"] == 2


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    path = tmp_path_factory.mktemp("step") / "student_step.onnx"
    onnx.save(step_graph(lively(), 25.0, SAID), path)
    return path


@pytest.mark.parametrize(
    ("variant", "sizes", "name", "contract"),
    [
        (Variant("yuv420"), [], "student_step_yuv420_bt709", "saliency-yuv420"),
        (Variant("yuv420", output="block-map"), ["131x97"], "student_step_yuv420_bt709_131x97_blocks", "saliency-yuv420"),
        (Variant("nv12", colour=Colour("bt601", "full")), [], "student_step_nv12_bt601_full", "saliency-yuv420"),
        (Variant("yuv420", colour=Colour("bt2020", "limited", 10)), [], "student_step_yuv420_bt2020_10bit", "saliency-yuv420"),
        (Variant("rgb"), ["131x97"], "student_step_rgb_131x97", "saliency-fixed"),
        (Variant("rgb", output="block-map"), ["131x97"], "student_step_rgb_131x97_blocks", "saliency-fixed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_variant_states_what_it_is(step, tmp_path, narrator, variant, sizes, name, contract):
    [one] = write_variants(step, variant, sizes, tmp_path, narrator)
    assert {Path(file).name for file in one["files"]} == {f"{name}{end}" for end in (".onnx", ".json", ".registry.json")}
    path = tmp_path / f"{name}.onnx"
    report = check(path, contract=contract, load=True)
    assert report.ok and not report.warnings and one["parity"]["max_abs"] <= 1e-5 and one["size"] == (sizes or [None])[0]
    model = onnx.load(path)
    props = {p.key: p.value for p in model.metadata_props}
    assert len(props[f"{variant.input}_source_sha256"]) == 64 and props["name"] == name and props["license"] == "MIT"
    assert props[f"{variant.input}_size"] == (sizes or ["any"])[0]
    [entry] = validate(tmp_path / f"{name}.registry.json").values()
    sidecar = json.loads((tmp_path / f"{name}.json").read_text())
    scores = (props["metrics"], props.get("metrics_protocol"), sidecar["metrics"], sidecar["metrics_protocol"])
    assert (scores == (SAID["metrics"], "mit", {"nss": 2.5}, "mit")) == (variant == Variant("rgb"))
    assert (scores[1:] == (None, None, None)) == (variant != Variant("rgb"))
    assert entry["id"] == name and sidecar["input_name"] == model.graph.input[0].name
    assert (
        sidecar["output_name"]
        == model.graph.output[0].name
        == ("block_map" if variant.output == "block-map" else "saliency_map")
    )
    if variant.of_planes:
        assert (props["matrix"], props["range"], int(props["depth"])) == tuple(sidecar["colour"].values())
        assert variant.colour.range in props["input"] and ("uint16" in props["input"]) == (variant.colour.depth == 10)


def test_what_does_not_exist_is_refused_before_anything_is_written(step, tmp_path):
    for arguments, message in (
        (["--input", "rgb24"], "--input rgb24 is unknown; there are rgb, yuv420, nv12, luma"),
        (["--output", "blocks"], "--output blocks is unknown; there are map, block-map"),
        (["--matrix", "bt470"], "--matrix bt470 is unknown; there are bt601, bt709, bt2020"),
        (["--range", "tv"], "--range tv is unknown"),
        (["--depth", "12"], "--depth 12 is unknown; there are 8, 10"),
        (["--input", "rgb"], "a file with rgb input has one frame size; give it with --size"),
        (["--input", "luma", "--size", "64x64"], "step file"),
        (
            ["--input", "rgb", "--size", "64x64", "--range", "full"],
            "--matrix, --range and --depth are for planes, yuv420 and nv12",
        ),
        (["--input", "luma", "--size", "64x64", "--output", "block-map"], "consumers of luma files take a whole map"),
    ):
        result = invoke("variant", step, *arguments, "-o", tmp_path / "out")
        assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    result = invoke("variant", step, "-o", tmp_path / "file", "--quiet")
    assert result.returncode == 2 and f"--out {tmp_path / 'file'} is a file; name a folder" in result.stderr


def test_an_int8_file_has_no_variants(step, tmp_path, narrator):
    onnx.save(quantise(onnx.load(step), moving_blobs(range(3)), every=2), tmp_path / "step.int8.onnx")
    with pytest.raises(UsageError, match=r"step.int8.onnx is int8; a variant is made from the file in floating point"):
        write_variants(tmp_path / "step.int8.onnx", Variant("rgb"), ["64x64"], tmp_path / "out", narrator)


def test_the_command_for_variants(step, tmp_path):
    result = invoke("variant", step, "--size", "96x64", "--output", "block-map", "-o", tmp_path, "--json", "--quiet")
    assert result.returncode == 0, result.stderr
    assert Path(json.loads(result.stdout)["made"][0]["file"]).name == "student_step_yuv420_bt709_96x64_blocks.onnx"
