"""An ONNX file as a teacher."""

import numpy as np
import onnx
import pytest
import torch

from distill.export.runner import Predictor
from distill.labels.onnx_teacher import OnnxTeacher


@pytest.mark.parametrize("mode", ["image", "step"])
def test_an_onnx_teacher_gives_what_the_file_gives(students, mode):
    frames = np.random.default_rng(0).integers(0, 256, (5, 48, 72, 3), np.uint8)
    opened = OnnxTeacher(students[mode])
    logits = opened.logits(frames, 24)
    expected = np.stack(list(Predictor(students[mode]).stream(frames)))
    assert logits.shape == (5, 48, 72) and np.allclose(logits.sigmoid().numpy(), expected, atol=1e-5)
    again = opened.infer(torch.cat([opened.prepare(frames[:2]), opened.prepare(frames[2:])]), 24)
    assert torch.equal(again, logits)  # a clip begins without a history, and may come in pieces


def test_an_onnx_teacher_resizes_frames_to_a_size_that_students_take(students):
    opened = OnnxTeacher(students["image"])
    assert opened.prepare(np.zeros((2, 37, 53, 3), np.uint8)).shape == (2, 40, 56, 3)
    assert opened.prepare(np.zeros((1, 1080, 1920, 3), np.uint8)).shape == (1, 360, 640, 3)
    assert opened.infer(torch.zeros(1, 96, 320, 3, dtype=torch.uint8), 24).shape == (1, 48, 160)


def test_an_onnx_file_that_is_not_a_student_is_refused(tmp_path, students):
    with pytest.raises(ValueError, match=r"none\.onnx does not exist"):
        OnnxTeacher(tmp_path / "none.onnx")
    model = onnx.load(students["image"])
    last = next(node for node in model.graph.node if "saliency_map" in node.output)
    last.output[0] = "unscaled"
    model.graph.node.append(onnx.helper.make_node("Add", ["unscaled", "one"], ["saliency_map"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    onnx.save(model, tmp_path / "off.onnx")
    with pytest.raises(ValueError, match=r"for frame 1, where a saliency map is in \[0, 1\]"):
        OnnxTeacher(tmp_path / "off.onnx").logits(np.zeros((1, 32, 64, 3), np.uint8), 24)
