"""`distill predict` from the file it reads to the file it writes."""

import numpy as np
import pytest
from onnx import helper

from distill.run.errors import UsageError
from distill.run.progress import Narrator
from distill.tools.predict import write_predictions
from tests.helpers import make_clip, save_model


@pytest.mark.parametrize("out", ["maps.npy", "overlay.mp4"])
def test_a_model_that_gives_nan_is_refused_and_writes_nothing(tmp_path, out):
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["m", "m"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["saliency_map"]),
    ]
    model = save_model(tmp_path / "nan.onnx", nodes)
    video = make_clip(tmp_path / "corpus") / "video" / "001.avi"
    (tmp_path / "out").mkdir()
    with np.errstate(invalid="ignore"), pytest.raises(UsageError, match=r"nan.onnx gives NaN or infinity at 0 s"):
        write_predictions(video, model, tmp_path / "out" / out, 1, Narrator(quiet=True))
    assert list((tmp_path / "out").iterdir()) == []
