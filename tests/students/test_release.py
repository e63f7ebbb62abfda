"""The student that ships: its files are what the gate and the downstream accept, and state where they come from."""

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from distill.export import release_model
from distill.export.runner import Predictor
from distill.export.verification import MAX_BYTES
from distill.labels.catalogue import CATALOGUE
from distill.labels.members import with_published
from distill.opallowlist import check
from distill.recipe.files import load_recipe, portable
from distill.reporting.sidecar import UNSIGNED, registry_entry
from distill.students.release import NAME
from tests.downstream import c_extractor, c_opens, scorer, strict_json, tuner, validate
from tests.helpers import ROOT

FOLDER = release_model().parent
RECIPE = ROOT / "recipes" / "release.toml"
CARD = (FOLDER / f"{NAME}.md").read_text(encoding="utf-8")


def properties(mode):
    return {prop.key: prop.value for prop in onnx.load(release_model(mode)).metadata_props}


@pytest.mark.parametrize("mode", ["image", "step"])
def test_the_gate_accepts_both_files(mode):
    report = check(str(release_model(mode)), contract=f"saliency-{mode}")
    assert report.ok, report
    assert release_model(mode).stat().st_size < MAX_BYTES


def test_the_package_is_small_enough_for_the_wheel():
    assert sum(path.stat().st_size for path in FOLDER.glob(f"{NAME}*")) < 2_800_000


def test_the_downstream_accepts_them_and_what_lies_beside_them():
    entries = validate(FOLDER / f"{NAME}.registry.json")
    assert set(entries) == {NAME, f"{NAME}_step"}
    for name, entry in entries.items():
        facts = entry["license"], entry["description"], entry["notes"].removesuffix(UNSIGNED)
        assert registry_entry(FOLDER / f"{name}.onnx", *facts) == entry
    frame = np.random.default_rng(0).standard_normal((1, 3, 90, 160), np.float32)
    image, step = release_model("image"), release_model("step")
    assert c_opens(image) == image and c_opens(step) == step
    maps = [np.squeeze(caller(image, frame)) for caller in (c_extractor, tuner, scorer)] + [tuner(step, frame)]
    assert all(np.array_equal(maps[0], other) for other in maps[1:])


def test_the_step_file_carries_a_state_that_matters():
    student = Predictor(release_model())
    frames = np.random.default_rng(0).integers(0, 256, (3, 90, 160, 3), np.uint8)
    *_, last = student.stream(frames)
    student.reset()
    assert student.stateful and np.abs(student.predict(frames[2]) - last).max() > 1e-3


@pytest.mark.parametrize("mode", ["image", "step"])
def test_the_metadata_is_complete(mode):
    stated = properties(mode)
    for key in ("license", "training_corpus", "teacher", "license_chain", "git_revision", "metrics", "metrics_protocol"):
        assert stated.get(key) and "not stated" not in stated[key][:10], key
    assert float(stated["frame_rate"]) > 0 and 150_000 <= int(stated["parameters"]) <= 250_000
    assert {"nss", "cc"} <= set(json.loads(stated["metrics"])[mode])
    sidecar = strict_json(release_model(mode).with_suffix(".json"))
    assert sidecar["license"] == stated["license"] and sidecar["metrics"]["nss"] > 0
    assert [[c["part"], c["license"]] for c in sidecar["license_chain"]] == json.loads(stated["license_chain"])


def test_the_cards_licence_chain_names_every_source():
    terms = CARD.split("## Licence chain\n")[1].split("\n## ")[0].replace("\\", "")
    chain = json.loads(properties("step")["license_chain"])
    assert all(f"| {part} | {licence} |" in terms for part, licence in chain)
    parts = " ".join(part for part, _ in chain)
    teachers = {entry.name: entry for entry in CATALOGUE if re.search(rf"teacher {entry.name}\b.*, weights", parts)}
    for entry in teachers.values():  # of published weights: what they were trained on
        assert all(f"teacher {entry.name}, trained on {name}" in parts for name, _ in entry.trained_on)


def test_every_file_of_the_corpus_has_its_author_and_licence():
    with (FOLDER / f"{NAME}.attribution.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert lines and all(all(line.values()) for line in lines)
    credit = CARD.split("## Attribution\n")[1]
    for line in lines:
        assert f"| {line['file'].rpartition('/')[0]} | {line['licence']} |" in credit


def test_the_card_shows_known_failures_and_its_pictures_are_there():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", CARD.split("## Known failures\n")[1].split("\n## ")[0])
    assert pictures and all((FOLDER / picture).is_file() for picture in pictures)


def test_the_files_state_the_fingerprint_of_the_recipe_beside_them():
    content = (FOLDER / f"{NAME}.toml").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert all(properties(mode)["recipe_sha256"] == digest for mode in ("image", "step")) and digest in CARD
    assert all(strict_json(release_model(mode).with_suffix(".json"))["recipe_sha256"] == digest for mode in ("image", "step"))


def test_the_recipe_of_the_release_is_the_one_in_the_repository():
    assert portable(with_published(load_recipe(RECIPE))) == portable(load_recipe(FOLDER / f"{NAME}.toml"))


def test_nothing_that_ships_names_a_folder_of_the_machine():
    texts = [path for path in FOLDER.glob(f"{NAME}*") if path.suffix in (".json", ".md", ".toml", ".csv")]
    for path in texts:
        assert not re.search(r"(?<![\w/])/(home|root|work|tmp|Users)/", path.read_text(encoding="utf-8")), path
    assert len(texts) >= 6 and Path(release_model()).is_absolute()
