"""The training loop, the only one: steps, checkpoints and resume, averaged weights, the guard against non-finite values, the log.

A `Task` states what is trained: its batches, the forward pass and loss, parameter groups with their learning rates, and the
files it keeps. `fit` does the rest. A training has phases, one after the other (the student: frames, then clips); each starts
from what validated best in the one before.

What a step sees must follow from (seed, step) alone, dropout included: then a resumed run ends with the same numbers, on the CPU
to the last bit. On a GPU the batches are the same, but some of CUDA's kernels add in any order: numbers agree to rounding.
Float32 is float32 there too: without TF32, which would round the inputs of convolutions to 10 bits.

Under torchrun all ranks call `fit`; rank 0 writes.
"""

import copy
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.run.errors import Interrupted, UsageError
from distill.run.files import write_bytes
from distill.run.machine.collectives import any_rank, gather_from_ranks, rank_and_world, wait_for_ranks
from distill.run.progress import Narrator
from distill.teachers.windows import exact_float32
from distill.training import checkpoint
from distill.training.ahead import drawn_ahead
from distill.training.board import Board, Events, Shown
from distill.training.schedules import ema_decay

Place = tuple[str, list[int]]
"""A clip, and the numbers (from 1) of its frames that a batch shows."""


@dataclass(frozen=True)
class TrainingContext:
    """Where and how something is trained."""

    folder: Path  # of the checkpoints
    device: torch.device
    seed: int
    narrator: Narrator
    board: Board | None = None  # on rank 0


@dataclass(frozen=True)
class Moment:
    """A step of a training; all numbers from 0."""

    step: int
    phase: int
    phase_step: int


@dataclass
class Losses:
    """The results of a step's forward and backward pass."""

    # Scalars for the log. Those called `loss...` must be finite; a NaN among the others is a mean of nothing: left out.
    values: dict[str, Tensor]
    places: list[Place]
    each_BT: Tensor | None = None  # the loss of every frame of `places`, if known: an error then names the frame


@dataclass
class Progress:
    """How far a training is. Times are of this process, which started at step `first`."""

    step: int = 0
    first: int = 0
    kept: dict[str, float | None] = field(default_factory=dict)  # files kept so far, and the validation score of each
    seconds: float = 0.0
    seconds_in_model: float = 0.0


class Task(ABC):
    """Defines what is trained, and how. A task sets the attributes that have no value here."""

    verb = "teach"  # or "train": names the progress bar, and with "ing" the interrupted task
    name: str  # of the training, among those of a run: the folder of its files for TensorBoard
    lr_key: str  # the recipe key that an error message advises to lower
    context: TrainingContext
    resume_file: str
    modules: dict[str, nn.Module]  # the trained modules, by the names that error messages use
    phase_steps: tuple[int, ...]
    labels: tuple[dict[str, Any], ...] = ({},)  # of each phase: keys for its lines in the log
    kept_files: tuple[dict[str, str | None], ...] = ({},)
    # Of each phase: the files that its validation keeps, and the score that each is the best by; None: the latest is kept.
    checkpoint_every: int
    validate_every = 0  # 0: at the end of a phase only
    phase_intervals = False  # whether these two count the steps of the phase instead of all
    validate_start = False  # whether the weights that training starts from are validated and kept
    max_norm = 1.0  # of each module's gradient
    ema: float | None = None  # largest decay of the averaged weights; None: no average
    averages: dict[str, nn.Module]  # validated and kept; set by `fit`: the modules themselves without an average
    average_buffers = False  # whether BatchNorm's statistics, running averages themselves, are averaged as well
    phase_average = False  # whether averaging restarts with a phase
    rank_batches = False  # whether every rank draws its own batches; then only the same number of ranks can continue a job
    shown: Sequence[Shown] = ()  # some frames of the last validation, to look at
    state: Tensor | None = None  # carried by a rank from step to step, beside the weights

    @property
    def resume_path(self) -> Path:
        """The file from which training continues."""
        return self.context.folder / self.resume_file

    @abstractmethod
    def enter(self, phase: int) -> torch.optim.Optimizer:
        """Prepares the modules for a phase (what learns, which mode), and returns the optimizer for it."""

    @abstractmethod
    def learning_rates(self, at: Moment) -> list[float]:
        """One for each of the optimizer's parameter groups."""

    @abstractmethod
    def draw(self, at: Moment) -> Any:
        """A step's data on the CPU, a pure function of seed, rank and step. For a GPU forked processes call it, steps ahead:
        it must not touch the device, and what it changes is lost."""

    def batch(self, drawn: Any, at: Moment) -> Any:
        """The step's data for `backward`. Seeds torch, on all devices, where the forward pass draws (dropout)."""
        return drawn

    @abstractmethod
    def backward(self, batch: Any, at: Moment) -> Losses:
        """Forward pass, loss, and gradients that are the mean over ranks."""

    def validate(self, phase: int) -> dict[str, float]:
        """Scores of the averages, the same on all ranks; higher is better. Empty where no clip is held out."""
        return {}

    def keep(self, name: str, scores: dict[str, float], step: int) -> None:
        """Writes one of `kept_files` from the averages; on rank 0. Never called for a task that keeps no files."""
        raise NotImplementedError

    def load_kept(self, phase: int) -> None:
        """Loads the weights that a phase kept into the modules. Never called for a task of one phase."""
        raise NotImplementedError


def fit(task: Task, log: Path | None = None) -> Progress:
    """Trains, or continues training, to the last step.

    Raises Interrupted after saving when the narrator says stop, on all ranks after the same step; UsageError where a loss or
    gradient is not finite, before it touches the weights, and where the resume file does not fit.
    """
    narrator = task.context.narrator
    if rank_and_world()[0]:
        narrator = Narrator(quiet=True, stop=narrator.stop)
    total, ends = sum(task.phase_steps), set(accumulate(task.phase_steps))
    task.averages = task.modules
    if task.ema is not None:
        task.averages = {name: copy.deepcopy(m).eval().requires_grad_(False) for name, m in task.modules.items()}
    progress, optimizer = _resume(task, log)
    started, first = time.perf_counter(), progress.first
    if optimizer:
        narrator.say(f"{task.verb}: continuing at step {first} of {total}")
    moments = [moment(task.phase_steps, step) for step in range(first, total)]
    ahead = closing(drawn_ahead(task.draw, moments, task.context.device, narrator.say))
    writing = Events(task.context.board, task.name, progress.step if optimizer else -1)
    with writing as events, narrator.bar(task.verb, total, first) as bar, ahead as batches, exact_float32():
        if task.validate_start and optimizer is None:
            _validate(task, moment(task.phase_steps, 0).phase, progress, log, events)
        for at in moments:
            step = at.step
            if optimizer is None or at.phase_step == 0:
                if step > 0:
                    task.load_kept(at.phase - 1)  # a phase starts from what validated best in the one before
                    for name, module in task.modules.items():
                        task.averages[name].load_state_dict(module.state_dict())
                optimizer = task.enter(at.phase)
            rates = task.learning_rates(at)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            batch = task.batch(next(batches), at)

            tick = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            losses = task.backward(batch, at)
            values = _finite_values(task, losses, step)
            optimizer.step()
            progress.seconds_in_model += time.perf_counter() - tick

            if task.ema is not None:
                decay = ema_decay(task.ema, at.phase_step if task.phase_average else step)
                for name, module in task.modules.items():
                    update_average(task.averages[name], module, decay, task.average_buffers)
            done = progress.step = step + 1
            values = {"lr": max(rates)} | values
            append(log, step=done, **task.labels[at.phase], **values)
            events.scalars(done, "train", values)
            count = at.phase_step + 1 if task.phase_intervals else done
            if done in ends or (task.validate_every and count % task.validate_every == 0):
                _validate(task, at.phase, progress, log, events)
            bar.advance(note=_note(task, at.phase, values, progress))
            stop = done < total and any_rank(narrator.stop())
            if stop or done in ends or count % task.checkpoint_every == 0:
                events.flush()
                _save(task, optimizer, progress)
            if stop:
                raise Interrupted(f"{task.verb}ing, after step {done} of {total}")
    progress.seconds = time.perf_counter() - started
    return progress


def moment(phase_steps: Sequence[int], step: int) -> Moment:
    """The phase of a step, and its number there. Phases may be empty; with no steps at all it is the last phase."""
    first = 0
    for phase, steps in enumerate(phase_steps):
        if step < first + steps or phase == len(phase_steps) - 1:
            return Moment(step, phase, step - first)
        first += steps
    raise ValueError("no phases")


def _finite_values(task: Task, losses: Losses, step: int) -> dict[str, float]:
    """Clips the gradients; the numbers of the step leave the device in one transfer. Raises UsageError if one is not finite."""
    norms = {}
    for name, module in task.modules.items():
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        norms[f"the gradient of {name}"] = nn.utils.clip_grad_norm_(learning, task.max_norm)
    scalars = losses.values | norms
    values = dict(zip(scalars, torch.stack([x.detach().float() for x in scalars.values()]).tolist(), strict=True))
    wrong = [name for name, x in values.items() if not math.isfinite(x) and (name in norms or name.startswith("loss"))]
    if not wrong:
        return {name: values[name] for name in losses.values if not math.isnan(values[name])}
    what = next((name for name in wrong if name in norms), "the loss")
    where = ", ".join(
        f"clip {clip} frame" + (f"s {frames[0]} to {frames[-1]}" if len(frames) > 1 else f" {frames[0]}")
        for clip, frames in losses.places
    )
    if losses.each_BT is not None and not torch.isfinite(losses.each_BT).all():
        b, t = (~torch.isfinite(losses.each_BT)).nonzero()[0].tolist()
        clip, frames = losses.places[b]
        what, where = "the loss", f"clip {clip}, frame {frames[t]}"
    path = task.resume_path
    last = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"
    raise UsageError(f"{task.verb}: {what} is not finite at step {step + 1}: {where}; {last}; try a smaller {task.lr_key}")


@torch.no_grad()
def update_average(average: nn.Module, live: nn.Module, decay: float, buffers: bool = False) -> None:
    """Moves the averaged weights towards the live ones. Buffers (BatchNorm's statistics) are copied, or averaged as well."""
    moved: list[tuple[Tensor, Tensor]] = [*zip(average.parameters(), live.parameters(), strict=True)]
    copied: list[tuple[Tensor, Tensor]] = []
    for pair in zip(average.buffers(), live.buffers(), strict=True):
        (moved if buffers and pair[0].is_floating_point() else copied).append(pair)
    # For lists of tensors a GPU needs a few kernels in place of hundreds.
    torch._foreach_lerp_([mean for mean, _ in moved], [new for _, new in moved], 1 - decay)
    if copied:
        torch._foreach_copy_([mine for mine, _ in copied], [new for _, new in copied])


def _validate(task: Task, phase: int, progress: Progress, log: Path | None, events: Events) -> None:
    if not task.kept_files[phase]:
        return
    scores = task.validate(phase)
    append(log, step=progress.step, split="val", **scores)
    events.scalars(progress.step, "val", {name: score for name, score in scores.items() if name not in task.labels[phase]})
    events.pictures(progress.step, task.shown)
    for name, by in task.kept_files[phase].items():
        score, best = scores.get(by) if by else None, progress.kept.get(name)
        if score is None or best is None or score > best:
            progress.kept[name] = score
            if rank_and_world()[0] == 0:
                task.keep(name, scores, progress.step)
    wait_for_ranks()


def _save(task: Task, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    states = gather_from_ranks(task.state)
    if rank_and_world()[0] == 0:
        live, mean = ({name: m.state_dict() for name, m in some.items()} for some in (task.modules, task.averages))
        values = {
            "format": checkpoint.FORMAT, "step": progress.step, "kept": progress.kept, "live": live,
            "averages": mean if task.ema is not None else {}, "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(), "states": states,
        }  # fmt: skip
        checkpoint.save(task.resume_path, values)
    wait_for_ranks()


def _resume(task: Task, log: Path | None) -> tuple[Progress, torch.optim.Optimizer | None]:
    """Restores a training from its resume file and repairs its log. Without one: a new progress and no optimizer."""
    rank, ranks = rank_and_world()
    progress, optimizer = Progress(), None
    path, device = task.resume_path, task.context.device
    saved = None
    if path.exists() and (log is None or log.exists()):
        checkpoint.check_resumable(path)
        saved = checkpoint.load(path)  # on the CPU: AdamW counts its steps there, and on a GPU would wait for each count
    if saved and all((path.parent / name).exists() for name in saved["kept"]):  # else start again
        if task.rank_batches and len(saved["states"]) != ranks:
            raise UsageError(
                f"{path} was written by {len(saved['states'])} processes, this job has {ranks}; use the same number, "
                "or start over with --force"
            )
        for name, module in task.modules.items():
            checkpoint.restore(module, saved["live"][name], path)
            if task.ema is not None:
                checkpoint.restore(task.averages[name], saved["averages"][name], path)
        progress = Progress(saved["step"], saved["step"], saved["kept"])
        optimizer = task.enter(moment(task.phase_steps, progress.step - 1).phase)
        optimizer.load_state_dict(saved["optimizer"])
        if task.rank_batches and (state := saved["states"][rank]) is not None:
            task.state = state.to(device)
        torch.set_rng_state(saved["rng"].cpu())
    wait_for_ranks()  # all have read what rank 0 is about to write
    if log and rank == 0:
        repair(log, progress.step if optimizer else -1)
    return progress, optimizer


def append(log: Path | None, **line: Any) -> None:
    """Adds a JSON line; on rank 0."""
    if log and rank_and_world()[0] == 0:
        with log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")


def repair(log: Path, step: int) -> None:
    """Drops the lines of steps after `step`, which will be repeated, and a line that a kill cut short or that is damaged."""
    lines = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []:
        with suppress(json.JSONDecodeError):
            match json.loads(line):
                case {"step": int(done)} if done <= step:
                    lines.append(f"{line}\n")
    write_bytes(log, "".join(lines).encode())


def _note(task: Task, phase: int, values: dict[str, float], progress: Progress) -> str:
    """The note beside the progress bar: the phase, the losses and the best validation scores."""
    notes = [f"{name} {value}" for name, value in task.labels[phase].items()]
    notes.append(" ".join(["loss", *(f"{value:.3f}" for name, value in values.items() if name.startswith("loss"))]))
    if best := [f"{score:.3f}" for name in task.kept_files[phase] if (score := progress.kept.get(name)) is not None]:
        notes.append(" ".join(["val CC", *best]))
    return " · ".join(notes)
