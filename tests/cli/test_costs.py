"""What a run will take, in words."""

from pathlib import Path

from distill.cli.costs import summary, told, told_bytes
from distill.run.estimate import Estimate

COST = Estimate(
    100, {"frames": 90.0, "label": 7200.0, "train": 600.0}, {"frames": 10**18, "label": 5_000_000}, ("teach",), "cpu",
    {"label": 60.0, "train": 590.0},
)  # fmt: skip


def test_what_is_left_to_do_is_said_in_words():
    said = summary(COST, ["frames", "teach", "label", "train"], Path("nowhere/run"))
    assert said[0] == "about 2.2 h on cpu: frames 90 s, label 2 h, train 10 min; teach not estimated"
    assert "frames 1000000000 GB, labels 5 MB" in said[1] and "NOT ENOUGH" in said[2]
    assert said[3] == "on one H100 instead: label 60 s"
    assert summary(COST, ["report"], Path()) == []


def test_only_what_is_to_do_is_told():
    said = summary(COST, ["label", "train"], Path())
    assert said[0] == "about 2.2 h on cpu: label 2 h, train 10 min" and said[1].startswith("disk: about 5 MB (labels 5 MB); ")
    assert summary(COST, ["teach", "report"], Path()) == ["time on cpu: teach not estimated"]


def test_times_and_sizes_have_two_digits_or_three():
    assert [told(s) for s in (0.5, 99, 6000, 200_000)] == ["1 s", "99 s", "1.7 h", "2.3 days"]
    assert [told_bytes(b) for b in (0, 5.5e5, 2e6, 2.2e10)] == ["0 kB", "550 kB", "2 MB", "22 GB"]
