"""Builds programs with ONNX Runtime: the header of Debian 13's libonnxruntime-dev or in $ORT_INCLUDE, the Python package's library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

INCLUDE = Path(os.environ.get("ORT_INCLUDE", "/usr/include/onnxruntime"))
HERE = shutil.which("gcc") and shutil.which("g++") and sys.platform == "linux" and (INCLUDE / "onnxruntime_c_api.h").is_file()

needs_header = pytest.mark.skipif(
    not HERE, reason="needs gcc, Linux and onnxruntime_c_api.h: libonnxruntime-dev, or its folder in ORT_INCLUDE"
)


def build(compiler: str, standard: str, source: Path, target: Path) -> Path:
    """Builds `target`, warnings as errors."""
    [library] = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # by which the linker and the loader look for it
        (target.parent / name).symlink_to(library)
    strict = [f"-std={standard}", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-isystem", str(INCLUDE)]
    link = [f"-L{target.parent}", "-lonnxruntime", f"-Wl,-rpath,{target.parent}"]
    built = subprocess.run([compiler, *strict, source, *link, "-o", target], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return target
