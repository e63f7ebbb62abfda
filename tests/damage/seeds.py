"""Sound files of every kind that the pipeline reads, each in the folder that its reader needs around it."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import save

from distill.recipe.files import to_toml
from distill.recipe.keys import Recipe
from distill.training import checkpoint
from tests.corpora import writers
from tests.helpers import image_model, moving_blobs, step_model

TABLE = "clip,frame,x,y,observer\n" + "".join(f"a,{t},{5 * t},{20 + t},o{who}\n" for t in range(6) for who in range(2))
DAMAGED = {
    "video avi": "avi/a.avi",
    "video mp4": "mp4/a.mp4",
    "video mkv": "mkv/a.mkv",
    "video webm": "webm/a.webm",
    "fixation PNG": "png/annotation/0001/fixation/0003.png",
    "density PNG": "png/annotation/0001/maps/0003.png",
    "frame JPEG": "jpg/img/002.jpg",
    "fixation MAT": "mat/annotation/0001/fixation/maps/0003.mat",
    "fixation sparse-MAT": "sparse/annotation/0001/fixation/maps/0003.mat",
    "gaze CSV": "avi/gaze.csv",
    "image CSV": "jpg/fixations.csv",
    "SMI text": "smi/exportdata_train/P01/P01_Trail001.txt",
    "groups CSV": "tables/groups.csv",
    "attribution CSV": "tables/attribution.csv",
    "fixations JSON": "avimos/FixationsTrain/Train/0001/fixations.json",
    "split JSON": "avimos/TrainTestSplit.json",
    "recipe TOML": "recipe/r.toml",
    "maps npz": "npz/a.npz",
    "labels npy": "labels/a.npy",
    "labels JSON": "labels/store.json",
    "cache npy": "cache/a.npy",
    "checkpoint": "torch/last.pt",
    "weights pth": "torch/w.pth",
    "weights safetensors": "torch/w.safetensors",
    "calibration JSON": "torch/calibration.json",
    "manifest JSON": "run/manifest.json",
    "corpus JSON": "run/corpus.json",
    "metrics JSON": "run/metrics.json",
    "image ONNX": "onnx/image.onnx",
    "step ONNX": "onnx/step.onnx",
}
"""The file of each kind that is damaged."""


def write(folder: Path) -> None:
    """Writes all of them."""
    for suffix in ("avi", "mp4", "mkv", "webm"):
        (folder / suffix).mkdir(parents=True)
        (folder / suffix / "gaze.csv").write_text(TABLE, encoding="utf-8")
    for suffix in ("avi", "mp4"):
        writers.video(folder / suffix / f"a.{suffix}", 6)
    for suffix, codec in (("mkv", "libx264"), ("webm", "libvpx-vp9")):
        _muxed(folder / suffix / f"a.{suffix}", codec)
    writers.official(folder / "png", 1)
    for name in ("mat", "sparse"):
        shutil.copytree(folder / "png", folder / name)
        shutil.rmtree(folder / name / "annotation/0001/fixation")
        for t in range(6):
            path = folder / name / f"annotation/0001/fixation/maps/{t + 1:04d}.mat"
            writers.mat(path, writers.fixations(t), compressed=name == "mat" and t % 2 == 0, sparse=name == "sparse")
    writers.images(folder / "jpg")
    writers.video(folder / "smi/video/001.avi", 4, 30.0, (360, 640))
    writers.export(folder / "smi", 1, 1, [(0, 1, 1, "-"), *((4000 + 9000 * i, 700 + 9 * i, 450, "Fixation") for i in range(9))])
    writers.avimos(folder / "avimos")
    shutil.rmtree(folder / "avimos/FixationsTrain/Train/0001/fixations")
    for name in ("tables", "recipe", "npz", "labels", "cache", "torch", "run", "onnx"):
        (folder / name).mkdir()
    (folder / "tables/groups.csv").write_text("# clip,group\na,one\nb,two\n", encoding="utf-8")
    (folder / "tables/attribution.csv").write_text('file,source,author,licence\navi/*,https://x,"A, B",MIT\n', encoding="utf-8")
    (folder / "recipe/r.toml").write_text(to_toml(Recipe(), comments=True), encoding="utf-8")
    rng = np.random.default_rng(0)
    np.savez_compressed(folder / "npz/a.npz", maps=rng.integers(0, 255, (6, 9, 16), np.uint8), peak=np.ones(6, np.float32))
    np.save(folder / "labels/a.npy", rng.normal(size=(6, 6, 10)).astype(np.float16))
    teacher = {"name": "t", "source": "s", "fingerprint": "f", "license": "MIT"}
    (folder / "labels/store.json").write_text(json.dumps({"schema": 1, "teacher": teacher}), encoding="utf-8")
    np.save(folder / "cache/a.npy", rng.integers(0, 255, (6, 8, 16, 3), np.uint8))
    weights = {"module.a.weight": torch.arange(6.0).reshape(2, 3), "module.a.bias": torch.ones(2)}
    checkpoint.save(folder / "torch/last.pt", {"format": checkpoint.FORMAT, "step": 3, "modules": {"student": weights}})
    buffer = io.BytesIO()
    torch.save({"state_dict": weights}, buffer)
    (folder / "torch/w.pth").write_bytes(buffer.getvalue())
    (folder / "torch/w.safetensors").write_bytes(save(weights))
    calibration = {"teacher": teacher, "calibration": {"temperature": 1.5, "bias": -0.25, "blur": 0.01}}
    (folder / "torch/calibration.json").write_text(json.dumps(calibration), encoding="utf-8")
    from distill.corpora import open_corpus

    corpus = open_corpus("gaze-table", str(folder / "avi"))
    (folder / "run/corpus.json").write_text(json.dumps(corpus.to_dict()), encoding="utf-8")
    stage = {
        "fingerprint": "0" * 16,
        "outputs": {"corpus.json": (folder / "run/corpus.json").stat().st_size},
        "seconds": 1.5,
        "finished": "x",
    }
    manifest = {"schema": 2, "created": "x", "environment": {}, "stages": {"preflight": stage, "corpus": stage}}
    (folder / "run/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "run/recipe.toml").write_text(to_toml(Recipe()), encoding="utf-8")
    (folder / "run/metrics.json").write_text(json.dumps({"predictors": {"step": {"nss": 1.5}}}), encoding="utf-8")
    onnx.save(onnx.load(image_model(folder / "onnx/image.onnx")), folder / "onnx/image.onnx")
    step_model(folder / "onnx/step.onnx")


def _muxed(path: Path, codec: str) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        for picture in next(moving_blobs([1], 6)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
