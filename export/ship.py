"""The only way to a named ONNX file: written, checked, gated, compared, and only then given its name.

A graph that fails leaves no file under its name, and whatever stood there before stays as it was.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from distill.export.errors import ExportRefused
from distill.export.graph import image_graph, step_graph
from distill.export.limits import MAX_BYTES
from distill.export.parity import SIZES, Parity, compare
from distill.opallowlist import check
from distill.students.tiny_unet import TinyUNet


@dataclass(frozen=True)
class Verified:
    """Two graphs that passed everything, and the evidence."""

    image: onnx.ModelProto
    step: onnx.ModelProto
    parity: Parity
    gate: dict[str, Any]


def verify(
    student: TinyUNet,
    fps: float,
    metadata: dict[str, str],
    real_frames: Sequence[np.ndarray] = (),
    sizes: Sequence[tuple[int, int]] = SIZES,
    length: int = 8,
) -> Verified:
    """Writes both graphs in memory and proves them: onnx.checker, the gate with its contracts, size, parity.

    Raises ExportRefused naming every failure.
    """
    student = student.eval()
    image, step = image_graph(student, metadata), step_graph(student, fps, metadata)
    failures, gate = [], {}
    for mode, model in (("image", image), ("step", step)):
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # the checker raises several unrelated types
            failures.append(f"{mode}: onnx.checker: {str(error).splitlines()[0]}")
        report = check(model, contract=f"saliency-{mode}")
        failures += [f"{mode}: {violation}" for violation in report.violations]
        gate[mode] = report.to_dict()
        if (size := model.ByteSize()) > MAX_BYTES:
            failures.append(f"{mode}: {size:,} bytes, more than the {MAX_BYTES:,} of the contract")
    if not failures:
        parity = compare(student, image, step, fps, real_frames, sizes, length)
        failures = parity.failures
    if failures:
        raise ExportRefused("; ".join(failures))
    return Verified(image, step, parity, gate)


def ship(verified: Verified, folder: Path, name: str) -> dict[str, Path]:
    """Gives both graphs their names, `NAME.onnx` and `NAME_step.onnx`; returns their paths by mode."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"image": folder / f"{name}.onnx", "step": folder / f"{name}_step.onnx"}
    temporary = {mode: path.with_name(f".{path.name}.tmp") for mode, path in paths.items()}
    try:
        for mode, model in (("image", verified.image), ("step", verified.step)):
            with temporary[mode].open("wb") as file:
                file.write(model.SerializeToString(deterministic=True))
                file.flush()
                os.fsync(file.fileno())
        for mode, path in paths.items():
            temporary[mode].replace(path)
    finally:
        for path in temporary.values():
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    return paths
