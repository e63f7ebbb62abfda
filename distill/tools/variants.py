"""Variants of a student's file, each with its sidecar and registry entry: `distill variant`, and `distill luma`.

NAME.onnx -> NAME_luma_1920x1080.onnx, NAME_yuv420_bt709.onnx, NAME_nv12_bt709_1920x1080_blocks.onnx ..., .json and
.registry.json: a separate package beside the run's package, which stays unchanged. The run's scores were measured on RGB frames
and whole maps; a package that differs in that states none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx

from distill.evaluation.predictors import load_predictor
from distill.export.variant_parity import verify_variant
from distill.export.variants import Variant, variant_graph
from distill.export.verification import ExportRefused
from distill.export.yuv import Colour
from distill.reporting.sidecar import identifier, origin_of, registry_entry, write_registry, write_sidecar
from distill.run.errors import GateFailed, UsageError
from distill.run.files import sha256_of, write_bytes
from distill.run.progress import Narrator
from distill.tools.bench import parse_size

SMALLEST, LARGEST = 16, 4096  # pixels a side; students take frames to 4096x2304, wide or upright
RGB = "RGB in [0,1], normalised with the ImageNet mean and standard deviation; [1,3,H,W] of this size only"
LUMA = "Y plane as stored (limited range, 16 to 235), over 255; [1,1,H,W] of this size only"
ABOUT = {
    "rgb": "RGB frames of {size}", "yuv420": "decoded planes (y, u, v)", "nv12": "decoded planes (y, uv)", "luma": "{size} luma",
}  # fmt: skip


def write_variants(
    model: Path, variant: Variant, sizes: Sequence[str], out: Path | None, narrator: Narrator
) -> list[dict[str, Any]]:
    """Writes the variant, one for each of `sizes` (`WxH`) or, without any, one for all sizes, into the folder `out`, or beside the
    model. variant: its own size does not count.

    Returns for each, ready for JSON: size, file, sha256, bytes, parity, files.
    Raises UsageError for what cannot be asked for or a model that is not one of our files, GateFailed where a graph may not ship;
    then that graph leaves no file.
    """
    _check(variant, sizes)
    if out and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    parsed: list[tuple[int, int] | None] = [_size(text) for text in dict.fromkeys(sizes)]
    load_predictor(model)
    source, written = onnx.load(model), list[dict[str, Any]]()
    # Its activations are rounded, so that from planes and luma other maps come than from RGB; and the downstream opens int8 files in
    # pairs with one in floating point.
    if any(prop.key == "quant_mode" for prop in source.metadata_props):
        raise UsageError(f"{model} is int8; a variant is made from the file in floating point that it comes from")
    for size in parsed or [None]:
        written.append(_write(model, source, replace(variant, size=size), out or model.parent, narrator))
    return written


def parse_variant(takes: str, gives: str, matrix: str, range_: str, depth: int) -> Variant:
    """The variant that the options ask for; each option has the name of its field. Raises UsageError for an unknown value."""
    try:
        return Variant(takes, None, gives, Colour(matrix, range_, depth))
    except ValueError as error:
        raise UsageError(f"--{error}") from None


def _check(variant: Variant, sizes: Sequence[str]) -> None:
    if not sizes and not variant.of_planes:
        raise UsageError(f"a file with {variant.input} input has one frame size; give it with --size, as 1920x1080")
    if variant.input == "luma" and variant.output != "map":
        raise UsageError("consumers of luma files take a whole map; --output block-map is for rgb, yuv420 and nv12")
    if not variant.of_planes and variant.colour != Colour():
        raise UsageError(
            f"--matrix, --range and --depth are for planes, yuv420 and nv12; a file with {variant.input} input has none"
        )


def _write(model: Path, source: onnx.ModelProto, variant: Variant, folder: Path, narrator: Narrator) -> dict[str, Any]:
    suffix, size = _suffix(variant), f"{variant.size[1]}x{variant.size[0]}" if variant.size else None
    try:
        path = folder / f"{identifier(model.stem, room=len(suffix))}{suffix}.onnx"
        made = variant_graph(source, variant)
    except (ValueError, ExportRefused) as error:
        raise UsageError(f"{model}: {error}") from None
    narrator.say(f"variant: {path.name}: writing, gating, and comparing with {model.name}")
    origin = sha256_of(model)
    properties = {prop.key: prop.value for prop in source.metadata_props} | _facts(variant, size)
    properties |= {"name": path.stem, f"{variant.input}_source_sha256": origin}
    if (variant.input, variant.output) != ("rgb", "map"):
        what = "blocks" if variant.output == "block-map" else "luma" if variant.input == "luma" else "planes"
        properties["metrics"] = f"not evaluated on {what}"
        properties.pop("metrics_protocol", None)
    onnx.helper.set_model_props(made, properties)
    try:
        parity = asdict(verify_variant(made, source, variant))
    except ExportRefused as error:
        raise GateFailed(f"{path.stem}: {error}; no file was written") from None
    write_bytes(path, made.SerializeToString(deterministic=True))
    license_, chain = origin_of(properties)
    what = ABOUT[variant.input].format(size=size)
    gives = "as means of 16x16 px" if variant.output == "block-map" else "per pixel"
    about = f"Tiny video saliency student for {what}: where people look, as a map in [0,1] {gives}."
    made_from = {"file": model.name, "sha256": origin}
    more = {
        "input_name": made.graph.input[0].name, "output_name": made.graph.output[0].name, "frame_size": size,
        "input": properties["input"], "made_from": made_from, "parity": parity,
        "metrics": _scores(properties, "step" if len(made.graph.output) > 1 else "image"),
        "metrics_protocol": properties.get("metrics_protocol"),
        **({"colour": asdict(variant.colour)} if variant.of_planes else {}),
    }  # fmt: skip
    sidecar = write_sidecar(path, about, license_, chain, more)
    entry = registry_entry(path, license_, about, f"{properties['input']}. Made from {model.name}, sha256 {origin}.")
    registry = write_registry(path.with_suffix(".registry.json"), [entry])
    return {
        "size": size, "file": str(path), "sha256": sha256_of(path), "bytes": path.stat().st_size, "parity": parity,
        "files": [str(path), str(sidecar), str(registry)],
    }  # fmt: skip


def _scores(properties: Mapping[str, str], mode: str) -> dict[str, float] | None:
    """The scores of the source file in its metadata properties; None where there are none."""
    try:
        return json.loads(properties["metrics"])[mode]
    except (KeyError, TypeError, ValueError):
        return None


def _suffix(variant: Variant) -> str:
    """What a file's name says of it; defaults (limited range, 8 bits, any size, whole map) are left out."""
    parts = [variant.input]
    if variant.of_planes:
        colour = variant.colour
        parts += [colour.matrix, *(["full"] if colour.range == "full" else []), *(["10bit"] if colour.depth == 10 else [])]
    if variant.size:
        parts.append(f"{variant.size[1]}x{variant.size[0]}")
    return "".join(f"_{part}" for part in [*parts, *(["blocks"] if variant.output == "block-map" else [])])


def _facts(variant: Variant, size: str | None) -> dict[str, str]:
    """Metadata properties that state the variant."""
    facts = {f"{variant.input}_size": size or "any"}
    if variant.output == "block-map":
        facts["output"] = "block_map: means of 16x16 px of the map; [1,1,ceil(H/16),ceil(W/16)]"
    if variant.input == "rgb":
        facts["input"] = RGB
    elif variant.input == "luma":
        facts["input"] = LUMA
    else:
        colour = variant.colour
        kind = "uint8" if colour.depth == 8 else "uint16, in the low bits"
        chroma = "uv [1,ceil(H/2),ceil(W/2),2]" if variant.input == "nv12" else "u and v [1,1,ceil(H/2),ceil(W/2)]"
        facts["input"] = f"4:2:0 planes as decoded, {kind}: y [1,1,H,W], {chroma}; {colour.matrix}, {colour.range} range"
        facts |= {"matrix": colour.matrix, "range": colour.range, "depth": str(colour.depth)}
    return facts


def _size(text: str) -> tuple[int, int]:
    """Height and width."""
    width, height = parse_size(text, LARGEST)
    if min(width, height) < SMALLEST:
        raise UsageError(f"--size {text}: a side has {SMALLEST} to {LARGEST} pixels")
    return height, width
