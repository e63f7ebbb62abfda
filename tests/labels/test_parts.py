"""Parts of a corpus with teachers of their own: who labels what, and what the label store and the student say of them."""

import json

import numpy as np
import onnx
import pytest
import torch

from distill.corpora import Corpus
from distill.labels import members
from distill.labels.building import describe, open_teacher, try_out
from distill.labels.calibrate import calibrate_run
from distill.labels.labelling import by_part
from distill.recipe.files import load_recipe
from distill.run import engine, plan
from distill.run.directory import RunDir
from distill.run.errors import UsageError
from distill.run.progress import Narrator
from distill.teachers import PLAIN
from tests.corpora import writers
from tests.helpers import TINY
from tests.labels.test_label import FakeClip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The recipe's keys for a corpus of two clips in DHF1K's layout and two sets of images."""
    root = tmp_path_factory.mktemp("corpora")
    for number in (1, 2):
        writers.official(root / "gaze", number)
    for name in ("osie", "street"):
        writers.images(root / name / "set", 2)
    return ["corpus.name=dhf1k,images,images", f"corpus.root={json.dumps([str(root / n) for n in ('gaze', 'osie', 'street')])}"]


def fingerprint(tmp_path, name, *parts, **keys):
    sets = [f"teacher.{key}={value}" for key, value in keys.items()]
    recipe = load_recipe(None, [f"teacher.name={name}", f"teacher.parts={json.dumps(parts)}", "teacher.weights=random", *sets])
    opened = [open_teacher(recipe, CPU, tmp_path, team=team) for team in members.teams(recipe.teacher)]
    return describe(recipe, *opened)["fingerprint"], opened[0].fingerprint()


def test_a_stores_fingerprint_follows_the_teacher_of_every_part(tmp_path):
    two, alone = fingerprint(tmp_path, "unisal", "images=unisal@SALICON")
    assert two != alone, "another teacher for a part"
    others = [
        fingerprint(tmp_path, "unisal@Hollywood", "images=unisal@SALICON"),
        fingerprint(tmp_path, "unisal", "images=unisal@UCFSports"),
        fingerprint(tmp_path, "unisal", "images-2=unisal@SALICON"),
        fingerprint(tmp_path, "unisal", "images=unisal@SALICON", "images-2=unisal@SALICON"),
    ]
    assert len({two, *(own for own, _ in others)}) == 5
    explicit = fingerprint(tmp_path, "unisal@DHF1K", "images=unisal@SALICON")
    assert not {two, alone} & set(explicit), "it labels still images in another domain"
    same = [fingerprint(tmp_path, "unisal", *p)[0] for p in ([], ["images=unisal"])]
    assert same == [alone] * 2, "the same labels as of one teacher"
    both = ["images=unisal@SALICON", "images-2=unisal@Hollywood"]
    assert fingerprint(tmp_path, "unisal", *both) == fingerprint(tmp_path, "unisal", *reversed(both))


def test_each_part_is_labelled_by_its_teacher_and_in_order():
    asked = []

    def teacher(name):
        def labels(clips):
            asked.append((name, [clip.id for clip in clips]))
            yield from (torch.full((1, 1, 1), float(name)) for _ in clips)

        return labels

    clips = [FakeClip(str(i), corpus=corpus) for i, corpus in enumerate(["a", "a", "b", "c", "a", "d"])]
    own = teacher("2")
    assert [float(logits) for logits in by_part(teacher("1"), {"b": own, "c": own})(clips)] == [1, 1, 2, 2, 1, 1]
    assert asked == [("1", ["0", "1"]), ("2", ["2", "3"]), ("1", ["4", "5"])]


def test_a_run_with_a_teacher_for_each_part(tmp_path, mixed, narrator, capsys):
    """One is trained in the run, another is an ensemble of variants."""
    teacher = ["teacher.parts=images-2=unisal@SALICON+unisal@DHF1K:3", "teacher.weights=unisal=random", "teacher.steps=4"]
    tiny = [*(o for o in TINY if not o.startswith("synthetic")), "train.steps=4", "train.validate_every=2"]
    recipe = load_recipe(None, [*tiny, *mixed, *teacher, "export.license=MIT"])
    source = (
        "visage tiny, trained in this run; for images-2: 1 x unisal@SALICON, RANDOM WEIGHTS; 3 x unisal@DHF1K, RANDOM WEIGHTS"
    )
    assert {row["stage"]: row["detail"] for row in plan.dry_run(tmp_path / "run", recipe)}["teach"] == source
    assert list(try_out(recipe, CPU, PLAIN)) == ["unisal@SALICON, RANDOM WEIGHTS", "unisal@DHF1K, RANDOM WEIGHTS"]
    with RunDir.create(tmp_path / "run", recipe) as run:
        engine.carry_out(run, recipe, Narrator(), until="export")
        corpus = Corpus.from_dict(json.loads((run / "corpus.json").read_text(encoding="utf-8")))
        teachers = [open_teacher(recipe, CPU, run / "checkpoints", team=team) for team in members.teams(recipe.teacher)]
        for clip in corpus.clips:
            logits = teachers[clip.corpus == "images-2"].logits(np.stack(list(clip.read())), clip.fps)
            stored = np.load(run / "labels" / f"{clip.id}.npy").astype(np.float32)
            assert stored.shape == logits.shape and np.abs(stored - logits.numpy()).max() < 0.02
        description = json.loads((run / "labels" / "store.json").read_text(encoding="utf-8"))["teacher"]
        assert description["source"] == source and description["random"] == ["unisal@SALICON", "unisal@DHF1K"]
        assert description["name"] == "visage; for images-2: unisal@SALICON+unisal@DHF1K:3"
        assert description["parts"] == {"images-2": "unisal@SALICON+unisal@DHF1K:3"}
        assert description["license"] == "BSD-2-Clause-Patent, Apache-2.0, BSD-2-Clause-Patent (random)"
        chain = [
            ["teacher visage tiny", "BSD-2-Clause-Patent"], ["teacher unisal, code", "Apache-2.0"],
            ["teacher unisal@SALICON, weights", "BSD-2-Clause-Patent (random)"],
            ["teacher unisal@DHF1K, weights", "BSD-2-Clause-Patent (random)"],
        ]  # fmt: skip
        assert description["chain"] == chain
        properties = {p.key: p.value for p in onnx.load(run / "export" / "student.onnx").metadata_props}
        assert (
            json.loads(properties["license_chain"])[-4:] == chain and "for images-2: unisal@SALICON+" in properties["teacher"]
        )
        assert "for images-2: 1 x unisal@SALICON" in (run / "export" / "student.md").read_text(encoding="utf-8")
        with pytest.raises(UsageError, match=r"labels .* are of several teachers; calibrate a run without teacher\.parts"):
            calibrate_run(run.path, tmp_path / "c.json", narrator)
    said = capsys.readouterr().err
    assert "label: visage; for images-2: unisal@SALICON+unisal@DHF1K:3" in said
    assert "preflight: teacher unisal@SALICON, RANDOM WEIGHTS opens" in said
    other = load_recipe(None, [*mixed, "teacher.parts=image=unisal@SALICON", "teacher.weights=unisal=random"])
    with pytest.raises(UsageError, match="the corpus has no part 'image'; did you mean 'images'"):
        plan.check_ready(other)
