"""Which licences allow any use, and what a teacher is made of."""

import dataclasses
import json

import pytest
import torch

from distill.labels.building import describe, open_teacher, warning
from distill.labels.catalogue import UNSTATED
from distill.labels.licences import chain, check_licences, permissive
from distill.labels.members import members, source
from distill.recipe.files import load_recipe
from distill.recipe.keys import Teacher
from distill.run.errors import UsageError


@pytest.mark.parametrize(
    "free", ["Apache-2.0", "MIT", "BSD-2-Clause-Patent (procedural)", "CC BY 4.0", "CC BY (version not stated)", "CC0"]
)
def test_licences_that_allow_any_use(free):
    assert permissive(free)


@pytest.mark.parametrize(
    "unclear", ["", UNSTATED, "CC BY-NC 4.0", "CC BY-SA 4.0", "MIT-like", "GPL-3.0-only", "Apache-2.0; not for sale"]
)
def test_licences_that_the_user_must_judge(unclear):
    assert not permissive(unclear)


def test_a_teacher_without_a_permissive_licence_must_be_accepted():
    options = Teacher(name="unisal+salfom", weights=("unisal=random", "salfom=random"))
    with pytest.raises(UsageError, match=r"teacher salfom, code: none stated.*--accept-licence salfom"):
        check_licences(options)
    check_licences(dataclasses.replace(options, accept_licence=("salfom",)))
    check_licences(Teacher(name="unisal", weights=("random",)))
    check_licences(Teacher(name="maps", maps="x"))


def test_an_onnx_file_states_its_own_licence(tmp_path, with_metadata):
    def check(path):
        check_licences(Teacher(name="onnx", weights=(path,)))

    silent = with_metadata(tmp_path / "silent.onnx")
    with pytest.raises(UsageError, match=r"teacher onnx: silent\.onnx: none stated.*--accept-licence onnx"):
        check(silent)
    (tmp_path / "silent.json").write_text('{"license": "BSD-3-Clause-Plus-Patent"}', encoding="utf-8")
    check(silent)  # the sidecar states it
    check(with_metadata(tmp_path / "free.onnx", license="MIT"))
    made_of = json.dumps([["corpus dhf1k", "CC BY 4.0"], ["teacher salfom, weights", "none stated"]])
    with pytest.raises(UsageError, match=r"made\.onnx: teacher salfom, weights: none stated"):
        check(with_metadata(tmp_path / "made.onnx", license="MIT", license_chain=made_of))
    clean = json.dumps([["corpus dhf1k", "CC BY 4.0"], ["teacher unisal, weights", "Apache-2.0"]])
    check(with_metadata(tmp_path / "clean.onnx", license="not stated; corpus: CC BY 4.0", license_chain=clean))
    (tmp_path / "page.onnx").write_text("<html>", encoding="utf-8")
    with pytest.raises(UsageError, match=r"page\.onnx is not an ONNX file"):
        check(str(tmp_path / "page.onnx"))


def test_published_weights_list_what_they_were_trained_on_and_keep_their_licence(tmp_path, with_metadata):
    options = Teacher(name="unisal", weights=("weights_best.pth",))
    [member] = members(options)
    parts = dict(chain(member))
    assert parts["teacher unisal, weights"] == "Apache-2.0"
    assert parts["teacher unisal, trained on Hollywood-2 with gaze"] == "the authors' agreement"
    check_licences(options)
    student = with_metadata(tmp_path / "s.onnx", license="MIT", license_chain=json.dumps([*parts.items()]))
    check_licences(Teacher(name="onnx", weights=(student,)))  # a student of that teacher, as a teacher
    for weights in (("random",), ()):
        assert not any("trained on" in part for part, _ in chain(members(Teacher(name="unisal", weights=weights))[0]))


def test_labels_list_what_their_teacher_is_made_of(tmp_path, with_metadata):
    student = with_metadata(tmp_path / "s.onnx", license="MIT", license_chain='[["corpus c", "CC BY 4.0"]]')
    recipe = load_recipe(None, ["teacher.name=unisal:2+onnx", f'teacher.weights=["unisal=random","onnx={student}"]'])
    built = open_teacher(recipe, torch.device("cpu"), tmp_path)
    description = describe(recipe, built)
    assert description["name"] == built.name == "unisal:2+onnx" and description["fingerprint"] == built.fingerprint()
    assert description["source"] == "2 x unisal, RANDOM WEIGHTS; 1 x onnx, s.onnx" and description["random"] == ["unisal"]
    assert description["chain"] == [
        ["teacher unisal, code", "Apache-2.0"],
        ["teacher unisal, weights", "BSD-2-Clause-Patent (random)"],
        ["teacher onnx: s.onnx", "MIT"],
        ["s.onnx: corpus c", "CC BY 4.0"],
    ]
    assert description["license"] == "Apache-2.0, BSD-2-Clause-Patent (random), CC BY 4.0"
    assert "RANDOM WEIGHTS (unisal)" in warning(description) and warning({"random": []}) == ""
    assert source(load_recipe()) == "visage tiny, trained in this run"
