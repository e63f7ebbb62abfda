"""What ships beside the ONNX files, held to the downstream's own rules: its schema, its loader's parser, its three callers.

The rules are written down here a second time, from what the downstream was measured to do, and share no code with ours.
"""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from distill.corpora.attribution import Attribution
from distill.export.student import export_student
from distill.opallowlist.foreign import printable
from distill.recipe.files import from_dict, load_recipe
from distill.recipe.keys import Recipe, Run
from distill.reporting.package import write_package
from distill.reporting.sidecar import UNSIGNED, Int8, identifier, registry_entry, write_registry, write_sidecar
from distill.run.errors import UsageError
from distill.run.files import write_bytes
from tests.downstream import (
    ENTRY,
    c_extractor,
    c_opens,
    c_reads,
    fits_schema,
    registry_test,
    scorer,
    sha,
    strict_json,
    tuner,
    validate,
)  # fmt: skip
from tests.helpers import ORIGIN, lively, made_up_scores

# --- a package --------------------------------------------------------------------------------------------------------

METRICS = {
    "protocol": "clip-mean", "about": "means", "frames_scored": 5, "frames_without_fixations": 0, "clips": {"003": {"frames_scored": 5}},
    "predictors": {"step": {"nss": 1.25, "kld": 1.0}, "image": {"nss": 1.0, "kld": 1.5}}, "differences": None,
    "intervals": {"step": {}, "image": {}},
}  # fmt: skip


@pytest.fixture(scope="module")
def verified():
    return export_student(lively(), 25.0, {}, sizes=((40, 60),), length=3)


@pytest.fixture
def package(verified, tmp_path):
    """Writes a package, with changes to where it comes from and with what scores; returns its folder."""

    def write(metrics=METRICS, caveats=(), notes=None, **changes):
        origin = replace(ORIGIN, **changes)
        for name, content in verified.files(origin.name).items():
            write_bytes(tmp_path / name, content)
        write_package(tmp_path, origin, asdict(verified.parity), metrics, list(caveats), notes)
        return tmp_path

    return write


def card(folder, name="mini"):
    return (folder / f"{name}.md").read_text(encoding="utf-8")


def section(page, head):
    return page.split(f"## {head}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("metrics", [METRICS, None, {"predictors": {}, "clips": {}, "caveats": []}])
def test_a_package_is_what_the_downstream_accepts(package, metrics):
    folder = package(metrics)
    entries = validate(folder / "mini.registry.json")
    assert set(entries) == {"mini", "mini_step"}
    for name in entries:
        sidecar = folder / f"{name}.json"
        assert c_reads(sidecar, "name") == f"vmaf_tiny_{name}" and c_opens(folder / f"{name}.onnx").stem == name
        assert c_reads(sidecar, "input_name") == "input" and c_reads(sidecar, "output_name") == "saliency_map"


def test_the_validator_refuses_what_the_schema_refuses(package):
    folder = package()
    registry = folder / "mini.registry.json"
    for change in (
        {"state_input": "x"}, {"id": "Mini"}, {"onnx": "Mini.onnx"}, {"kind": "saliency"}, {"opset": 22}, {"notes": "x" * 513},
        {"license": "x" * 129}, {"quant_mode": "static"}, {"int8_sha256": "0" * 64}, {"sha256": "0" * 64},
        {"sigstore_bundle": "mini.bundle"}, {"sigstore_bundle": None}, {"license": None},
    ):  # fmt: skip
        content = strict_json(registry)
        entry = content["models"][0] | change
        content["models"][0] = {key: value for key, value in entry.items() if value is not None}
        registry.write_text(json.dumps(content))
        with pytest.raises(AssertionError):
            validate(registry)
        package()


def test_entries_name_a_signature_as_the_downstreams_do_and_say_that_there_is_none(package):
    for name, entry in validate(package(teacher="x" * 600) / "mini.registry.json").items():
        assert entry["sigstore_bundle"] == f"{name}.onnx.sigstore.json"
        assert entry["notes"].startswith("Distilled from xxx") and entry["notes"].endswith("… " + UNSIGNED)


def test_merged_into_the_downstreams_registry_they_pass_its_test(package, shared):
    merged = strict_json(shared / "cases" / "gate" / "15_registry_merged_without_sigstore_bundle.json")
    with pytest.raises(AssertionError, match="student: missing sigstore_bundle"):
        registry_test(merged)
    merged["models"] = [entry for entry in merged["models"] if "sigstore_bundle" in entry]
    assert len(merged["models"]) == 22
    merged["models"] += strict_json(package() / "mini.registry.json")["models"]
    registry_test(merged)
    for entry in merged["models"]:
        fits_schema(entry)
        assert entry["sigstore_bundle"] == f"{entry['onnx']}.sigstore.json"


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,47}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=700)


@given(name=NAMES, license_=TEXTS, about=TEXTS, notes=TEXTS, part=TEXTS, int8=st.booleans())
@settings(deadline=None)
def test_any_text_about_a_model_gives_an_accepted_entry(tmp_path_factory, name, license_, about, notes, part, int8):
    folder = tmp_path_factory.mktemp("p")
    model, sibling = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
    for path in (model, sibling) if int8 else (model,):
        onnx.save(onnx.helper.make_model(GRAPH, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    write_sidecar(
        model, about, license_, [(part, license_)], {"more": {"kind": about, "name": notes, "quant_mode": part}},
        "static" if int8 else "fp32",
    )  # fmt: skip
    entry = registry_entry(model, license_, about, notes, Int8(sha(sibling), part) if int8 else None)
    assert validate(write_registry(folder / "registry.json", [entry]))[name]["id"] == name
    assert c_reads(model.with_suffix(".json"), "name") == f"vmaf_tiny_{name}"
    assert c_opens(model) == (sibling if int8 else model)


GRAPH = onnx.parser.parse_graph("g (float[1,3,H,W] input) => (float[1,3,H,W] saliency_map) { saliency_map = Relu (input) }")


@given(NAMES)
@settings(deadline=None)
def test_every_valid_run_name_is_a_valid_id(name):
    assert load_recipe(None, [f'run.name="{name}"']).run.name == name
    for entry_id in (name, f"{name}_step", f"{name}_luma_4096x4096"):
        assert ENTRY["id"](entry_id) and ENTRY["onnx"](f"{entry_id}.onnx")
        assert identifier(entry_id) == entry_id


@given(st.text(max_size=70))
@settings(deadline=None)
def test_other_run_names_are_refused(name):
    try:
        taken = from_dict(asdict(Recipe()) | {"run": {**vars(Run()), "name": name}}).run.name
    except UsageError as error:
        assert "run.name may hold" in str(error)
    else:
        assert ENTRY["id"](f"{taken}_step") and taken == name


@given(st.text(max_size=80))
@settings(deadline=None)
def test_a_files_name_is_mapped_to_an_id_or_refused(stem):
    try:
        assert ENTRY["id"](identifier(stem))
    except ValueError as error:
        assert "give the file" in str(error)


def test_a_long_list_of_clips_does_not_break_the_sidecar(package):
    ids = tuple(f"images-of-a-large-corpus.{i:08d}" for i in range(60_000))
    folder = package(train_clips=ids, val_clips=ids[:3])
    validate(folder / "mini.registry.json")
    training = strict_json(folder / "mini.json")["training"]
    assert training["clip_count"] == 60_000 and training["clips"] is None


# --- its three callers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(16, 16), (97, 131), (270, 480), (436, 1024)])
def test_the_image_file_is_what_extractor_tuner_and_scorer_load(package, height, width):
    model = package() / "mini.onnx"
    x = np.random.default_rng(0).standard_normal((1, 3, height, width), np.float32)
    maps = [np.squeeze(caller(model, x)) for caller in (c_extractor, tuner, scorer)]
    assert maps[0].shape == (height, width) and 0 <= maps[0].min() < maps[0].max() <= 1
    assert all(np.array_equal(maps[0], other) for other in maps[1:])


def test_the_step_file_is_for_tuner_and_scorer_and_not_for_the_extractor(package):
    folder = package()
    x = np.random.default_rng(0).standard_normal((1, 3, 90, 160), np.float32)
    assert np.array_equal(tuner(folder / "mini_step.onnx", x), tuner(folder / "mini.onnx", x))
    assert np.array_equal(scorer(folder / "mini_step.onnx", x), scorer(folder / "mini.onnx", x))
    with pytest.raises(AssertionError):
        c_extractor(folder / "mini_step.onnx", x)


def test_the_image_file_declares_its_input_and_output_as_bound(package):
    model = onnx.load(package() / "mini.onnx")
    [given_], [made] = model.graph.input, model.graph.output
    assert (given_.name, made.name) == ("input", "saliency_map")
    for value, channels in ((given_, 3), (made, 1)):
        dims = value.type.tensor_type.shape.dim
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and [d.dim_value for d in dims[:2]] == [1, channels]
        assert all(d.dim_param and not d.HasField("dim_value") for d in dims[2:]) and dims[2].dim_param != dims[3].dim_param
    assert model.ir_version == 8 and [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert not model.functions and not any(t.external_data for t in model.graph.initializer)


# --- the model card ---------------------------------------------------------------------------------------------------

POINTS = ["Purpose", "Data", "Metrics", "Limits", "Licence chain"]


@pytest.mark.parametrize("metrics", [METRICS, None])
def test_the_card_has_its_five_points_and_none_is_empty(package, metrics):
    page = card(package(metrics))
    assert re.findall(r"^## (.*)$", page, re.M) == POINTS and all(section(page, head).strip() for head in POINTS)
    assert not re.search(r"\{[a-z_]*\}|None|\bnan\b", re.sub(r"(?s)```.*?```", "", page))


def test_the_card_states_what_is_unknown(package):
    page = card(package(None, val_clips=(), chosen=False, held_out=True))
    assert "Not evaluated" in section(page, "Metrics") and "NSS" not in section(page, "Metrics")
    assert "step 12, the last." in page and "Validation clips: none." in page
    assert "flatters" not in page and "Scored on" not in page


def test_the_card_explains_the_scores(package):
    page = card(package(caveats=["the teacher had random weights (visage): the student has learned nothing"]))
    assert "| step | **1.250** | **1.000** |" in page and "but for KL" in page
    limits = section(page, "Limits")
    assert "- **Caution:** the teacher had random weights (visage): the student has learned nothing." in limits
    assert "Scored on 1 clip: too few" in limits and "chosen on the clips that are scored" in limits


def test_the_card_names_parts_without_a_permissive_licence(package):
    terms = section(card(package()), "Licence chain")
    assert "Not every part has a licence that is known to allow everyone any use: corpus images:B.**" in terms
    assert "| corpus dhf1k:A | CC BY 4.0 |" in terms and "| corpus images:B | not stated |" in terms
    terms = section(card(package(restricted=())), "Licence chain")
    assert "Not every part" not in terms
    terms = section(card(package(license="not stated; corpus: x; teacher: y")), "Licence chain")
    assert "No licence has been stated" in terms


def test_a_mixture_names_the_licence_of_each_part(tmp_path):
    from distill.corpora import Corpus
    from distill.reporting.provenance import corpus_chain, stated_license

    for name, license_ in (("ours", "BSD-2-Clause-Patent (procedural)"), ("theirs", "CC BY-NC 4.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "LICENSE").write_text(f"{license_}\nmore", encoding="utf-8")
    roots = [str(tmp_path / "ours"), str(tmp_path / "theirs")]
    recipe = load_recipe(None, ["corpus.name=dhf1k:1,images:0.5", f"corpus.root={json.dumps(roots)}"])
    corpus = Corpus(
        recipe.corpus.name, "BSD-2-Clause-Patent (procedural); CC BY-NC 4.0", (),
        roots=dict(zip(("dhf1k", "images"), roots, strict=True)),
    )  # fmt: skip
    chain = corpus_chain(recipe, corpus, {})
    assert chain == (("dhf1k:ours", "BSD-2-Clause-Patent (procedural)"), ("images:theirs", "CC BY-NC 4.0"))
    teacher = {"license": "BSD-2-Clause-Patent"}
    assert stated_license(recipe, chain, teacher).startswith("not stated; corpus: BSD-2-Clause-Patent (procedural); CC BY-NC")
    assert stated_license(recipe, chain[:1], teacher) == "BSD-2-Clause-Patent"
    assert stated_license(recipe, chain[:1], {"license": "none stated"}).endswith("teacher: none stated")
    stated = load_recipe(None, ["export.license=MIT"])
    assert stated_license(stated, chain, teacher) == "MIT"


def test_unusual_text_breaks_neither_table_nor_front_matter(package):
    page = card(package(license='a "b" | c\nd: [e', teacher="x | y\n## z", corpus="a|b"))
    assert re.findall(r"^## (.*)$", page, re.M) == POINTS
    assert json.loads(re.search(r"^license: (.*)$", page, re.M)[1]) == 'a "b" | c\nd: [e'
    assert r'| these weights | a "b" \| c d: \[e |' in page


@pytest.mark.parametrize(
    "text", ["<script>x</script>", "[x](javascript:y)", "![x](y)", "*x*", "_x_", "`x`", "&lt;", "~~x~~", "a\x1b[31m"]
)
def test_text_from_files_and_names_is_not_markup_in_the_card(package, text):
    folder = package(
        corpus=text, teacher=text, license=text, val_clips=(text,), corpus_chain=((text, text),), restricted=(text,)
    )
    body = card(folder).split("---", 2)[2]
    assert "\x1b" not in body
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    assert not {t.type for t in [*tokens, *inline]} & {"html_inline", "html_block", "link_open", "image", "em_open", "s_open"}
    assert all(re.fullmatch(r"[\w .+-]+", t.content) and t.content != "x" for t in inline if t.type == "code_inline")
    shown = ["".join(c.content for c in t.children) for t in tokens if t.type == "inline"]
    assert sum(printable(text) in line for line in shown) == 8


def test_the_card_credits_authors_in_brief_and_the_table_in_full(package):
    lines = [Attribution(f"photos/a/{n}.jpg", f"page {n}", f"author {n}", "CC BY 2.0") for n in range(5)]
    lines.append(Attribution("clips/x.mp4", "a | page", "Jane Doe", "CC0"))
    folder = package(attribution=tuple(lines))
    credit = section(card(folder), "Attribution")
    assert "| photos/a | CC BY 2.0 | 5 | 5 in the table | 5 in the table |" in credit
    assert r"| clips | CC0 | 1 | Jane Doe | a \| page |" in credit
    rows = (folder / "mini.attribution.csv").read_text(encoding="utf-8").splitlines()
    assert rows[:2] == ["file,source,author,licence", "photos/a/0.jpg,page 0,author 0,CC BY 2.0"] and len(rows) == 7


def test_the_card_includes_the_notes_with_their_pictures(package, tmp_path):
    (tmp_path / "n" / "images").mkdir(parents=True)
    (tmp_path / "n" / "images" / "walk.jpg").write_bytes(b"picture")
    (tmp_path / "n" / "notes.md").write_text(
        "## Known failures\n\nPeople: ![a walk](images/walk.jpg), ![x](https://x.org/y.jpg)\n", encoding="utf-8"
    )
    folder = package(notes=tmp_path / "n" / "notes.md")
    page = card(folder)
    assert re.findall(r"^## (.*)$", page, re.M) == [*POINTS[:4], "Known failures", POINTS[4]]
    assert "People: ![a walk](mini.walk.jpg), ![x](https://x.org/y.jpg)\n\n## Licence chain" in page
    assert (folder / "mini.walk.jpg").read_bytes() == b"picture"
    with pytest.raises(UsageError, match=r"export\.notes .*No such file.*gone\.jpg"):
        (tmp_path / "n" / "notes.md").write_text("![](gone.jpg)", encoding="utf-8")
        package(notes=tmp_path / "n" / "notes.md")


def test_the_recipe_ships_and_its_fingerprint_is_stated(package):
    folder = package()
    digest = sha(folder / "mini.toml")
    assert (folder / "mini.toml").read_text(encoding="utf-8") == ORIGIN.recipe and digest in section(card(folder), "Data")
    for name in ("mini", "mini_step"):
        stated = {prop.key: prop.value for prop in onnx.load(folder / f"{name}.onnx").metadata_props}
        assert stated["recipe_sha256"] == strict_json(folder / f"{name}.json")["recipe_sha256"] == digest


def test_the_card_shows_intervals_and_the_gain_of_the_state(package):
    metrics = section(card(package({**made_up_scores(step=0.05, image=0.0), "frames_without_fixations": 0})), "Metrics")
    assert "| predictor | NSS | CC |\n| --- | --- | --- |\n| step | **" in metrics
    assert re.search(r"^\| step \| \*\*[\d.]+\*\* \[[\d.]+, [\d.]+\] \| \*\*0\.250\*\* \|$", metrics, re.M)
    assert "\n\n- NSS of the step file minus image, on the same clips: +0.050 [+0.050, +0.050]\n" in metrics


def test_the_card_has_the_verdict(package):
    scores = {**made_up_scores(**{"step": 0.1, "image": 0.2, "centred Gaussian": 0.0}), "frames_without_fixations": 0}
    metrics = section(card(package(scores)), "Metrics")
    assert "Beats the centred Gaussian; is worse than its own image file. This is said of `mini_step.onnx`" in metrics
    assert "This is said of" not in card(package())  # nothing to compare with


def test_the_cards_python_example_runs(package, monkeypatch):
    folder = package()
    monkeypatch.chdir(folder)
    code = re.search(r"```python\n(.*?)```", card(folder), re.S)[1]
    names = {"frames": list(np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), np.uint8))}
    exec(code, names)
    from distill.export.runner import Predictor

    *_, last = Predictor(folder / "mini_step.onnx").stream(names["frames"])
    assert np.allclose(names["saliency"][0, 0], last, atol=1e-5)


def test_checksums_in_the_card_are_of_the_files(package):
    folder = package()
    assert all(sha(folder / name) in card(folder) for name in ("mini.onnx", "mini_step.onnx"))
