import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.encoding.roi_files import (
    RoiFile,
    RoiOutput,
    addroi,
    addroi_command,
    coding_order,
    kvazaar_binary,
    kvazaar_text,
    rectangles,
    svt_event,
)

SIZE = (24, 40)
MAP = np.array([[2, 2, 2], [2, -6, -6]], np.int32)  # of 40x24 pixels in blocks of 16: partial at the right and at the bottom


def test_kvazaar_byte_for_byte(tmp_path):
    assert kvazaar_text(MAP) == b"3 2\n2 2 2\n2 -6 -6\n"
    assert kvazaar_binary(MAP) == struct.pack("<ii6b", 3, 2, 2, 2, 2, 2, -6, -6)
    for name, one in (("roi.txt", kvazaar_text), ("roi.bin", kvazaar_binary)):
        with RoiFile(RoiOutput(tmp_path / name, "kvazaar", 0), SIZE, 16) as file:
            for offsets in (MAP, MAP, -MAP):  # every frame has its map, changed or not
                file.add(offsets)
        assert (tmp_path / name).read_bytes() == one(MAP) * 2 + one(-MAP)
    with pytest.raises(ValueError, match="int8"):
        kvazaar_binary(MAP * 40)


@pytest.mark.parametrize(
    ("gop", "frames", "expected"),
    [
        (16, 1, [0]),
        (16, 22, [0, 16, 8, 4, 2, 1, 3, 6, 5, 7, 12, 10, 9, 11, 14, 13, 15, 20, 18, 17, 19, 21]),
        (8, 13, [0, 8, 4, 2, 1, 3, 6, 5, 7, 12, 10, 9, 11]),
        (8, 9, [0, 8, 4, 2, 1, 3, 6, 5, 7]),
        (0, 3, [0, 1, 2]),
    ],
)
def test_kvazaar_gets_its_maps_in_the_order_in_which_it_codes(tmp_path, gop, frames, expected):
    with RoiFile(RoiOutput(tmp_path / "roi.bin", "kvazaar", gop), SIZE, 16) as file:
        for frame in range(frames):
            file.add(np.full((2, 3), frame))
    assert (tmp_path / "roi.bin").read_bytes() == b"".join(kvazaar_binary(np.full((2, 3), n)) for n in expected)
    assert sorted(coding_order(gop)) == list(range(1, max(gop, 1) + 1))


def test_int8_reads_back(tmp_path):
    with RoiFile(RoiOutput(tmp_path / "maps.qp", "int8"), SIZE, 16) as file:
        for offsets in (MAP, MAP, -MAP):
            file.add(offsets)
    contents = (tmp_path / "maps.qp").read_bytes()
    assert struct.unpack_from("<8s6I", contents) == (b"QPDELTA1", 16, 40, 24, 3, 2, 3)
    assert np.array_equal(np.frombuffer(contents, np.int8, offset=32).reshape(3, 2, 3), [MAP, MAP, -MAP])


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_int8_reads_back_by_the_c_program_of_the_docs(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
    (tmp_path / "read.c").write_text(text.partition("```c\n")[2].partition("```")[0])
    subprocess.run(["cc", "-Wall", "-Werror", "-o", tmp_path / "read", tmp_path / "read.c"], check=True)
    with RoiFile(RoiOutput(tmp_path / "maps.qp", "int8"), SIZE, 16) as file:
        for offsets in (MAP, -MAP):
            file.add(offsets)
    done = subprocess.run([tmp_path / "read", tmp_path / "maps.qp"], capture_output=True, text=True, check=True)
    assert done.stdout == "0 2\n1 -2\n"
    assert subprocess.run([tmp_path / "read", tmp_path / "read.c"]).returncode == 1  # another file


def test_svt_av1_byte_for_byte(tmp_path):
    assert svt_event(0, MAP) == b"0 8 8 8 8 -24 -24\n"
    assert svt_event(7, MAP - 5) == b"7 0 0 0 0 -32 -32\n"  # not all below zero
    assert svt_event(1, MAP * 20) == b"1 160 160 160 160 -255 -255\n"
    with RoiFile(RoiOutput(tmp_path / "map.txt", "svt-av1"), SIZE, 64) as file:
        for offsets in (MAP, MAP.copy(), -MAP, -MAP, MAP):
            file.add(offsets)
    assert (tmp_path / "map.txt").read_bytes() == svt_event(0, MAP) + svt_event(2, -MAP) + svt_event(4, MAP)


def test_svt_av1_gets_eight_levels_of_the_range_in_use():
    assert svt_event(0, np.arange(-3, 5)) == b"0 -12 -8 -4 0 4 8 12 16\n"  # as they are
    levels = [int(word) for word in svt_event(0, np.arange(-8, 5)).split()[1:]]
    assert len(set(levels)) == 8 and (levels[0], levels[-1]) == (-32, 16) and levels == sorted(levels)
    assert np.abs(np.array(levels) - 4 * np.arange(-8, 5)).max() <= 48 / 7 / 2 + 0.5


def test_addroi_byte_for_byte(tmp_path):
    assert rectangles(MAP, 16, (24, 40)).tolist() == [[16, 16, 24, 8, -6], [0, 0, 40, 24, 2]]
    assert addroi(MAP, 16, (24, 40)) == ["16:16:24:8:-6/51", "0:0:40:24:2/51"]
    assert addroi(MAP, 16, (24, 40), bits=10) == ["16:16:24:8:-6/63", "0:0:40:24:2/63"]
    assert addroi_command(tmp_path / "a b.mp4", MAP, 16, (24, 40)).decode() == (
        f"ffmpeg -noautorotate -i '{tmp_path}/a b.mp4' -vf addroi=16:16:24:8:-6/51,addroi=0:0:40:24:2/51 "
        "-c:v libx264 -aq-mode 1 -crf 23 -c:a copy out.mp4\n"
    )
    assert b" -vf null " in addroi_command(tmp_path, MAP * 0, 16, (24, 40))


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.int32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(-2, 2)),
    st.integers(0, 15),
    st.integers(0, 15),
)
def test_rectangles_reproduce_the_map_the_first_one_on_top(offsets, less_height, less_width):
    rows, columns = offsets.shape
    size = rows * 16 - less_height, columns * 16 - less_width
    painted = np.zeros(size, int)
    for x, y, width, height, value in reversed(rectangles(offsets, 16, size)):
        assert width > 0 and height > 0 and y + height <= size[0] and x + width <= size[1]
        painted[y : y + height, x : x + width] = value
    assert np.array_equal(painted, offsets.repeat(16, 0).repeat(16, 1)[: size[0], : size[1]])


def test_rectangles_are_few():
    offsets = np.full((23, 40), 3)
    offsets[5:15, 10:30] = -5
    assert len(rectangles(offsets, 16, (360, 640))) == 2
    assert len(rectangles(offsets * 0, 16, (360, 640))) == 0


def test_an_unfinished_roi_file_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), RoiFile(RoiOutput(tmp_path / "roi.txt", "kvazaar"), SIZE, 16) as file:
        file.add(MAP)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
