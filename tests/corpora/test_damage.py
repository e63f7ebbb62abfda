"""Files of arbitrary bytes: unreadable content is a UsageError of one line, never another exception."""

import contextlib
import itertools
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.corpora.clips import Clip
from distill.corpora.gaze import CLIP_READERS
from distill.corpora.readers import images, table
from distill.corpora.readers.matlab import read_variable
from distill.run.errors import UsageError
from tests.corpora import writers
from tests.corpora.test_gaze_exports import EXPORTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@contextlib.contextmanager
def one_line():
    """The block may succeed or raise a UsageError of one line; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            yield
        except UsageError as error:
            assert "\n" not in str(error)


def damaged(whole: bytes):
    """Arbitrary bytes; or a valid file, truncated or with bytes changed."""
    cut = st.integers(0, len(whole)).map(lambda n: whole[:n])

    def changed(places):
        data = bytearray(whole)
        for place, value in places:
            data[place] = value
        return bytes(data)

    change = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4).map(changed)
    return st.one_of(st.binary(max_size=300), cut, change)


def matlab_file(**how):
    with tempfile.TemporaryDirectory() as place:
        return writers.mat(Path(place) / "m.mat", np.eye(4, 5, dtype=np.uint8), **how).read_bytes()


MATRICES = matlab_file(compressed=True), matlab_file(compressed=False), matlab_file(compressed=False, sparse=True)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.one_of(*map(damaged, MATRICES)))
def test_matlab_files(folder, data):
    (folder / "m.mat").write_bytes(data)
    with one_line():
        read_variable(folder / "m.mat", "I")


JPEG = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffc0000b0800300050010111 00ffd9".replace(" ", ""))
PNG = images.PNG_HEAD + bytes.fromhex("0000000d49484452000000500000003008020000001d") + b"\0" * 9 + images.PNG_END


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.one_of(damaged(JPEG), damaged(PNG)), suffix=st.sampled_from(images.SUFFIXES), all_of_it=st.booleans())
def test_images(folder, data, suffix, all_of_it):
    (folder / f"i{suffix}").write_bytes(data)
    with one_line():
        images.size_of(folder / f"i{suffix}", whole=all_of_it)


NUMBERS = itertools.count()
CSV = b'clip,frame,time_ms,duration,x,y,observer\na,1,33,2,10,20,ann\na,2,66,,nan,1e9,bob\nb,-1,x,1,,,\n"q"\n'
TABLES = (CSV, *("\n".join(rows).encode() for rows in EXPORTS.values()))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.one_of(*map(damaged, TABLES)), static=st.booleans(), kind=st.sampled_from(["table", "tracks"]))
def test_tables(folder, data, static, kind):
    path = folder / f"gaze{next(NUMBERS)}.csv"  # a new name: the cache would not notice two changes in one tick
    path.write_bytes(data)
    with one_line():
        if not table.columns_of(path).lacks:
            name = Path(next(iter(table.read(path).clips), "a")).stem
            clip = Clip("a", f"{name}.mp4", 1 if static else 5, 48, 80, 30.0, str(path), annotation=kind, static=static)
            gaze = CLIP_READERS[kind](clip)
            assert (gaze.rows < 48).all() and (gaze.columns < 80).all() and (gaze.frame < clip.frames).all()
            assert (gaze.rows >= 0).all() and (gaze.columns >= 0).all() and (gaze.frame >= 0).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=damaged(b"[[[1, 2], [3.5, 4]], [], [[NaN, 1], [-1, 99999999999999999999]]]"))
def test_points(folder, data):
    (folder / "fixations.json").write_bytes(data)
    with one_line():
        CLIP_READERS["json"](Clip("a", "a.mp4", 5, 48, 80, 30.0, str(folder / "fixations.json"), annotation="json"))
