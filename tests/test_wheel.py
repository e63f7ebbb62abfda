"""What the wheel holds: every file of the package's folders and nothing else, in under 3 MB."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from distill.run.machine.extras import EXTRAS
from tests.helpers import ROOT

FOLDERS = {  # of the checkout, and where they are in the wheel
    "distill": "distill", "teachers": "distill/teachers", "students": "distill/students", "export": "distill/export",
    "opallowlist": "distill/opallowlist", "recipes": "distill/recipe/shipped",
}  # fmt: skip
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the checkout: setuptools would put what an earlier build left into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True, timeout=120)
    [path] = out.glob("*.whl")
    return path


def test_it_holds_the_package_and_nothing_else(wheel):
    expected = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected -= {"distill/recipe/shipped/release.notes.md"}  # tells of the student that ships, and copies leave it out
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    for name in (
        "distill/recipe/shipped/release.toml", "distill/recipe/shipped/ablations/short.toml", "distill/py.typed",
        "distill/reporting/templates/report.html.j2", "distill/tools/demo_page/index.html", "distill/tools/demo_page/sample.webm",
        "distill/students/release/saliency_student_step.onnx", "distill/opallowlist/rules/libvmaf.txt",
    ):  # fmt: skip
        assert name in names


def test_it_is_small_and_has_both_commands_and_all_extras(wheel):
    assert wheel.stat().st_size < 3_000_000
    with zipfile.ZipFile(wheel) as archive:
        texts = {name.rpartition("/")[2]: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert {"distill = distill.__main__:main", "opallowlist = distill.__main__:gate"} <= {
        *texts["entry_points.txt"].splitlines()
    }
    extras = {line.partition(": ")[2] for line in texts["METADATA"].splitlines() if line.startswith("Provides-Extra")}
    assert {*EXTRAS, "all"} <= extras
