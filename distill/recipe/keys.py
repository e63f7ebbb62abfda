"""The keys of a recipe: sections as frozen dataclasses; each key with its default, its meaning and its bounds.

`distill.recipe.files` reads, overrides and writes recipes. Torch-free, so that the command line starts quickly.
"""

import re
import typing
from dataclasses import dataclass, field
from typing import Any

from distill.students import TinyUNetConfig
from distill.students.pooling import parse as parse_pooling


def key(
    default: Any, about: str, *, low: float | None = None, high: float | None = None, among: tuple[str, ...] = (),
    path: bool = False, fetched: bool = False, machine: bool = False, aside: bool = False,
) -> Any:  # fmt: skip
    """A recipe key: its default, one line about it, and either inclusive bounds or the words it accepts.

    path: the value is one or several paths, relative to the recipe's folder. fetched: or names of fetched files, which stay names.
    machine: it suits the work to a machine, and says nothing about the result.
    aside: no stage's result depends on it, and a run may be continued with another value.
    """
    limits = {"low": low, "high": high, "among": among}
    return field(
        default=default,
        metadata={"about": about, **limits, "path": path, "fetched": fetched, "machine": machine, "aside": aside},
    )


PRECISIONS = ("auto", "bf16", "fp32")
# distill.corpora.layouts has a layout for each.
CORPORA = (
    "synthetic", "dhf1k", "hollywood2", "ucf-sports", "avimos", "ntire2026", "gaze-table", "images", "videos", "photos", "pans",
)  # fmt: skip
# How scores are computed: distill.evaluation.metrics defines each.
PROTOCOLS = ("clip-mean", "dhf1k-official", "mit", "aim2024")
TEMPORAL_PARTS = ("memory", "motion", "onset")


@dataclass(frozen=True)
class Run:
    """How the run is carried out."""

    name: str = key("student", "file name of the student: NAME.onnx, NAME_step.onnx; lower case letters, digits, - and _")  # fmt: skip
    seed: int = key(0, "seed of all randomness except the synthetic corpus", low=0, high=2**63 - 1)
    device: str = key("auto", "auto, cpu, cuda or cuda:N", machine=True)
    threads: int = key(0, "CPU threads for torch; 0: all cores", low=0, machine=True)
    tensorboard: str = key("auto", "RUN/tensorboard, curves to look at: auto (where its package is installed), on, off",
                           among=("auto", "on", "off"), machine=True, aside=True)  # fmt: skip

    def __post_init__(self) -> None:
        # The downstream's registry accepts no other file names, and ids of 64 characters.
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,47}", self.name):
            rule = "may hold lower case letters, digits, '-' and '_', starts with a letter or digit, has at most 48 characters"
            raise ValueError(f"run.name {rule}; got {self.name!r}")


@dataclass(frozen=True)
class Corpus:
    """Where the clips come from and how they are split."""

    name: str = key(
        "synthetic", f"{', '.join(CORPORA)}; or several with weights: dhf1k:1,images:0.5,videos:0.2"
    )  # fmt: skip
    root: str | tuple[str, ...] = key("", "folder of the corpus, or a list with one per part; synthetic needs none", path=True)
    split: str = key(
        "official", "official: the corpus's split, if any; share: hold out corpus.val", among=("official", "share")
    )
    val: float = key(0.2, "share of the clips held out for validation, by group", low=0.0, high=0.9)
    val_clips: tuple[str, ...] = key((), "ids of the clips to hold out, instead of the share")
    groups: str = key("", "CSV file with lines `clip,group`: clips of one group stay on one side of the split", path=True)  # fmt: skip
    skip: tuple[str, ...] = key((), "ids of clips to leave out")
    attribution: str = key("", "CSV file `file,source,author,licence` with a line for every clip; it ships", path=True)
    fps: float = key(0.0, "frame rate of folders of frames; 0: 30, and 24 for Hollywood-2 and UCF Sports", low=0.0, high=1000.0)
    mouse_lag_ms: float = key(300.0, "avimos, ntire2026: delay of raw mouse tracks behind the gaze, in ms", low=0.0)


@dataclass(frozen=True)
class Synthetic:
    """The procedural corpus."""

    clips: int = key(36, "number of clips", low=2, high=9_999)
    frames: int = key(72, "frames per clip", low=2, high=9_999)
    height: int = key(144, "pixels", low=32, high=2160)
    width: int = key(256, "pixels", low=32, high=4096)
    fps: float = key(24.0, "frames per second", low=1, high=240)
    observers: int = key(16, "simulated observers", low=1, high=200)
    seed: int = key(7, "seed of the corpus; run.seed does not change the data", low=0, high=2**63 - 1)


@dataclass(frozen=True)
class Teacher:
    """The teacher that writes the soft labels; `distill teachers` lists the choices."""

    name: str = key(
        "visage", "one teacher, or an ensemble with optional weights: unisal+tased, unisal:2+tased:1; unisal@SALICON is unisal "
        "with that domain, for still images too",
    )  # fmt: skip
    parts: tuple[str, ...] = key(
        (), "PART=TEACHER for parts of the corpus that teacher.name does not label: images=unisal@SALICON, "
        "images-2=unisal@SALICON+tased",
    )  # fmt: skip
    weights: tuple[str, ...] = key(
        (), "weight files: NAME=FILE, or FILE for a single teacher; visage.base=, visage.expert1=, visage.expert2=; "
        "a fetched file by its name; NAME=random: untrained, for a smoke test; unisal@SALICON= is for that variant, unisal= for all "
        "others", path=True, fetched=True,
    )  # fmt: skip
    size: tuple[str, ...] = key((), "size, as 6B, or visage=6B in an ensemble; empty: the first that `distill teachers` lists")  # fmt: skip
    fusion: str = key("logit", "visage: fusion of its experts: logit (mean of logits), mean (of maps) or max")
    expert_weights: tuple[float, ...] = key((), "visage: weights of its experts in the fusion; empty: equal")
    domain: str = key("DHF1K", "unisal: DHF1K, Hollywood, UCFSports, or SALICON, which treats every frame as an image")
    static: float = key(
        0.0, "unisal: share of its static path, which sees each frame alone, in the mean of logits with its recurrent path; 1: "
        "static alone", low=0.0, high=1.0,
    )  # fmt: skip
    flip: bool = key(False, "label every frame mirrored as well, and average the logits; twice the cost")
    every: int = key(1, "tased, salfom: frames from one window to the next; maps in between are interpolated", low=1)
    accept_licence: tuple[str, ...] = key((), "teachers whose licence you have cleared for your use")  # fmt: skip
    calibration: str = key("", "file that `distill teach calibrate` wrote; applied to every label", path=True)
    maps: str | tuple[str, ...] = key("", "maps: folder, or one per part, of CLIP.npz (maps, peak) or PNG folders", path=True)
    steps: int = key(320, "training steps of the tiny visage", low=1)
    batch: int = key(2, "windows per step of the tiny visage", low=1)
    lr: float = key(2e-3, "peak learning rate of the tiny visage", low=0.0)


@dataclass(frozen=True)
class Teach:
    """Fine-tuning of ViSAGE on a published trunk, in two stages: the decoders, then LoRA in the trunk as well."""

    finetune: bool = key(False, "train the teacher: visage of a published size, from base and experts; unisal as [unisal] says")
    base_frames: int = key(4, "frames per window that the base was trained with: 4 for stage 2, 8 for stage 1", low=1)
    frames: int = key(20, "frames per window", low=1)
    px: int = key(224, "side of the trunk's input, a multiple of 14", low=14)
    fps: float = key(5.0, "frame rate at which windows sample a video", low=0.1)
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
    warmup: float = key(0.1, "share of a stage's steps spent on warm-up", low=0.0, high=1.0)
    weight_decay: float = key(1e-4, "weight decay of AdamW", low=0.0)
    ema: float = key(0.99, "decay of the EMA of the weights that are validated and saved; 0: off", low=0.0, high=0.9999)
    rank: int = key(64, "rank of LoRA", low=1)
    alpha: float = key(128.0, "scale of LoRA's product: alpha / rank", low=0.0)
    dropout: float = key(0.05, "dropout on the input of LoRA", low=0.0, high=0.9)
    precision: str = key("auto", "bf16, fp32 or auto: bf16 on CUDA; trained weights are float32 either way", among=PRECISIONS)  # fmt: skip
    recompute: bool = key(True, "gradient checkpointing of the trunk: 50 % more arithmetic, a fraction of the memory")
    val_windows: int = key(4, "windows per validation clip, spread evenly", low=1)
    validate_every: int = key(300, "steps between validations; each expert keeps its best checkpoint by CC", low=1)
    checkpoint_every: int = key(100, "steps between checkpoints", low=1)


@dataclass(frozen=True)
class Unisal:
    """Training of UNISAL as published, with teach.finetune: from teacher.weights, from its trunk (unisal.trunk), or from scratch."""

    epochs: int = key(16, "passes over the clips", low=1)
    lr: float = key(0.04, "learning rate of the first epoch", low=0.0)
    lr_decay: float = key(0.8, "factor on the learning rate from epoch to epoch", low=0.0, high=1.0)
    batch: int = key(4, "videos per batch", low=1)
    frames: int = key(12, "frames per window, 6 per second", low=1)
    windows: int = key(1, "windows drawn from each video per epoch", low=1)
    images: int = key(32, "still images per batch", low=1)
    domains: tuple[str, ...] = key((), "PART=DOMAIN: a part's videos train Hollywood or UCFSports, not DHF1K")


@dataclass(frozen=True)
class Label:
    """Labelling by the teacher. Under torchrun the ranks share the clips."""

    overlap: float = key(0.0, "overlap of consecutive windows, as a share of a window; 0: as released", low=0.0, high=0.9)  # fmt: skip
    precision: str = key("auto", "bf16, fp32 or auto: bf16 on CUDA", among=PRECISIONS)
    compile: bool = key(False, "run the teacher through torch.compile: a minute or more at the start, faster afterwards")  # fmt: skip
    batch: int = key(0, "windows per pass; 0: as many as the GPU's memory holds; on the CPU two per thread", low=0)
    workers: int = key(2, "clips decoded ahead of the teacher, one thread each", low=1, high=64, machine=True)


@dataclass(frozen=True)
class Train:
    """Training of the student."""

    steps: int = key(400, "optimiser steps", low=1)
    frames_first: float = key(0.6, "share of the steps that train on single frames; the rest train on clips", low=0.0, high=1.0)
    frames: int = key(32, "single frames per step, for the image student", low=1)
    batch: int = key(4, "streams of clips per step, for the temporal part", low=1)
    window: int = key(16, "frames per step and stream: the length of truncated back-propagation", low=1)
    windows: int = key(2, "consecutive windows over which a stream's state is carried before a new clip is drawn", low=1)  # fmt: skip
    sample_fps: float = key(8.0, "approximate frame rate in training; the state's time constants are in seconds", low=0.1)  # fmt: skip
    lr: float = key(3e-3, "peak learning rate of the image student (AdamW)", low=0.0)
    clips_lr: float = key(1e-3, "peak learning rate of the memory; motion uses 5 times, onset 20 times as much", low=0.0)  # fmt: skip
    parts: tuple[str, ...] = key(
        TEMPORAL_PARTS, "temporal parts that clips train; untrained, memory and onset add nothing, motion averages a little"
    )
    image_lr: float = key(
        0.0, "learning rate of the image student on clips, as a share of train.lr; 0: frozen", low=0.0, high=1.0
    )
    start: str = key("random", "weights that the student's encoder starts from: random, or teacher: a pruned copy of unisal's",
                     among=("random", "teacher"))  # fmt: skip
    start_lr: float = key(0.2, "learning rate of a copied encoder, as a share of train.lr; its layers up to 1/4 stay as they are",
                          low=0.0, high=1.0)  # fmt: skip
    features: float = key(0.3, "weight of the distance between a copied encoder's deep features and the teacher's", low=0.0)
    warmup: float = key(0.05, "share of a phase's steps spent on warm-up", low=0.0, high=1.0)
    weight_decay: float = key(1e-3, "weight decay of AdamW, on convolution weights", low=0.0)
    ema: float = key(0.99, "decay of the EMA of the weights that are validated and shipped; 0: off", low=0.0, high=0.9999)  # fmt: skip
    soft_weight: float = key(0.5, "share of the soft labels in the loss; the rest is ground truth", low=0.0, high=1.0)
    kl: float = key(1.0, "weight of KL divergence", low=0.0)
    cc: float = key(1.0, "weight of 1 - CC", low=0.0)
    sim: float = key(0.5, "weight of 1 - SIM", low=0.0)
    nss: float = key(0.1, "weight of -NSS, on fixations only", low=0.0)
    bce: float = key(0.5, "weight of binary cross-entropy against the map over its maximum: keeps it mask-like", low=0.0)
    flip: bool = key(True, "mirror half of the streams")
    crop: float = key(0.6, "smallest side of the random crop, as a share; 1: no crop", low=0.2, high=1.0)
    cropped: float = key(0.6, "share of the frames phase with crops; then full frames, for the centre bias", low=0.0, high=1.0)
    colour: bool = key(True, "vary YUV matrices (601, 709), chroma gains and brightness, as consumers do")
    keep: str = key("best", "best: ship the weights that validate best; last: those of the last step", among=("best", "last"))
    validate_every: int = key(100, "steps between validations", low=1)
    checkpoint_every: int = key(50, "steps between checkpoints", low=1)

    def __post_init__(self) -> None:
        if self.frames_first > 0 and self.lr == 0:
            raise ValueError("train.lr is 0, so nothing learns from frames")
        if self.frames_first < 1 and not (self.parts and self.clips_lr > 0) and self.image_lr * self.lr == 0:
            way_out = "set train.parts and train.clips_lr, or train.image_lr; or train.frames_first=1"
            raise ValueError(f"nothing learns from clips: {way_out}")
        if unknown := set(self.parts) - set(TEMPORAL_PARTS):
            raise ValueError(f"train.parts are memory, motion and onset, got {min(unknown)!r}")


@dataclass(frozen=True)
class Export:
    """The files that ship."""

    fps: float = key(0.0, "frame rate that the step file's time constants are written for; 0: the corpus's median", low=0.0)
    license: str = key("", "licence of the weights; empty: derived from the licences of corpus and teacher")
    notes: str = key(
        "", "Markdown file that the model card includes, with its pictures: known failures, tests elsewhere", path=True
    )


@dataclass(frozen=True)
class Eval:
    """Evaluation of the ONNX files on the validation clips."""

    protocol: str = key("clip-mean", f"how scores are computed and averaged: {', '.join(PROTOCOLS)}", among=PROTOCOLS)
    baselines: tuple[str, ...] = key(
        ("mean", "ema=0.6", "max", "motion-weighted"),
        "temporal poolings of the image file's maps, as baselines of the step file; in ema=ALPHA, ALPHA weights the newest map",
    )
    stride: int = key(5, "score every N-th frame; the state sees every frame", low=1)
    threads: int = key(0, "clips scored in parallel; 0: all cores", low=0, machine=True)

    def __post_init__(self) -> None:
        for baseline in self.baselines:
            parse_pooling(baseline)


@dataclass(frozen=True)
class Report:
    """The report's pictures."""

    clips: int = key(3, "validation clips shown, from the best to the worst", low=0, high=50)


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a run."""

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


SECTIONS: dict[str, type] = typing.get_type_hints(Recipe)

# The student's configuration belongs to distill.students, which does not depend on recipes; its comments are here.
STUDENT_ABOUT = {
    "": "The student's shape.",
    "height": "working resolution in pixels, a multiple of 32",
    "width": "working resolution in pixels, a multiple of 32",
    "widths": "channels of the encoder at 1/2, 1/4, 1/8 and 1/16 of the working resolution, and of its deep stage at 1/16",
    "blocks": "blocks of the encoder at 1/4, 1/8, 1/16 and in its deep stage",
    "expand": "hidden channels of those blocks, as a multiple of the stage's width",
    "state_channels": "channels of memory in the recurrent state, beside its maps",
}
