"""The shelf: what a recipe names, whom it lets use it, what it builds, and where labels say they come from."""

import dataclasses
import functools
import json
import re

import numpy as np
import onnx
import pytest
import torch

from distill.export.graph import image_graph, step_graph
from distill.export.runner import Predictor
from distill.labels import shelf
from distill.labels.ensemble import BOUND, Ensemble
from distill.labels.onnx_teacher import OnnxTeacher
from distill.recipe.files import load_recipe
from distill.recipe.keys import Teacher
from distill.run.errors import UsageError
from distill.students import TinyUNetConfig
from distill.students.tiny_unet import TinyUNet
from distill.teachers import PLAIN
from distill.teachers.unisal import Unisal, UnisalNet


def teacher(**keys):
    return Teacher(**keys)


def names(options):
    return [(m.name, m.entry.size, m.weight, {k: v for k, v in m.files.items() if v}) for m in shelf.members(options)]


# --- what a recipe names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, [("visage", "tiny", 1.0, {})]),
        ({"name": "unisal", "weights": ("u.pth",)}, [("unisal", "", 1.0, {"": "u.pth"})]),
        (
            {"name": "unisal:2+tased:0.5", "weights": ("tased=t.pt", "unisal=random")},
            [("unisal", "", 2.0, {"": "random"}), ("tased", "", 0.5, {"": "t.pt"})],
        ),
        (
            {"name": "visage", "size": ("6B",), "weights": ("visage.base=b", "visage.expert1=1", "visage.expert2=2")},
            [("visage", "6B", 1.0, {"base": "b", "expert1": "1", "expert2": "2"})],
        ),
        (
            {"name": "visage", "size": ("S",), "weights": ("random",)},
            [("visage", "S", 1.0, {"base": "random", "expert1": "random", "expert2": "random"})],
        ),
        (
            {"name": "visage+unisal", "size": ("visage=B",), "weights": ("visage=random", "unisal=u")},
            [
                ("visage", "B", 1.0, {"base": "random", "expert1": "random", "expert2": "random"}),
                ("unisal", "", 1.0, {"": "u"}),
            ],
        ),
        (
            {"name": "onnx+onnx:3", "weights": ("onnx=a.onnx", "onnx=b.onnx")},
            [("onnx", "", 1.0, {"": "a.onnx"}), ("onnx", "", 3.0, {"": "b.onnx"})],
        ),
    ],
)
def test_a_recipe_names_teachers(keys, found):
    assert names(teacher(**keys)) == found


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "unisol"}, "unknown teacher 'unisol'; did you mean 'unisal'?"),
        ({"name": "unisal+"}, "unknown teacher ''"),
        ({"name": "unisal:x"}, "'x' is no weight; write NAME:NUMBER with a number above 0"),
        ({"name": "unisal:0"}, "'0' is no weight"),
        ({"name": "unisal:nan"}, "'nan' is no weight"),
        ({"name": "maps+unisal"}, "teacher maps looks labels up and joins no ensemble"),
        (
            {"name": "unisal+tased", "weights": ("u.pth",)},
            "whose is 'u.pth'? write NAME=u.pth, NAME being unisal or tased",
        ),
        ({"name": "unisal", "weights": ("tased=t",)}, "teacher.weights: nothing here is called 'tased'"),
        (
            {"name": "unisal", "weights": ("unisal=a", "unisal=b")},
            "teacher.weights names unisal=b, but teacher.name 'unisal'",
        ),
        ({"name": "visage", "size": ("7B",)}, "teacher visage has no size '7B'; sizes: tiny, S, B, L, 1B, 6B"),
        ({"name": "unisal", "size": ("L",)}, "teacher unisal has no size 'L'; leave it out"),
        ({"name": "maps", "weights": ("x",)}, "whose is 'x'?"),
    ],
)
def test_what_names_no_teacher_is_refused(keys, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        shelf.members(teacher(**keys))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["teacher.name=tased"],
            "teacher tased needs its weights: --set teacher.weights=tased=FILE; the authors' page is https:",
        ),
        (["teacher.size=6B"], "needs its weights: --set teacher.weights=visage.base=FILE,visage.expert1=FILE"),
        (["teacher.size=6B", "teach.finetune=true"], "--set teacher.weights=visage.base=FILE;"),
        (["teacher.name=unisal", "teacher.weights=nowhere.pth"], "nowhere.pth does not exist; name a weights file"),
        (["teacher.name=unisal", "teacher.weights=."], "is a folder; name a weights file"),
        (["teacher.calibration=c.json"], "c.json does not exist; `distill teach calibrate` writes one"),
        (["teach.finetune=true"], "teach.finetune is for unisal and for visage of a published size"),
        (["teacher.name=salfom", "teacher.weights=random"], "--accept-licence salfom"),
        (
            ["teacher.name=onnx", "teacher.weights=random"],
            "teacher onnx is its file, and there is none with random weights",
        ),
        (["teacher.accept_licence=salfon"], "--accept-licence salfon: this run's teacher is visage"),
    ],
)
def test_what_a_run_would_lack_is_said_before_it(sets, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        shelf.check(load_recipe(None, sets))


def test_weights_are_found_from_the_recipes_folder(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "r.toml").write_text(
        '[teacher]\nname = "unisal+tased"\nweights = ["unisal=w/u.pth", "tased=random"]\n', encoding="utf-8"
    )
    recipe = load_recipe(tmp_path / "r" / "r.toml")
    assert recipe.teacher.weights == (f"unisal={tmp_path}/r/w/u.pth", "tased=random")
    assert load_recipe(None, ["teacher.weights=random"]).teacher.weights == ("random",)
    assert shelf.file_names(recipe.teacher) == ["unisal=u.pth", "tased=random"]


def test_a_weights_file_that_changed_has_another_print(tmp_path):
    file = tmp_path / "u.pth"
    options = teacher(name="unisal", weights=(str(file),))
    prints = []
    for content in (b"a" * 10, b"a" * 9 + b"b", b"a" * 11):
        file.write_bytes(content)
        prints.append(*shelf.weights_prints(options).values())
    assert len(set(prints)) == 3


# --- licences ----------------------------------------------------------------------------------------------------------


def with_metadata(path, **properties):
    model = image_graph(TinyUNet(SMALL).eval(), {})
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)
    return str(path)


SMALL = TinyUNetConfig(height=32, width=64, widths=(8, 8, 12, 16), state_channels=8)


@pytest.mark.parametrize("free", ["Apache-2.0", "MIT", "BSD-2-Clause-Patent (procedural)", "CC BY 4.0"])
def test_licences_that_let_everybody(free):
    assert shelf.permissive(free)


@pytest.mark.parametrize(
    "unclear", ["", shelf.UNSTATED, "CC BY-NC 4.0", "MIT-like", "GPL-3.0-only", "Apache-2.0; not for sale"]
)
def test_licences_that_are_for_the_user_to_judge(unclear):
    assert not shelf.permissive(unclear)


def test_a_teacher_without_a_licence_wants_a_decision():
    options = teacher(name="unisal+salfom", weights=("unisal=random", "salfom=random"))
    with pytest.raises(UsageError, match=r"teacher salfom, code: none stated.*--accept-licence salfom"):
        shelf.may_use(options)
    shelf.may_use(dataclasses.replace(options, accept_licence=("salfom",)))
    shelf.may_use(teacher(name="unisal", weights=("random",)))
    shelf.may_use(teacher(name="maps", maps="x"))


def test_an_onnx_file_says_its_own_licence(tmp_path):
    def judged(path):
        shelf.may_use(teacher(name="onnx", weights=(path,)))

    silent = with_metadata(tmp_path / "silent.onnx")
    with pytest.raises(UsageError, match=r"teacher onnx: silent\.onnx: none stated.*--accept-licence onnx"):
        judged(silent)
    (tmp_path / "silent.json").write_text('{"license": "BSD-3-Clause-Plus-Patent"}', encoding="utf-8")
    judged(silent)  # the sidecar says it
    judged(with_metadata(tmp_path / "free.onnx", license="MIT"))
    made_of = json.dumps([["corpus dhf1k", "CC BY 4.0"], ["teacher salfom, weights", "none stated"]])
    with pytest.raises(UsageError, match=r"made\.onnx: teacher salfom, weights: none stated"):
        judged(with_metadata(tmp_path / "made.onnx", license="MIT", license_chain=made_of))
    clean = json.dumps([["corpus dhf1k", "CC BY 4.0"], ["teacher unisal, weights", "Apache-2.0"]])
    judged(with_metadata(tmp_path / "clean.onnx", license="not stated; corpus: CC BY 4.0", license_chain=clean))
    (tmp_path / "page.onnx").write_text("<html>", encoding="utf-8")
    with pytest.raises(UsageError, match=r"page\.onnx is no ONNX file"):
        judged(str(tmp_path / "page.onnx"))


def test_labels_say_what_their_teacher_is_made_of(tmp_path):
    student = with_metadata(tmp_path / "s.onnx", license="MIT", license_chain='[["corpus c", "CC BY 4.0"]]')
    recipe = load_recipe(None, ["teacher.name=unisal:2+onnx", f'teacher.weights=["unisal=random","onnx={student}"]'])
    opened = shelf.open_teacher(recipe, torch.device("cpu"), tmp_path)
    told = shelf.describe(recipe, opened)
    assert told["name"] == opened.name == "unisal:2+onnx" and told["fingerprint"] == opened.fingerprint()
    assert told["source"] == "2 x unisal, RANDOM WEIGHTS; 1 x onnx, s.onnx" and told["random"] == ["unisal"]
    assert told["chain"] == [
        ["teacher unisal, code", "Apache-2.0"],
        ["teacher unisal, weights", "BSD-2-Clause-Patent (random)"],
        ["teacher onnx: s.onnx", "MIT"],
        ["s.onnx: corpus c", "CC BY 4.0"],
    ]
    assert told["license"] == "Apache-2.0, BSD-2-Clause-Patent (random), CC BY 4.0"
    assert "RANDOM WEIGHTS (unisal)" in shelf.warning(told) and shelf.warning({"random": []}) == ""
    assert shelf.source(load_recipe()) == "visage tiny, trained in this run"


# --- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["visage tiny", "visage S", "unisal", "tased", "salfom B"])
def test_the_tables_figures_are_those_of_the_networks(name):
    """On the meta device, where nothing is computed and every multiply-accumulate is counted."""
    from torch.utils.flop_counter import FlopCounterMode

    from distill.teachers.salfom import SalfomNet
    from distill.teachers.tased import TasedNet
    from distill.teachers.umt import UmtConfig
    from distill.teachers.visage import VisageConfig, VisageNet

    entry = next(e for e in shelf.SHELF if f"{e.name} {e.size}".rstrip() == name)
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        if entry.name == "visage":
            shape = VisageConfig() if entry.size == "tiny" else VisageConfig.released(entry.size)
            net, frames = VisageNet(shape).eval(), shape.trunk.frames
            net(torch.empty(1, 3, frames, shape.trunk.px, shape.trunk.px))
            assert (entry.window, entry.rate) == (frames, shape.sample_fps)
        elif entry.name == "unisal":
            net, frames = UnisalNet().eval(), 1
            net(torch.empty(1, 1, 3, 224, 384), "DHF1K", static=False)
        elif entry.name == "tased":
            net, frames = TasedNet().eval(), 1
            net(torch.empty(1, 3, 32, 224, 384))
        else:
            net, frames = SalfomNet(UmtConfig.of(entry.size)).eval(), 1
            net(torch.empty(1, 3, 16, 224, 224))
    assert sum(p.numel() for p in net.parameters()) == entry.parameters
    assert counter.get_total_flops() / 2e9 / frames == pytest.approx(entry.gmac, rel=5e-3)


def test_every_teacher_has_a_page_or_needs_none():
    for entry in shelf.SHELF:
        nowhere = f"{entry.name} {entry.size}".rstrip() in ("visage tiny", "salfom B", "onnx", "maps")
        assert bool(entry.page) != nowhere, entry
        assert set(shelf.row(entry)) == {"teacher", "M params", "licence", "rate", "window", "GMAC/frame"}
        assert shelf.details(entry)["what it is"]
    assert set(shelf.BUILDERS) == set(shelf.NAMES) - {"maps"}


# --- an ensemble -------------------------------------------------------------------------------------------------------


class Constant:
    """A teacher of one map."""

    def __init__(self, name, map_hw, px):
        self.name, self.map_hw, self.px = name, torch.as_tensor(map_hw, dtype=torch.float32), px

    def prepare(self, frames):
        return torch.from_numpy(np.asarray(frames)[:, : self.px, : self.px])

    def infer(self, inputs, fps):
        assert inputs.shape[1:3] == (self.px, self.px) and fps == 24
        return self.map_hw.expand(len(inputs), -1, -1)

    def fingerprint(self):
        return self.name


FRAMES = np.zeros((3, 16, 16, 3), np.uint8)


def test_an_ensemble_is_the_weighted_mean_of_logits():
    a, b = Constant("a", [[2.0, -2.0]], 4), Constant("b", [[-1.0, 5.0]], 6)
    logits = Ensemble("a:3+b", [a, b], [3, 1]).logits(FRAMES, 24)
    assert logits.shape == (3, 1, 2) and torch.allclose(logits[1], torch.tensor([[1.25, -0.25]]))


def test_members_of_other_sizes_come_to_the_largest_grid():
    small, large = Constant("s", [[1.0]], 4), Constant("l", np.zeros((6, 8)), 6)
    for members in ([small, large], [large, small]):
        logits = Ensemble("e", members, [1, 1]).logits(FRAMES, 24)
        assert logits.shape == (3, 6, 8) and torch.allclose(logits, torch.full((3, 6, 8), 0.5))


def test_no_member_can_outvote_the_rest_alone():
    sure, mild = Constant("x", [[1e9]], 4), Constant("y", [[-BOUND]], 4)
    assert torch.allclose(Ensemble("e", [sure, mild], [1, 1]).logits(FRAMES, 24), torch.zeros(3, 1, 1), atol=1e-4)


def test_an_ensembles_fingerprint_is_of_members_and_ratios():
    a, b = Constant("a", [[0.0]], 4), Constant("b", [[0.0]], 4)
    prints = [
        Ensemble("e", m, w).fingerprint() for m, w in (([a, b], [1, 1]), ([a, b], [2, 1]), ([b, a], [1, 1]), ([a], [1]))
    ]
    assert len(set(prints)) == 4 and prints[0] == Ensemble("other", [a, b], [5, 5]).fingerprint()


# --- ONNX as a teacher -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """An image and a step file of one student with random weights."""
    folder = tmp_path_factory.mktemp("students")
    torch.manual_seed(0)
    student = TinyUNet(SMALL).eval()
    paths = {}
    for mode, graph in (("image", image_graph(student, {})), ("step", step_graph(student, 24.0, {}))):
        paths[mode] = folder / f"{mode}.onnx"
        onnx.save(graph, paths[mode])
    return paths


@pytest.mark.parametrize("mode", ["image", "step"])
def test_an_onnx_teacher_gives_what_the_file_gives(students, mode):
    frames = np.random.default_rng(0).integers(0, 256, (5, 48, 72, 3), np.uint8)
    opened = OnnxTeacher(students[mode])
    logits = opened.logits(frames, 24)
    wanted = np.stack(list(Predictor(students[mode]).stream(frames)))
    assert logits.shape == (5, 48, 72) and np.allclose(logits.sigmoid().numpy(), wanted, atol=1e-5)
    again = opened.infer(torch.cat([opened.prepare(frames[:2]), opened.prepare(frames[2:])]), 24)
    assert torch.equal(again, logits)  # a clip begins without a history, and may come in pieces


def test_an_onnx_teacher_brings_frames_to_a_size_that_students_take(students):
    opened = OnnxTeacher(students["image"])
    assert opened.prepare(np.zeros((2, 37, 53, 3), np.uint8)).shape == (2, 40, 56, 3)
    assert opened.prepare(np.zeros((1, 1080, 1920, 3), np.uint8)).shape == (1, 360, 640, 3)
    assert opened.infer(torch.zeros(1, 96, 320, 3, dtype=torch.uint8), 24).shape == (1, 48, 160)


def test_an_onnx_file_that_is_no_student_is_refused(tmp_path, students):
    with pytest.raises(ValueError, match=r"none\.onnx does not exist"):
        OnnxTeacher(tmp_path / "none.onnx")
    model = onnx.load(students["image"])
    last = next(node for node in model.graph.node if "saliency_map" in node.output)
    last.output[0] = "unscaled"
    model.graph.node.append(onnx.helper.make_node("Add", ["unscaled", "one"], ["saliency_map"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    onnx.save(model, tmp_path / "off.onnx")
    with pytest.raises(ValueError, match=r"for frame 1, where a saliency map is in \[0, 1\]"):
        OnnxTeacher(tmp_path / "off.onnx").logits(np.zeros((1, 32, 64, 3), np.uint8), 24)


# --- built -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["visage", "unisal", "tased"])
def test_random_weights_are_the_same_every_time(tmp_path, name):
    recipe = load_recipe(None, [f"teacher.name={name}", "teacher.weights=random"])
    state = torch.get_rng_state()
    prints = {shelf.open_teacher(recipe, torch.device("cpu"), tmp_path).fingerprint() for _ in range(2)}
    assert len(prints) == 1 and torch.equal(torch.get_rng_state(), state)


def test_a_file_of_the_authors_layout_opens(tmp_path):
    torch.save({"state_dict": UnisalNet().state_dict()}, tmp_path / "u.pth")
    recipe = load_recipe(
        None, ["teacher.name=unisal", f"teacher.weights={tmp_path / 'u.pth'}", "teacher.domain=SALICON"]
    )
    shelf.check(recipe)
    assert list(shelf.try_out(recipe, torch.device("cpu"), PLAIN)) == ["unisal, u.pth"]
    opened = shelf.open_teacher(recipe, torch.device("cpu"), tmp_path)
    assert isinstance(opened, Unisal) and opened.domain == "SALICON"


def test_a_published_size_opens_with_its_fusion(tmp_path):
    small = (
        "frames=4",
        "px=28",
        "out_px=16",
        "reduced_width=16",
        "embed_width=16",
        "head_width=8",
        "norm_groups=4",
        "rank=4",
    )
    sets = ["teacher.size=S", "teacher.weights=random", "teacher.fusion=max", *(f"teach.{s}" for s in small)]
    recipe = load_recipe(None, [*sets, "teacher.expert_weights=[1,3]"])
    shelf.check(recipe)
    opened = shelf.open_teacher(recipe, torch.device("cpu"), tmp_path)
    assert opened.config.fusion == "max" and opened.config.weights == (1, 3)
    assert opened.logits(np.zeros((5, 32, 32, 3), np.uint8), 24).shape == (5, 16, 16)
    with pytest.raises(UsageError, match="expert"):
        shelf.open_teacher(load_recipe(None, [*sets, "teacher.expert_weights=[1,2,3]"]), torch.device("cpu"), tmp_path)


def test_a_teachers_own_settings_are_checked(tmp_path):
    recipe = load_recipe(None, ["teacher.name=unisal", "teacher.weights=random", "teacher.domain=DHF1"])
    with pytest.raises(UsageError, match="its domains are DHF1K, Hollywood"):
        shelf.open_teacher(recipe, torch.device("cpu"), tmp_path)


# --- labelling with each, through the command line ---------------------------------------------------------------------

TWO_CLIPS = [
    "synthetic.clips=2", "synthetic.frames=4", "synthetic.height=64", "synthetic.width=96", "synthetic.observers=6",
    "student.height=32", "student.width=64", "student.widths=[8,8,12,16]", "student.state_channels=8",
    "teacher.every=4",
]  # fmt: skip


def distill(*arguments, capsys):
    """The command line in this process: exit code, and what it said on standard error."""
    import signal

    from distill.cli import app as cli

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = cli.app([str(a) for a in arguments], standalone_mode=False) or 0
    except Exception as error:
        code = cli._report_error(error, debug=False)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code, capsys.readouterr().err


def label_with(out, *sets, capsys):
    return distill("label", "--out", out, *(f"--set={s}" for s in (*TWO_CLIPS, *sets)), capsys=capsys)


def smaller_windows(monkeypatch):
    """TASED-Net on small frames and SalFoM on a small encoder: at full size a window of theirs takes seconds."""
    from distill.teachers import tased, umt

    small = umt.UmtConfig(width=32, depth=2, heads=2, px=48)
    monkeypatch.setattr(tased, "TasedConfig", functools.partial(tased.TasedConfig, height=64, width=96))
    monkeypatch.setattr(umt.UmtConfig, "of", lambda size: small)


@pytest.mark.parametrize(
    "sets",
    [
        ("teacher.name=unisal", "teacher.weights=random"),
        ("teacher.name=tased", "teacher.weights=random"),
        ("teacher.name=salfom", "teacher.weights=random", "teacher.accept_licence=salfom"),
        ("teacher.name=onnx", "teacher.weights={step}", "teacher.accept_licence=onnx"),
        (
            "teacher.name=unisal:2+onnx+onnx",
            'teacher.weights=["onnx={step}","unisal=random","onnx={image}"]',
            "teacher.accept_licence=onnx",
        ),
    ],
    ids=lambda sets: sets[0].partition("=")[2],
)
def test_each_labels_a_corpus_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch, students, sets):
    smaller_windows(monkeypatch)
    sets = [s.replace("{step}", str(students["step"])).replace("{image}", str(students["image"])) for s in sets]
    code, said = label_with(tmp_path / "run", *sets, capsys=capsys)
    assert code == 0, said
    files = sorted((tmp_path / "run" / "labels").glob("*.npy"))
    before = [file.read_bytes() for file in files]
    logits = np.load(files[0])
    assert len(files) == 2 and logits.shape[0] == 4 and logits.astype(np.float32).std() > 0
    told = json.loads((tmp_path / "run" / "labels" / "store.json").read_text())["teacher"]
    random = [name for name in ("unisal", "tased", "salfom") if name in told["name"]]
    assert told["random"] == random and ("RANDOM WEIGHTS" in said) == ("RANDOM WEIGHTS" in told["source"]) == bool(
        random
    )
    files[1].unlink()
    code, said = label_with(tmp_path / "run", *sets, capsys=capsys)
    assert code == 0 and "1 of 2 clips are in the store" in said, said
    assert [file.read_bytes() for file in files] == before


def test_a_student_of_random_weights_says_so_where_it_ships(tmp_path, capsys):
    more = (
        "train.steps=2", "train.batch=1", "train.window=2", "train.windows=1", "train.validate_every=2", "report.clips=0",
    )  # fmt: skip
    sets = (*TWO_CLIPS, *more, "teacher.name=visage+onnx", "export.license=MIT")
    chain = '[["corpus far", "CC BY 4.0"]]'
    assistant = with_metadata(tmp_path / "ta.onnx", license="MIT", license_chain=chain)
    weights = f'teacher.weights=["visage=random","onnx={assistant}"]'
    code, said = distill("export", "--out", tmp_path / "r", *(f"--set={s}" for s in (*sets, weights)), capsys=capsys)
    assert code == 0, said
    card = (tmp_path / "r" / "export" / "student.md").read_text()
    assert "the teacher had random weights (visage)" in card
    assert "| these weights | MIT |" in card and "| teacher visage tiny | BSD-2-Clause-Patent |" in card
    assert "| ta.onnx: corpus far | CC BY 4.0 |" in card and str(tmp_path) not in card
    props = {p.key: p.value for p in onnx.load(tmp_path / "r" / "export" / "student_step.onnx").metadata_props}
    sidecar = json.loads((tmp_path / "r" / "export" / "student.json").read_text())
    parts = [part for part, _ in json.loads(props["license_chain"])]
    assert parts == [entry["part"] for entry in sidecar["license_chain"]] == [
        "corpus synthetic", "teacher visage tiny", "teacher onnx: ta.onnx", "ta.onnx: corpus far",
    ]  # fmt: skip
    shelf.may_use(
        teacher(name="onnx", weights=(str(tmp_path / "r" / "export" / "student.onnx"),))
    )  # a link of the next chain


def test_labels_are_taken_over_and_calibrated(tmp_path, capsys, students):
    sets = ("teacher.name=onnx", f"teacher.weights={students['step']}", "teacher.accept_licence=onnx")
    assert label_with(tmp_path / "a", *sets, capsys=capsys)[0] == 0
    code, said = distill("teach", "calibrate", tmp_path / "a", "-o", tmp_path / "c.json", capsys=capsys)
    assert code == 0 and json.loads((tmp_path / "c.json").read_text())["teacher"]["name"] == "onnx", said
    values = json.loads((tmp_path / "c.json").read_text())
    values["calibration"] = {"temperature": 2.0, "bias": 1.0, "blur": 0.0}
    (tmp_path / "c.json").write_text(json.dumps(values))
    again = (
        "teacher.name=maps",
        f"teacher.maps={tmp_path / 'a' / 'labels'}",
        f"teacher.calibration={tmp_path / 'c.json'}",
    )
    assert label_with(tmp_path / "b", *again, capsys=capsys)[0] == 0
    a, b = (np.load(tmp_path / run / "labels" / "001.npy").astype(np.float32) for run in "ab")
    assert np.allclose(b, np.clip(a, -BOUND, BOUND) / 2 + 1, atol=1e-2)
    told = [json.loads((tmp_path / run / "labels" / "store.json").read_text())["teacher"] for run in "ab"]
    assert told[1]["calibration"]["bias"] == 1 and told[0]["fingerprint"] != told[1]["fingerprint"]
    assert told[1]["chain"] == told[0]["chain"] and told[1]["source"] == "onnx, step.onnx; labels of another run"
    _, said = distill("teach", "calibrate", tmp_path / "b", "-o", tmp_path / "d.json", capsys=capsys)
    assert "are calibrated already" in said
    other = ("teacher.name=unisal", "teacher.weights=random", again[2])
    code, said = label_with(tmp_path / "x", *other, capsys=capsys)
    assert code == 2 and "was fitted to teacher onnx" in said and not (tmp_path / "x" / "corpus.json").exists()


def broken(path, kind):
    if kind == "page":
        path.write_text("<!DOCTYPE html><html><body>404</body></html>", encoding="utf-8")
        return
    state = UnisalNet().state_dict()
    if kind == "missing":
        del state["post_rnn.0.weight"]
    if kind == "width":
        state["post_rnn.0.weight"] = torch.zeros(255, 256, 1, 1)
    torch.save(state, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("page", "is a web page, not weights"),
        ("truncated", "truncated"),
        ("missing", "missing 1, first 'post_rnn.0.weight' of shape [256, 256, 1, 1]"),
        ("width", "'post_rnn.0.weight': [255, 256, 1, 1], expected [256, 256, 1, 1]"),
    ],
)
def test_bad_weights_stop_before_anything_long(tmp_path, capsys, kind, message):
    broken(tmp_path / "w.pth", kind)
    sets = ("teacher.name=unisal", f"teacher.weights={tmp_path / 'w.pth'}")
    code, said = label_with(tmp_path / "run", *sets, capsys=capsys)
    last = said.strip().splitlines()[-1]
    assert code == 2 and last.startswith("distill: ") and message in last and "w.pth" in last
    assert not (tmp_path / "run" / "corpus.json").exists()
