"""What this machine is enough for: which parts of the package work, and what the others lack.

Modules are imported, not only looked for: OpenCV may be installed and lack a library of the system.
"""

import shutil
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from distill.labels.fetched import cache_folder
from distill.run.directory import environment
from distill.run.errors import UsageError
from distill.run.files import one_line
from distill.run.machine import extras
from distill.run.machine.parallel import usable_cores

GATE = ("numpy", "onnx")
SERVES = {
    "gate": "opallowlist check, distill inspect",
    "predict": "distill predict, eval and bench of ONNX files",
    "encode": "distill encode, bd",
    "quality": "VMAF in distill bd",
    "train": "distill run and its stages",
    "tensorboard": "curves of its trainings",
}
"""Verbs by the part of the package that they need: the gate, which is always installed, or an extra."""
PACKAGES = ("av", "scipy", "imageio-ffmpeg", "matplotlib", "onnxscript")


def examine() -> dict[str, Any]:
    """Names and values for the user; `works`: the keys of SERVES that work here; `to install`: commands by extra."""
    facts: dict[str, Any] = environment()
    for package in PACKAGES:
        facts[package] = _version(package)
    facts |= {"cores": usable_cores(), "free disk here": f"{shutil.disk_usage('.').free / 1e9:.0f} GB"}
    facts |= {"this folder": _access(Path.cwd()), "cache": _access(cache_folder())}
    works: list[str] = []
    ways_out: dict[str, str] = {}
    for part, verbs in SERVES.items():
        modules = GATE if part == "gate" else extras.modules_of(part)
        broken = [problem for module in modules if (problem := _problem(module))]
        lacking = [] if part == "gate" else extras.missing(part)
        name = part if part == "gate" else f"extra {part}"
        if lacking:
            facts[name] = f"{', '.join(lacking)} missing, for {verbs}"
            ways_out[part] = extras.how_to_install(part)
        elif broken:
            facts[name] = f"does not work: {'; '.join(broken)}"
        else:
            facts[name] = f"installed: {verbs}"
            works.append(part)
    if "train" in works:
        from distill.run.machine.device import choose

        facts["device"] = choose("auto")[1]
    if "encode" in works:
        from distill.encoding.bd.measures import find_ffmpeg

        facts["FFmpeg with libvmaf"] = find_ffmpeg() or "none"
    if "gate" in works:
        facts["runtime of distill demo"] = _demo()
    return facts | {"works": works, "to install": ways_out}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _problem(module: str) -> str:
    """Why a module cannot be imported; empty where it can."""
    try:
        import_module(module)
    except Exception as error:  # whatever a package does when it is imported
        return f"{module}: {one_line(error)}"
    return ""


def _access(folder: Path) -> str:
    """Whether files can be written into a folder, or it can be made."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with TemporaryFile(dir=there):
            return f"{folder}, writable" if there == folder else f"{folder}, not there yet"
    except OSError as error:
        return f"{folder}, cannot be written: {error.strerror}"


def _demo() -> str:
    from distill.tools.demo import GET_RUNTIME, find_runtime

    try:
        return str(find_runtime(None))
    except UsageError:
        return f"none; {GET_RUNTIME}"
