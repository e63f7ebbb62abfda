"""What the gate may import: it is installed alone, and must start quickly."""

import subprocess
import sys

import pytest

HEAVY = ["torch", "onnxruntime", "cv2", "matplotlib", "onnxscript", "numpy", "onnx", "google.protobuf", "typer", "rich"]


def loaded_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_gate_imports_nothing_heavy():
    assert loaded_after("import distill.opallowlist") == set()


def test_checking_a_file_imports_nothing_heavy_either(tmp_path, image):
    path = tmp_path / "m.onnx"
    path.write_bytes(image.SerializeToString())
    statement = f"from distill.opallowlist import check; assert check({str(path)!r}, contract='saliency').ok"
    assert loaded_after(statement) == set()


def test_the_command_imports_only_its_command_line():
    assert loaded_after("import distill.opallowlist.cli") <= {"typer", "rich"}


@pytest.mark.parametrize("name", ["check", "assert_allowed", "load_list", "Report", "Violation", "RULES", "CONTRACTS"])
def test_the_public_names(name):
    import distill.opallowlist

    assert name in distill.opallowlist.__all__ and hasattr(distill.opallowlist, name)
