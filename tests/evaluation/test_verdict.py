"""The verdict: what the differences say, in words."""

import pytest

from distill.evaluation.statistics import ENOUGH_CLIPS, differences_in, scored_clips
from distill.evaluation.verdict import comparisons, differences, headline
from tests.helpers import made_up_scores


def scores(**values):
    names = {"gaussian": "centred Gaussian", "mean": "mean training map"}
    return made_up_scores(**{names.get(name, name): value for name, value in values.items()})


def test_the_intervals_of_the_differences_decide():
    result = scores(step=0.5, image=0.4, gaussian=0.0, mean=0.9, teacher=2.0)
    differences_in(result)["image"]["nss"]["interval"] = [-0.1, 0.3]
    compared = comparisons(result)
    assert [(c.against, c.outcome) for c in compared] == [
        ("the centred Gaussian", "better"), ("the mean training map", "worse"), ("its own image file", "unclear"),
    ]  # fmt: skip
    assert headline(result) == (
        "Beats the centred Gaussian; is worse than the mean training map; is not clearly better or worse than its own image file."
    )
    assert differences(compared[0]) == ["NSS +0.500 [+0.500, +0.500]", "CC +0.500 [+0.500, +0.500]"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"step": 1, "image": 0, "gaussian": 0, "mean": 0},
         "Beats the centred Gaussian, the mean training map and its own image file."),
        ({"step": 1, "image": 0}, "Beats its own image file."),
        ({"step": 1}, "Nothing to compare with."),
    ],
)  # fmt: skip
def test_names_are_listed(values, said):
    assert headline(scores(**values)) == said


def test_a_few_clips_are_too_few_to_be_sure():
    result = scores(step=1, image=0)
    assert scored_clips(result) == ENOUGH_CLIPS
    result["clips"]["c0"]["frames_scored"] = 0
    assert headline(result) == "Beats its own image file (11 clips: too few to be sure)."


def test_nothing_is_said_of_nothing():
    assert headline({"predictors": {}, "clips": {}}) == "Nothing was scored."


def test_one_clip_decides_nothing_and_still_images_have_no_gain_of_the_state():
    result = scores(step=1, image=0, gaussian=0)
    for of in differences_in(result).values():
        of["nss"]["interval"] = None
    assert {c.outcome for c in comparisons(result)} == {"unknown"}
    assert headline(result) == "One clip alone cannot tell whether it beats the centred Gaussian and its own image file."
    assert differences(comparisons(result)[0])[0] == "NSS +1.000"
    result["frames_scored"] = len(result["clips"])  # one frame each
    assert [c.against for c in comparisons(result)] == ["the centred Gaussian"]
