"""A student's image file for one frame size and luma input, with its sidecar and registry entry: `distill luma`.

NAME.onnx -> NAME_luma_1920x1080.onnx, .json and .registry.json: a separate package beside the run's package, which stays
unchanged. The run's scores were measured on colour frames, so the new package states none.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from distill.evaluation.predictors import load_predictor
from distill.export import ExportRefused
from distill.export.luma import luma_graph, verify_luma
from distill.reporting.sidecar import identifier, origin_of, registry_entry, sha256, write_registry, write_sidecar
from distill.run.errors import GateFailed, UsageError
from distill.run.files import write_bytes
from distill.run.progress import Narrator
from distill.tools.bench import parse_size

SMALLEST, LARGEST = 16, 4096  # pixels a side: the range that students support
INPUT = "Y plane as stored (limited range, 16 to 235), over 255; [1,1,H,W] of this size only"


def write_luma(model: Path, sizes: Sequence[str], out: Path | None, narrator: Narrator) -> list[dict[str, Any]]:
    """Writes a luma file for each of `sizes` (`WxH`) into the folder `out`, or beside the model.

    Returns for each, ready for JSON: size, file, sha256, bytes, parity, files.
    Raises UsageError for a wrong size or a model that is not one of our image files, GateFailed where a graph may not ship; then
    that graph leaves no file.
    """
    if not sizes:
        raise UsageError("a luma file has one frame size; give it with --size, as 1920x1080")
    parsed = [_size(text) for text in dict.fromkeys(sizes)]
    load_predictor(model)
    image, source, written = onnx.load(model), sha256(model), list[dict[str, Any]]()
    try:
        base = identifier(model.stem, room=len(f"_luma_{LARGEST}x{LARGEST}"))
    except ValueError as error:
        raise UsageError(f"{model}: {error}") from None
    for width, height in parsed:
        size = f"{width}x{height}"
        path = (out or model.parent) / f"{base}_luma_{size}.onnx"
        narrator.say(f"luma: {path.name}: writing, gating, and comparing with {model.name} on grey frames")
        try:
            luma = luma_graph(image, height, width)
        except ExportRefused as error:
            raise UsageError(f"{model}: {error}") from None
        properties = {prop.key: prop.value for prop in image.metadata_props if prop.key != "metrics_protocol"}
        properties |= {"name": path.stem, "input": INPUT, "luma_size": size, "luma_source_sha256": source}
        properties |= {"metrics": "not evaluated on luma"}
        onnx.helper.set_model_props(luma, properties)
        try:
            parity = asdict(verify_luma(luma, image))
        except ExportRefused as error:
            raise GateFailed(f"luma {size}: {error}; no file was written") from None
        write_bytes(path, luma.SerializeToString(deterministic=True))
        license_, chain = origin_of(properties)
        about = f"Tiny video saliency student for {size} luma: where people look, as a map in [0,1] per pixel."
        made_from = {"file": model.name, "sha256": source}
        more = {"frame_size": size, "input": INPUT, "made_from": made_from, "parity": parity, "metrics": None}
        sidecar = write_sidecar(path, about, license_, chain, more)
        entry = registry_entry(path, license_, about, f"{INPUT}. Made from {model.name}, sha256 {source}.")
        registry = write_registry(path.with_suffix(".registry.json"), [entry])
        written.append({
            "size": size, "file": str(path), "sha256": sha256(path), "bytes": path.stat().st_size, "parity": parity,
            "files": [str(path), str(sidecar), str(registry)],
        })  # fmt: skip
    return written


def _size(text: str) -> tuple[int, int]:
    width, height = parse_size(text)
    if not SMALLEST <= min(width, height) <= max(width, height) <= LARGEST:
        raise UsageError(f"--size {text}: a side has {SMALLEST} to {LARGEST} pixels")
    return width, height
