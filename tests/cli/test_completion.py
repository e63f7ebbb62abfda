"""Shell completion, as the shells ask for it; and its words, which are stated apart from what they name to stay quick."""

import subprocess
import sys

import pytest
import typer.main

from distill.cli import completion
from distill.cli.app import app
from distill.cli.exits import run_command
from distill.corpora import CORPORA
from distill.encoding.bd.compare import CONTROLS
from distill.encoding.bd.measures import MEASURES
from distill.encoding.encoders import CODECS, PRESETS, PROFILES, TUNES
from distill.encoding.qp_offsets import BLOCKS, MAPPINGS, NEUTRAL
from distill.encoding.roi_files import FORMATS
from distill.evaluation.protocols import PROTOCOLS
from distill.export import variants, yuv
from distill.labels.convert import KINDS
from distill.recipe import keys
from distill.students import pooling


@pytest.fixture
def offered(monkeypatch, capsys):
    """A function: what a shell offers after a line, of which the last word is not yet complete."""

    def ask(line, shell="bash"):
        monkeypatch.setattr("sys.argv", ["distill"])
        monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # as of a console script
        asked = {"_DISTILL_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        asked |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        for name, value in asked.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            run_command([])
        return capsys.readouterr().out.strip().splitlines()

    return ask


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("distill pr", ["predict"]),
        ("distill run --teacher unisal+ta", ["unisal+tased"]),
        ("distill run --corpus dhf1k,im", ["dhf1k,images"]),
        ("distill run --set train.st", ["train.steps=", "train.start=", "train.start_lr="]),
        ("distill run --set train.start=t", ["train.start=teacher"]),
        ("distill run --set label.comp", ["label.compile="]),
        ("distill label --set label.compile=", ["label.compile=true", "label.compile=false"]),
        ("distill init --from rel", ["release"]),
        ("distill teach c", ["convert", "calibrate"]),
        ("distill teach --te", ["--teacher"]),
        ("distill teachers ta", ["tased"]),
        ("distill teachers fetch ", ["unisal"]),
        ("distill encode in.mp4 out.mp4 --preset very", ["veryfast", "veryslow"]),
        ("distill bd --measures psnr,x", ["psnr,xpsnr"]),
        ("distill eval --protocol a", ["aim2024"]),
        ("distill variant --input y", ["yuv420"]),
        ("distill run ", []),  # then a shell offers files
    ],
)
def test_what_bash_offers(offered, line, words):
    assert offered(line) == words


def test_fish_and_zsh_show_help_on_one_line_each(offered):
    lines = offered("distill run --set train.", "fish")
    assert len(lines) == len(keys.Train.__dataclass_fields__) and all("\t" in line and len(line) < 100 for line in lines)
    assert "train.steps=\t400; optimiser steps" in lines
    assert '"train.steps=":"400; optimiser steps"' in offered("distill run --set train.steps", "zsh")[0]


def test_it_imports_nothing_slow():
    code = (
        "import sys\nfrom distill.cli.app import app\nfrom distill.cli import completion\n"
        "[complete('') for complete in completion.BY_OPTION.values()], completion.recipe('')\n"
        "heavy = {'torch', 'onnxruntime', 'cv2', 'matplotlib', 'onnx', 'av', 'scipy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("--corpus", CORPORA), ("--protocol", PROTOCOLS), ("--kind", KINDS), ("--codec", CODECS), ("--preset", PRESETS),
        ("--tune", {tune: None for tunes in TUNES.values() for tune in tunes}), ("--mapping", MAPPINGS), ("--block", BLOCKS),
        ("--neutral", NEUTRAL), ("--format", FORMATS), ("--measures", MEASURES), ("--rate-control", CONTROLS),
        ("--input", variants.INPUTS), ("--output", variants.OUTPUTS), ("--matrix", yuv.MATRICES), ("--range", yuv.RANGES),
        ("--depth", yuv.DEPTHS),
    ],
)  # fmt: skip
def test_the_words_are_those_that_exist(option, known):
    assert {word for word, _ in completion.BY_OPTION[option]("")} == {str(word) for word in known}


def test_some_profiles_and_all_baselines():
    profiles = {profile for of_codec in PROFILES.values() for profile in of_codec}
    assert {word for word, _ in completion.BY_OPTION["--profile"]("")} <= profiles
    assert {word.removesuffix("=") for word, _ in completion.BY_OPTION["--baseline"]("")} == {*pooling.KINDS}


def test_every_option_with_words_exists():
    command = typer.main.get_command(app)
    verbs = [verb for group in (command, *command.commands.values()) for verb in getattr(group, "commands", {}).values()]
    options = {option for verb in verbs for parameter in verb.params for option in parameter.opts}
    assert set(completion.BY_OPTION) <= options
