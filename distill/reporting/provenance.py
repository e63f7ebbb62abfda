"""Where a student comes from, as its ONNX files, sidecars, card and report state it; `distill.run.provenance` collects it."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import __version__


@dataclass(frozen=True)
class Provenance:
    """Where a student comes from."""

    name: str
    license: str
    corpus: str
    corpus_license: str
    corpus_chain: tuple[tuple[str, str], ...]  # the parts of the corpus, and the licence of each
    teacher: str
    teacher_license: str
    teacher_chain: tuple[tuple[str, str], ...]  # the parts of the teacher, and the licence of each
    restricted: tuple[str, ...]  # parts of the chain whose licence is not known to permit any use by anybody
    train_clips: tuple[str, ...]
    val_clips: tuple[str, ...]
    held_out: bool  # whether the validation clips were kept out of training
    fps: float
    parameters: int
    working_size: tuple[int, int]  # height, width
    tau_seconds: tuple[float, float, float]  # shortest, median, longest time constant of the recurrent state
    step: int
    chosen: bool  # whether the step was the best on the validation clips; otherwise it is the last
    recipe_fingerprint: str

    @property
    def chain(self) -> list[tuple[str, str]]:
        """Everything that the student was made from, and the licence of each part."""
        return [*((f"corpus {part}", license_) for part, license_ in self.corpus_chain), *self.teacher_chain]


def git_revision() -> str:
    """The revision of this code; with `-dirty` if files were changed since, `unknown` outside its checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie inside another project's checkout
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def metadata(origin: Provenance, metrics: dict[str, Any] | None) -> dict[str, str]:
    """The metadata properties of both ONNX files. metrics: as in metrics.json, None if not evaluated."""
    properties = {
        "name": origin.name, "task": "video-saliency", "license": origin.license,
        "training_corpus": f"{origin.corpus} ({len(origin.train_clips)} clips; licence: {origin.corpus_license})",
        "teacher": f"{origin.teacher} (licence: {origin.teacher_license})",
        "license_chain": json.dumps(origin.chain, ensure_ascii=False),
        "validation_clips": ",".join(origin.val_clips) if origin.held_out else "",
        "frame_rate": f"{origin.fps:g}",
        "gate_tau_seconds": "shortest {:.3g}, median {:.3g}, longest {:.3g}".format(*origin.tau_seconds),
        "git_revision": git_revision(), "distill_version": __version__, "recipe": origin.recipe_fingerprint,
        "parameters": str(origin.parameters), "working_size": "{}x{}".format(*origin.working_size),
        "input": "RGB in [0,1], normalised with ImageNet mean (0.485,0.456,0.406) and std (0.229,0.224,0.225), NCHW",
        "metrics": "not evaluated",
    }  # fmt: skip
    if metrics and metrics["predictors"]:
        scores = {name: rounded(values) for name, values in metrics["predictors"].items() if name in ("step", "image")}
        properties |= {"metrics": json.dumps(scores), "metrics_protocol": metrics["protocol"]}
    return properties


def rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in scores.items()}
