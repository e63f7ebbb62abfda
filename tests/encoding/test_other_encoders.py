"""Files of offsets in the encoders that they are for, where their programs are on this machine.

kvazaar: its own program, or an FFmpeg that holds it, on PATH or of the package imageio-ffmpeg. SVT-AV1: a SvtAv1EncApp with
--roi-map-file on PATH.
"""

import shutil
import subprocess
from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest

av = pytest.importorskip("av")

from distill.encoding.qp_offsets import grid  # noqa: E402
from distill.encoding.roi_files import OWN_BLOCK, RoiFile, RoiOutput  # noqa: E402

FRAMES, SWAP = 28, 13  # a first frame, a whole group of 16 or three of 8, and a shorter one; the swap falls within a group
SIZES = ((64, 128), (72, 136), (144, 176), (96, 320), (200, 264))


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def kvazaar_command():
    """A function that gives the command line for a clip in YUV of a size, or None where there is no kvazaar."""
    if program := shutil.which("kvazaar"):
        return lambda clip, size, roi, gop, out: [
            program, "-i", clip, "--input-res", size, "--input-fps", "25", "--qp", "32", "--roi", roi, "-o", out,
            *(("--gop", gop) if gop else ()),
        ]  # fmt: skip
    programs = [shutil.which("ffmpeg")]
    if find_spec("imageio_ffmpeg"):
        import imageio_ffmpeg

        programs.append(imageio_ffmpeg.get_ffmpeg_exe())
    for program in filter(None, programs):
        if "libkvazaar" in output_of(program, "-hide_banner", "-encoders").stdout:
            return lambda clip, size, roi, gop, out, program=program: [
                program, "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", size, "-r", "25", "-i", clip,
                "-c:v", "libkvazaar", "-kvazaar-params", f"qp=32,roi={roi}" + (f",gop={gop}" if gop else ""), "-y", out,
            ]  # fmt: skip
    return None


@pytest.fixture(scope="module")
def kvazaar():
    command = kvazaar_command()
    return command or pytest.skip("no kvazaar and no FFmpeg that holds it")


@pytest.fixture(scope="module")
def svt_av1():
    program = shutil.which("SvtAv1EncApp")
    if not program or "--roi-map-file" not in output_of(program, "--help").stdout:
        pytest.skip("no SvtAv1EncApp with --roi-map-file")
    return program


def noise(size):
    """Frames that no frame predicts, so that each has the quality that its own map asks for."""
    rng = np.random.default_rng(0)
    small = rng.integers(60, 196, (FRAMES, -(-size[0] // 2), -(-size[1] // 2)), np.uint8)
    return small.repeat(2, 1).repeat(2, 2)[:, : size[0], : size[1]]


def write_maps(roi, size):
    """6 QP less on the left, 6 more on the right; from the swap on the other way round."""
    block = OWN_BLOCK[roi.format]
    rows, columns = grid(size, block)
    offsets = np.full((rows, columns), 6, np.int32)
    offsets[:, : columns // 2] = -6
    with RoiFile(roi, size, block) as file:
        for frame in range(FRAMES):
            file.add(offsets if frame < SWAP else -offsets)


def check_target_is_followed(lumas, path):
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(decoded) == FRAMES
    middle = lumas.shape[2] // 2
    errors = (lumas.astype(float) - np.array(decoded)) ** 2
    gain = errors[..., middle + 8 :].mean((1, 2)) / errors[..., : middle - 8].mean((1, 2))
    assert (gain[:SWAP] > 1.2).all() and (gain[SWAP:] < 1 / 1.2).all(), gain.round(2)


@pytest.mark.parametrize(
    ("size", "suffix", "gop"), [*product(SIZES, (".txt", ".bin"), [None]), *product(SIZES[:1], (".bin",), ["16", "8", "0"])]
)
def test_kvazaar_follows_a_target_that_changes_sides(kvazaar, tmp_path, size, suffix, gop):
    lumas = noise(size)
    clip, out = tmp_path / "clip.yuv", tmp_path / "out.hevc"
    grey = np.full((FRAMES, size[0] * size[1] // 2), 128, np.uint8)
    clip.write_bytes(np.concatenate([lumas.reshape(FRAMES, -1), grey], 1).tobytes())
    path = tmp_path / f"roi{suffix}"
    write_maps(RoiOutput(path, "kvazaar", int(gop)) if gop else RoiOutput(path, "kvazaar"), size)
    done = output_of(*kvazaar(str(clip), f"{size[1]}x{size[0]}", str(path), gop, str(out)))
    assert done.returncode == 0, done.stderr
    check_target_is_followed(lumas, out)


@pytest.mark.parametrize("size", SIZES)
def test_svt_av1_follows_a_target_that_changes_sides(svt_av1, tmp_path, size):
    lumas = noise(size)
    clip, out = tmp_path / "clip.y4m", tmp_path / "out.ivf"
    grey = np.full(size[0] * size[1] // 2, 128, np.uint8).tobytes()
    header = f"YUV4MPEG2 W{size[1]} H{size[0]} F25:1 Ip C420jpeg\n".encode()
    clip.write_bytes(header + b"".join(b"FRAME\n" + luma.tobytes() + grey for luma in lumas))
    path = tmp_path / "map.txt"
    write_maps(RoiOutput(path, "svt-av1"), size)
    done = output_of(svt_av1, "-i", str(clip), "-b", str(out), "--crf", "35", "--preset", "8", "--roi-map-file", str(path))
    assert done.returncode == 0, done.stderr
    check_target_is_followed(lumas, out)
