"""ONNX students with random weights."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from distill.export.graph import image_graph, step_graph
from distill.students.tiny_unet import TinyUNet
from tests.helpers import SMALL


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An image and a step file of one student; read only."""
    folder = tmp_path_factory.mktemp("students")
    torch.manual_seed(0)
    student = TinyUNet(SMALL).eval()
    paths = {}
    for mode, graph in (("image", image_graph(student, {})), ("step", step_graph(student, 24.0, {}))):
        paths[mode] = folder / f"{mode}.onnx"
        onnx.save(graph, paths[mode])
    return paths


@pytest.fixture(scope="session")
def with_metadata(students: dict[str, Path]) -> Callable[..., str]:
    """Writes the image file with the given metadata properties to a path, which it returns."""

    def write(path: Path, **properties: str) -> str:
        model = onnx.load(students["image"])
        onnx.helper.set_model_props(model, properties)
        onnx.save(model, path)
        return str(path)

    return write
