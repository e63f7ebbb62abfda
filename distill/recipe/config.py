"""Recipes: typed, documented, self-validating defaults, read from TOML and overridden with `key=value`.

Order: the defaults below, then the recipe file, then `--set section.key=value`. An unknown key is an error that names the
nearest right one. The resolved recipe is written into the run directory and can be run as it is. Torch-free.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.run.errors import UsageError
from distill.students import TinyUNetConfig


def key(
    default: Any,
    about: str,
    *,
    low: float | None = None,
    high: float | None = None,
    among: tuple[str, ...] = (),
    path: bool = False,
) -> Any:
    """A recipe key: default, one line about it, inclusive bounds or the words that it may be; `path` resolves against the
    recipe's folder."""
    meta = {"about": about, "low": low, "high": high, "among": among, "path": path}
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=meta)
    return field(default=default, metadata=meta)


PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class Run:
    """How the run is carried out."""

    name: str = key(
        "student", "file name of the student: NAME.onnx, NAME_step.onnx; lower case letters, digits, - and _"
    )
    seed: int = key(0, "everything random follows from it", low=0)
    device: str = key("auto", "auto, cpu, cuda or cuda:N")
    threads: int = key(0, "CPU threads for torch; 0: all cores", low=0)

    def __post_init__(self) -> None:
        # The downstream's registry accepts no other file names, and ids of 64 characters.
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,47}", self.name):
            raise ValueError(
                "run.name may hold lower case letters, digits, '-' and '_', starts with a letter or digit, and has at most "
                f"48 characters; got {self.name!r}"
            )


@dataclass(frozen=True)
class Corpus:
    """Where the clips come from and how they are split."""

    name: str = key(
        "synthetic",
        "synthetic, dhf1k, hollywood2, ucf-sports, avimos, ntire2026, gaze-table, images, videos; or several with "
        "weights: dhf1k:1,images:0.5,videos:0.2",
    )
    root: str | tuple[str, ...] = key(
        "",
        "the corpus's folder, or a list with one per part; synthetic writes its own into the run directory",
        path=True,
    )
    split: str = key(
        "official",
        "official: the corpus's own split where it has one; share: corpus.val of the clips",
        among=("official", "share"),
    )
    val: float = key(0.2, "share of the clips held out for validation, by group", low=0.0, high=0.9)
    val_clips: tuple[str, ...] = key((), "ids of the clips to hold out, instead of the share")
    groups: str = key(
        "", "CSV file with lines `clip,group`: clips of one group stay on one side of the split", path=True
    )
    skip: tuple[str, ...] = key((), "ids of clips to leave out")
    fps: float = key(
        0.0,
        "frame rate of clips whose frames stand in folders; 0: 30, Hollywood-2 and UCF Sports 24",
        low=0.0,
        high=1000.0,
    )
    mouse_lag_ms: float = key(300.0, "avimos, ntire2026: how far raw mouse tracks lag behind the eye", low=0.0)


@dataclass(frozen=True)
class Synthetic:
    """The procedural corpus."""

    clips: int = key(36, "number of clips", low=2, high=9_999)
    frames: int = key(72, "frames per clip", low=2, high=9_999)
    height: int = key(144, "pixels", low=32, high=2160)
    width: int = key(256, "pixels", low=32, high=4096)
    fps: float = key(24.0, "frames per second", low=1, high=240)
    observers: int = key(16, "simulated observers", low=1, high=200)
    seed: int = key(7, "the corpus's own seed: run.seed does not change the data", low=0)


@dataclass(frozen=True)
class Teacher:
    """Who writes the soft labels; `distill teachers` lists them."""

    name: str = key("visage", "a teacher, or several and what each counts for: unisal+tased, unisal:2+tased:1")
    weights: tuple[str, ...] = key(
        (),
        "files, as unisal=FILE, or FILE for the only one; visage.base=, visage.expert1=, visage.expert2=; NAME=random: a trial",
        path=True,
    )
    size: tuple[str, ...] = key((), "as 6B, or visage=6B among several; empty: the first that `distill teachers` lists")
    fusion: str = key("logit", "of visage: how its experts are fused: logit (mean of logits), mean (of maps) or max")
    expert_weights: tuple[float, ...] = key((), "of visage: what each expert counts for; empty: all the same")
    domain: str = key("DHF1K", "of unisal: DHF1K, Hollywood, UCFSports, or SALICON, which takes each frame for itself")
    every: int = key(
        1, "of tased and salfom: frames from one window to the next; between, maps are interpolated", low=1
    )
    accept_licence: tuple[str, ...] = key(
        (), "names of teachers that you may use although no licence lets everybody use them"
    )
    calibration: str = key("", "file that `distill teach calibrate` wrote; applied to every label", path=True)
    maps: str | tuple[str, ...] = key(
        "",
        "folder of the maps teacher, or a list with one per part of the corpus: CLIP.npz (maps, peak) or folders of PNGs",
        path=True,
    )
    steps: int = key(320, "training steps of the tiny visage", low=1)
    batch: int = key(2, "windows per step of the tiny visage", low=1)
    lr: float = key(2e-3, "peak learning rate of the tiny visage", low=0.0)


@dataclass(frozen=True)
class Teach:
    """Fine-tuning of ViSAGE on a published trunk, in two stages: the decoders, then LoRA in the trunk as well."""

    finetune: bool = key(
        False,
        "train on this corpus: visage of a published size, from its base and experts; unisal, from what is named, see [unisal]",
    )
    base_frames: int = key(4, "frames that the base was published with: 4 in its stage 2, 8 in stage 1", low=1)
    frames: int = key(20, "frames of a window", low=1)
    px: int = key(224, "side of the trunk's input, a multiple of 14", low=14)
    fps: float = key(5.0, "frame rate that windows sample a video at", low=0.1)
    out_px: int = key(224, "side of the saliency maps", low=8)
    reduced_width: int = key(1024, "channels of each tap after its reducer", low=1)
    embed_width: int = key(256, "channels inside the decoders", low=1)
    head_width: int = key(128, "hidden channels of the heads", low=1)
    norm_groups: int = key(32, "groups of expert 2's GroupNorms; they divide embed_width and head_width", low=1)
    stage1_steps: int = key(6000, "steps with the trunk frozen; 0: skip", low=0)
    stage2_steps: int = key(6000, "steps with LoRA; 0: skip", low=0)
    batch: int = key(4, "windows per step, over all GPUs", low=1)
    at_once: int = key(0, "windows per pass of one GPU; fewer need less memory; 0: its whole share of a step", low=0)
    lr: float = key(1e-4, "peak learning rate of stage 1", low=0.0)
    lr_decoder: float = key(1e-5, "peak learning rate of the decoders in stage 2", low=0.0)
    lr_lora: float = key(1e-4, "peak learning rate of LoRA", low=0.0)
    warmup: float = key(0.1, "share of a stage's steps in which the learning rate rises", low=0.0, high=1.0)
    weight_decay: float = key(1e-4, "of AdamW", low=0.0)
    ema: float = key(0.99, "averaging of the weights that are validated and kept; 0: off", low=0.0, high=0.9999)
    rank: int = key(64, "of LoRA", low=1)
    alpha: float = key(128.0, "of LoRA: its product is scaled by alpha / rank", low=0.0)
    dropout: float = key(0.05, "of what LoRA sees", low=0.0, high=0.9)
    precision: str = key(
        "auto", "bf16, fp32 or auto: bf16 on CUDA; what trains is float32 either way", among=PRECISIONS
    )
    recompute: bool = key(True, "gradient checkpointing of the trunk: half more arithmetic, a fraction of the memory")
    val_windows: int = key(4, "windows of every validation clip, spread evenly", low=1)
    validate_every: int = key(300, "steps between validations; each expert keeps its best by CC", low=1)
    checkpoint_every: int = key(100, "steps between checkpoints", low=1)


@dataclass(frozen=True)
class Unisal:
    """Training of UNISAL, as published, with teach.finetune: from teacher.weights, from its trunk (unisal.trunk), or from nothing."""

    epochs: int = key(16, "passes over the clips", low=1)
    lr: float = key(0.04, "learning rate of the first epoch", low=0.0)
    lr_decay: float = key(0.8, "what it is multiplied by from epoch to epoch", low=0.0, high=1.0)
    batch: int = key(4, "videos per batch", low=1)
    frames: int = key(12, "frames of a window, 6 per second", low=1)
    windows: int = key(1, "windows that an epoch draws from each video", low=1)
    images: int = key(32, "still images per batch", low=1)
    domains: tuple[str, ...] = key(
        (), "PART=DOMAIN for parts of the corpus whose videos are not to train DHF1K's domain: Hollywood or UCFSports"
    )


@dataclass(frozen=True)
class Label:
    """How the teacher labels. Under torchrun all ranks share the clips out."""

    overlap: float = key(
        0.0, "share of a teacher's window that its next one sees again; 0: as released", low=0.0, high=0.9
    )
    precision: str = key("auto", "bf16, fp32 or auto: bf16 on CUDA", among=PRECISIONS)
    compile: bool = key(False, "run the teacher through torch.compile: a minute or more at the start, faster then")
    batch: int = key(0, "windows at once; 0: what the GPU's memory takes; on the CPU two per thread", low=0)
    workers: int = key(2, "clips decoded ahead of the teacher, each by a thread of its own", low=1, high=64)


@dataclass(frozen=True)
class Train:
    """Student training."""

    steps: int = key(400, "optimiser steps", low=1)
    frames_first: float = key(
        0.6, "share of the steps that train the image student, on single frames; then clips train its temporal part",
        low=0.0, high=1.0,
    )  # fmt: skip
    frames: int = key(32, "single frames per step, for the image student", low=1)
    batch: int = key(4, "streams of clips per step, for its temporal part", low=1)
    window: int = key(16, "frames per step and stream; back-propagation ends at a window's start", low=1)
    windows: int = key(
        2, "consecutive windows that a stream's state is carried through before a new clip is drawn", low=1
    )
    sample_fps: float = key(
        8.0, "frames per second that training sees, about; the gate's time constants are in seconds", low=0.1
    )
    lr: float = key(3e-3, "peak learning rate of the image student (AdamW)", low=0.0)
    clips_lr: float = key(
        1e-3, "peak learning rate of the memory; motion takes five times, onset twenty times as much", low=0.0
    )
    parts: tuple[str, ...] = key(
        ("memory", "motion", "onset"),
        "temporal parts that clips train; the others stay as they start: memory and onset add nothing, motion averages a little",
    )
    image_lr: float = key(
        0.0,
        "learning rate of the image student while clips train, as a share of train.lr; 0: it is held",
        low=0.0,
        high=1.0,
    )
    warmup: float = key(0.05, "share of a phase's steps in which its learning rate rises", low=0.0, high=1.0)
    weight_decay: float = key(1e-3, "of AdamW, on convolution weights", low=0.0)
    ema: float = key(0.99, "averaging of the weights that are validated and shipped; 0: off", low=0.0, high=0.9999)
    soft_weight: float = key(0.5, "share of the soft labels in the loss; the rest is ground truth", low=0.0, high=1.0)
    kl: float = key(1.0, "weight of KL divergence", low=0.0)
    cc: float = key(1.0, "weight of 1 - CC", low=0.0)
    sim: float = key(0.5, "weight of 1 - SIM", low=0.0)
    nss: float = key(0.1, "weight of -NSS, on fixations only", low=0.0)
    bce: float = key(
        0.5, "weight of binary cross-entropy against the map divided by its maximum: keeps the map mask-like", low=0.0
    )
    flip: bool = key(True, "mirror half of the streams")
    crop: float = key(0.6, "smallest side of the random crop, as a share; 1: no crop", low=0.2, high=1.0)
    cropped: float = key(
        0.6, "share of the frames phase that is cropped; what comes after is whole, for gaze prefers the middle of the frame",
        low=0.0, high=1.0,
    )  # fmt: skip
    colour: bool = key(True, "vary YUV matrices (601, 709), chroma gains and brightness, as consumers do")
    keep: str = key(
        "best", "best: the weights that validate best are shipped; last: those of the last step", among=("best", "last")
    )
    validate_every: int = key(100, "steps between validations", low=1)
    checkpoint_every: int = key(50, "steps between checkpoints", low=1)

    def __post_init__(self) -> None:
        if self.frames_first > 0 and self.lr == 0:
            raise ValueError("train.lr is 0, so that nothing learns from frames")
        if self.frames_first < 1 and not (self.parts and self.clips_lr > 0) and self.image_lr * self.lr == 0:
            raise ValueError(
                "nothing learns from clips: train.parts, clips_lr and image_lr say so; or set frames_first to 1"
            )
        if unknown := set(self.parts) - {"memory", "motion", "onset"}:
            raise ValueError(f"train.parts are memory, motion and onset, got {min(unknown)!r}")


@dataclass(frozen=True)
class Export:
    """The files that ship."""

    fps: float = key(0.0, "frame rate that the step file's gate is written for; 0: the corpus's median", low=0.0)
    license: str = key("", "licence of the weights; empty: stated from the licences of corpus and teacher")


# How scores are computed; distill.evaluation.metrics says what each means.
PROTOCOLS = ("clip-mean", "dhf1k-official", "mit", "aim2024")


@dataclass(frozen=True)
class Eval:
    """Scoring of the ONNX files on the validation clips."""

    protocol: str = key("clip-mean", f"how scores are computed and averaged: {', '.join(PROTOCOLS)}")
    baselines: tuple[str, ...] = key(
        ("mean", "ema=0.6", "max", "motion-weighted"),
        "poolings of the image file's maps over time, which the step file must beat; ema=ALPHA, ALPHA for the newest map",
    )
    stride: int = key(5, "every how many frames are scored; the state sees every frame", low=1)
    threads: int = key(0, "clips scored at once; 0: all cores", low=0)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown eval.protocol '{self.protocol}'{did_you_mean(self.protocol, PROTOCOLS)}")
        if self.baselines:
            from distill.students.pooling import parse  # it needs numpy, which no other recipe key does

            for baseline in self.baselines:
                parse(baseline)


@dataclass(frozen=True)
class Report:
    """The report's pictures."""

    clips: int = key(3, "validation clips shown", low=0, high=50)


@dataclass(frozen=True)
class Recipe:
    """One run, whole."""

    run: Run = field(default_factory=Run)
    corpus: Corpus = field(default_factory=Corpus)
    synthetic: Synthetic = field(default_factory=Synthetic)
    teacher: Teacher = field(default_factory=Teacher)
    teach: Teach = field(default_factory=Teach)
    unisal: Unisal = field(default_factory=Unisal)
    label: Label = field(default_factory=Label)
    student: TinyUNetConfig = field(default_factory=lambda: TinyUNetConfig(height=96, width=160))
    train: Train = field(default_factory=Train)
    export: Export = field(default_factory=Export)
    eval: Eval = field(default_factory=Eval)
    report: Report = field(default_factory=Report)


# --- reading ---------------------------------------------------------------------------------------------------------


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe from a TOML file (or the defaults) with `section.key=value` overrides on top.

    A file may begin with `base = "OTHER.toml"`: it then says only what differs from that recipe.

    Raises UsageError for a missing or unreadable file, an unknown key, a wrong type, or a value out of range.
    """
    values: dict[str, Any] = to_dict(Recipe())
    for file, contents in _with_bases(path) if path is not None else ():
        merge(values, contents, folder=file.resolve().parent, where=str(file))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or name.count(".") != 1:
            raise UsageError(f"--set wants section.key=value, got {override!r}")
        section, option = name.strip().split(".")
        merge(values, {section: {option: _parse_value(text.strip())}}, folder=Path.cwd(), where=f"--set {override}")
    return from_dict(values)


def _with_bases(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A recipe's contents after those of the recipes that it builds on, the first of them first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    while True:
        if os.path.realpath(path) in [os.path.realpath(file) for file, _ in chain]:
            raise UsageError(f"recipe {path} builds on itself, over {', '.join(str(file) for file, _ in chain)}")
        if chain and not path.is_file():
            raise UsageError(f"recipe {chain[0][0]} builds on {path}, which is not there")
        contents = _read_toml(path)
        base = contents.pop("base", None)
        chain.insert(0, (path, contents))
        if base is None:
            return chain
        if not isinstance(base, str) or "\0" in base:
            raise UsageError(f"recipe {path}: `base` names another recipe, got {base!r}")
        path = path.parent / Path(base).expanduser()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no recipe at {path}; `distill init` writes one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from None


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: --set corpus.name=dhf1k


def merge(values: dict[str, Any], changes: Mapping[str, Any], folder: Path, where: str) -> None:
    """Overlays `changes` on `values` in place; unknown names and wrong types raise UsageError."""
    for section, options in changes.items():
        section_type = SECTIONS.get(section)
        if section_type is None:
            raise UsageError(f"{where}: unknown section '{section}'{did_you_mean(section, SECTIONS)}")
        if not isinstance(options, Mapping):
            raise UsageError(f"{where}: '{section}' is a section; write [{section}] with keys below it")
        types_ = typing.get_type_hints(section_type)
        fields = {f.name: f for f in dataclasses.fields(section_type)}
        for option, value in options.items():
            if option not in fields:
                raise UsageError(f"{where}: unknown key '{section}.{option}'{_nearest_key(section, option)}")
            value = _typed(value, types_[option], f"{section}.{option}", where)
            if fields[option].metadata.get("path") and value:
                value = _located(value, folder) if isinstance(value, str) else tuple(_located(v, folder) for v in value)
            values[section][option] = value


def _located(value: str, folder: Path) -> str:
    """A path, or NAME=PATH, with the path made absolute from `folder`; the word `random` stands for no file."""
    name, equals, path = value.partition("=") if re.match(r"[\w.]+=", value) else ("", "", value)
    return name + equals + (path if path in ("", "random") else str((folder / Path(path).expanduser()).resolve()))


def _nearest_key(section: str, option: str) -> str:
    """The nearest key of the section, else the same key of another section, else all keys of the section."""
    keys = [f.name for f in dataclasses.fields(SECTIONS[section])]
    if near := difflib.get_close_matches(option, keys, n=1):
        return f"; did you mean '{section}.{near[0]}'?"
    for other, section_type in SECTIONS.items():
        if option in typing.get_type_hints(section_type):
            return f"; did you mean '{other}.{option}'?"
    return f"; keys of [{section}]: {', '.join(keys)}"


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or the list of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"


def _typed(value: Any, wanted: Any, name: str, where: str) -> Any:
    if isinstance(wanted, types.UnionType):  # one string, or a list of them
        if not isinstance(value, list | tuple):
            return _typed(value, str, name, where)
        return str(value[0]) if len(value) == 1 else tuple(str(item) for item in value)
    if typing.get_origin(wanted) is tuple:
        inner = typing.get_args(wanted)[0]
        items = (
            value if isinstance(value, list | tuple) else str(value).split(",") if isinstance(value, str) else [value]
        )
        items = [str(i) if inner is str else _typed(i, inner, name, where) for i in items]
        return tuple(items)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if type(value) is not wanted:
        raise UsageError(f"{where}: '{name}' wants {wanted.__name__}, got {value!r}")
    return value


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested plain values (lists for tuples); bounds are checked."""
    sections: dict[str, Any] = {}
    for name, section_type in SECTIONS.items():
        options = dict(values[name])
        for f in dataclasses.fields(section_type):
            value = options[f.name]
            if isinstance(value, list):
                options[f.name] = value = tuple(value)
            low, high = f.metadata.get("low"), f.metadata.get("high")
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{name}.{f.name} must be finite, got {value}")
            if low is not None and value < low:
                raise UsageError(f"{name}.{f.name} must be at least {low}, got {value}")
            if high is not None and value > high:
                raise UsageError(f"{name}.{f.name} must be at most {high}, got {value}")
            if (among := f.metadata.get("among")) and value not in among:
                raise UsageError(f"{name}.{f.name} must be {', '.join(among[:-1])} or {among[-1]}, got {value!r}")
        try:
            sections[name] = section_type(**options)
        except ValueError as error:
            raise UsageError(str(error)) from None
    return Recipe(**sections)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values."""
    return dataclasses.asdict(recipe)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """`section.key: old -> new` for every key in which two recipes differ."""
    a, b = to_dict(old), to_dict(new)
    return [f"{s}.{o}: {a[s][o]!r} -> {b[s][o]!r}" for s in a for o in a[s] if a[s][o] != b[s][o]]


# --- writing ---------------------------------------------------------------------------------------------------------

SECTION_ABOUT = {
    "student": "The student's shape.",
}
STUDENT_ABOUT = {
    "height": "working resolution in pixels, a multiple of 32",
    "width": "working resolution in pixels, a multiple of 32",
    "widths": "channels at 1/2, 1/4, 1/8 and 1/16 of the working resolution",
    "state_channels": "channels of memory in the recurrent state, beside its maps",
}


def to_toml(recipe: Recipe, comments: bool = False) -> str:
    """The recipe as TOML that `load` reads back; with comments, every key says what it means."""
    lines = []
    for name, section_type in SECTIONS.items():
        section = getattr(recipe, name)
        if comments:
            lines.append(f"# {SECTION_ABOUT.get(name) or (section_type.__doc__ or '').splitlines()[0]}")
        lines.append(f"[{name}]")
        for f in dataclasses.fields(section_type):
            value = getattr(section, f.name)
            text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
            if comments:
                lines.append(f"# {f.metadata.get('about') or STUDENT_ABOUT[f.name]}")
            lines.append(f"{f.name} = {text}")
        lines.append("")
    return "\n".join(lines)


SECTIONS: types.MappingProxyType[str, type] = types.MappingProxyType(typing.get_type_hints(Recipe))
