"""Every file of the student in every runtime that is here: the maps of ONNX Runtime, the state fed back."""

import functools

import numpy as np
import pytest

from tests.runtimes.sessions import FLOATS, PLANES, RUNTIMES
from tests.runtimes.streams import largest_difference, pictures, streamed, student

# An odd size below twice the working resolution, where nothing is pooled; one that is pooled by 2; one that is pooled by 4.
SMALL, MIDDLE, LARGE = (97, 131), (545, 961), (1081, 1921)
FRAMES = {SMALL: 30, MIDDLE: 4, LARGE: 4}  # the state and what it passes through have the same size in all of them
TOLERANCE = 1e-5
REFERENCE = "ONNX Runtime"


@functools.cache
def expected(kind, fixed, size):
    """What ONNX Runtime makes of the pictures."""
    return maps_in(REFERENCE, kind, fixed, [size])[0]


def maps_in(name, kind, fixed, sizes):
    """The maps of one session for streams of several sizes."""
    model = student(kind, sizes[0] if fixed else None)
    with RUNTIMES[name].open(model) as session:
        return [streamed(session, model, pictures(model, size, FRAMES[size]))[0] for size in sizes]


def cases(kinds, any_size):
    """Runtimes and files, those skipped that are not installed."""
    return [
        pytest.param(name, kind, marks=pytest.mark.skipif(bool(runtime.missing), reason=f"not installed: {runtime.missing}"))
        for name, runtime in RUNTIMES.items()
        for kind in kinds
        if name != REFERENCE and kind in runtime.kinds and (runtime.any_size or not any_size)
    ]


@pytest.mark.runtimes
@pytest.mark.parametrize("size", FRAMES, ids=lambda size: f"{size[1]}x{size[0]}")
@pytest.mark.parametrize(("name", "kind"), cases(FLOATS + PLANES, any_size=False))
def test_files_of_one_size(name, kind, size):
    [maps] = maps_in(name, kind, True, [size])
    assert largest_difference(maps, expected(kind, True, size)) <= TOLERANCE


@pytest.mark.runtimes
@pytest.mark.parametrize(("name", "kind"), cases(["rgb", "yuv420 block-map", "nv12"], any_size=True))
def test_one_session_of_a_file_of_any_size(name, kind):
    sizes = [SMALL, MIDDLE]
    for size, maps in zip(sizes, maps_in(name, kind, False, sizes), strict=True):
        assert largest_difference(maps, expected(kind, False, size)) <= TOLERANCE


@pytest.mark.runtimes
@pytest.mark.skipif(bool(RUNTIMES["ONNX Runtime for the web"].missing), reason="needs Node.js and onnxruntime-web")
def test_a_session_that_fails_in_node_leaves_nothing_to_the_next():
    with pytest.raises(ValueError), RUNTIMES["ONNX Runtime for the web"].open(student("rgb", SMALL)) as session:
        session.run({"input": np.zeros((1, 3, 16, 16), np.float32)})
    [maps] = maps_in("ONNX Runtime for the web", "rgb", True, [SMALL])
    assert largest_difference(maps, expected("rgb", True, SMALL)) <= TOLERANCE


def test_the_pictures_tell_a_state_that_is_fed_back_from_one_that_is_not():
    maps = expected("rgb", True, SMALL)
    alone = expected("image", True, SMALL)
    assert np.abs(maps[0] - alone[0]).max() <= TOLERANCE and largest_difference(maps, alone) > 0.05
    assert max(one.max() for one in maps) > 0.2
