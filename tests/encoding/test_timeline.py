"""Stamps put on one count, and made to rise; on packets without a file."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

av = pytest.importorskip("av")

from distill.encoding.timeline import Rising, Timeline  # noqa: E402

MS = Fraction(1, 1000)


def packet(dts, duration=40, stream=0, kind="video", pts=None):
    return SimpleNamespace(
        dts=dts, pts=dts if pts is None else pts, duration=duration, time_base=MS, stream=SimpleNamespace(index=stream, type=kind)
    )  # fmt: skip


def placed(*packets, start=None, flags=0):
    container = SimpleNamespace(format=SimpleNamespace(flags=flags), start_time=start)
    timeline = Timeline(container, SimpleNamespace(index=0), Fraction(25))
    for each in packets:
        timeline.place(each)
    return [each.dts for each in packets]


def test_stamps_that_rise_stay_whatever_their_gaps():
    assert placed(*(packet(dts) for dts in (-80, 0, 40, 20000, 20040, 20020))) == [-80, 0, 40, 20000, 20040, 20020]


def test_the_clock_of_an_mpeg_stream_counts_from_its_start():
    flags = av.format.Flags.ts_discont.value
    assert placed(*(packet(dts) for dts in (9000, 9040)), start=9000000, flags=flags) == [0, 40]
    assert placed(packet(9000), start=9000000) == [9000]


def test_a_new_count_follows_the_old_one_in_all_streams():
    both = [packet(1000 * n + dts, stream=s, kind=k) for n in (5,) for dts in (0, 40) for s, k in ((0, "video"), (1, "audio"))]
    text = packet(20, stream=2, kind="subtitle")
    anew = [packet(0), packet(10, stream=1, kind="audio"), text, packet(40), packet(50, stream=1, kind="audio")]
    assert placed(*both, *anew)[4:] == [5080, 5090, 5100, 5120, 5130]


def test_one_wrong_stamp_changes_nothing_after_it():
    assert placed(*(packet(dts) for dts in (5000, 5040, 0, 5120, 5160))) == [5000, 5040, 5080, 5120, 5160]


def fixed(*packets, time_base=MS, equal=False, sparse=False):
    rising = Rising(time_base, equal, sparse)
    for each in packets:
        rising.fix(each)
    return [each.dts for each in packets], rising.moved


def test_packets_are_moved_by_the_smallest_step():
    assert fixed(*(packet(dts) for dts in (0, 40, 40, 30, 120))) == ([0, 40, 41, 42, 120], 2)
    assert fixed(packet(0), packet(0), time_base=Fraction(1, 48000)) == ([0, 1], 1)


def test_equal_times_stay_where_steps_would_add_up_and_between_subtitles():
    short = [packet(dts, duration=1) for dts in (0, 1, 2, 2, 3, 4, 5, 5)]  # TrueHD, 0.83 ms each
    assert fixed(*short, equal=True) == ([0, 1, 2, 2, 3, 4, 5, 5], 0)
    assert fixed(packet(0), packet(0), sparse=True) == ([0, 0], 0)


def test_packets_without_stamps_follow_the_one_before():
    bare = [packet(0), packet(None), packet(None, pts=70), packet(120)]
    assert fixed(*bare) == ([0, 40, 70, 120], 0)
    assert [p.pts for p in bare] == [0, 40, 70, 120]
