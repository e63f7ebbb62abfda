import re
import subprocess

import numpy as np
import pytest

pytest.importorskip("av")

import av

from distill.encoding.bd import measures
from distill.encoding.bd.excerpts import make_excerpt
from distill.encoding.bd.measures import Measures, choose_measures, measure
from distill.run.errors import UsageError
from distill.run.machine.extras import how_to_install
from tests.helpers import frames_of


def test_measures_are_those_of_ffmpegs_filters(tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.stack([np.roll(rng.integers(0, 256, (64, 96, 3)), n, 1) for n in range(4)]).astype(np.uint8)
    excerpt = make_excerpt(frames_of(pixels), 25.0, tmp_path)
    noisy = np.clip(excerpt.pixels + rng.normal(0, [[[2.0]], [[4.0]], [[4.0]], [[9.0]]], excerpt.pixels.shape), 0, 255).astype(
        np.uint8
    )
    frames = [av.VideoFrame.from_ndarray(planes, format="yuv420p") for planes in noisy]
    found = measure(excerpt, frames, Measures(("psnr", "ssim", "xpsnr")))

    squares = (noisy.astype(float) - excerpt.pixels) ** 2
    y, u, v = (10 * np.log10(255**2 / part.mean()) for part in np.split(squares.reshape(4, -1), [96 * 64, 96 * 80], axis=1))
    assert [found[key] for key in ("plain", "u", "v", "yuv")] == pytest.approx([y, u, v, (6 * y + u + v) / 8], abs=1e-4)
    assert 10 < found["ssim"] < 40 and abs(found["xpsnr"] - y) < 6 and "vmaf" not in found
    equal = [av.VideoFrame.from_ndarray(planes, format="yuv420p") for planes in excerpt.pixels]
    assert set(measure(excerpt, equal, Measures(("psnr", "ssim", "xpsnr"))).values()) == {100.0}
    with pytest.raises(UsageError, match="4 frames went in, 3 came out"):
        measure(excerpt, frames[:3], Measures())


def test_vmaf_needs_an_ffmpeg_with_libvmaf(tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "find_ffmpeg", lambda: None)
    chosen, left_out = choose_measures(None)
    assert chosen.names == ("psnr", "ssim", "xpsnr") and how_to_install("quality") in left_out
    assert choose_measures("ssim") == (Measures(("psnr", "ssim")), "")
    for named, message in (("vmaf", r"there is no FFmpeg with libvmaf; pip install"), ("psnr,psnr2", "psnr2 is unknown")):
        with pytest.raises(UsageError, match=message):
            choose_measures(named)
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\necho no such model >&2\nexit 1\n")
    broken.chmod(0o755)
    excerpt = make_excerpt(frames_of([np.zeros((64, 96, 3), np.uint8)]), 25.0, tmp_path)
    with pytest.raises(UsageError, match="computes no VMAF: no such model"):
        measure(excerpt, excerpt.frames(), Measures(("psnr", "vmaf"), str(broken)))


def test_measures_are_those_of_an_ffmpeg_with_libvmaf(tmp_path):
    ffmpeg = measures.find_ffmpeg()
    if ffmpeg is None:
        pytest.skip("no FFmpeg with libvmaf")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 64, 96, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    excerpt = make_excerpt(frames_of(pixels), 25.0, tmp_path)
    noisy = np.clip(excerpt.pixels + rng.normal(0, 12, excerpt.pixels.shape), 0, 255).astype(np.uint8)
    frames = [av.VideoFrame.from_ndarray(planes, format="yuv420p") for planes in noisy]
    found = measure(excerpt, frames, Measures(measures.MEASURES, ffmpeg))
    (tmp_path / "noisy.yuv").write_bytes(noisy.tobytes())
    raw = "-f rawvideo -pix_fmt yuv420p -s 384x256 -r 25 -i"
    for key, graph, pattern in (
        ("vmaf", "libvmaf=model=version=vmaf_v0.6.1", r"VMAF score: ([\d.]+)"),
        ("vmaf_neg", "libvmaf=model=version=vmaf_v0.6.1neg", r"VMAF score: ([\d.]+)"),
        ("ssim", "ssim", r"SSIM Y:[\d.]+ \(([\d.]+)\)"), ("xpsnr", "xpsnr", r"XPSNR +y: ([\d.]+)"), ("plain", "psnr", r"PSNR y:([\d.]+)"),
    ):  # fmt: skip
        command = f"{raw} noisy.yuv {raw} {excerpt.PIXELS} -lavfi {graph} -f null -"
        told = subprocess.run([ffmpeg, *command.split()], capture_output=True, text=True, cwd=tmp_path, check=True).stderr
        assert found[key] == pytest.approx(float(re.search(pattern, told)[1]), abs=1e-4), key
