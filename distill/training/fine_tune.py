"""Fine-tunes ViSAGE on a corpus: from clips and published files to a teacher that labels.

checkpoints/visage.json                                        shape of the teacher, its base, its experts
checkpoints/visage/expert1.safetensors, expert2.safetensors    the trained weights, under the released files' names
checkpoints/visage/trunk.safetensors                           the trunk, only where its weights are random
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distill.corpora import Clip
from distill.recipe.keys import Teach
from distill.run.collectives import rank_and_world, wait_for_ranks
from distill.run.errors import UsageError, usage_errors
from distill.run.files import read_json, write_json
from distill.teachers import PLAIN, Inference
from distill.teachers.internvideo2 import InternVideo2, InternVideo2Config, load_trunk, trunk_state
from distill.teachers.visage import Visage, VisageConfig, load_released
from distill.teachers.weights import read_weights
from distill.training import visage_windows
from distill.training.checkpoint import write_tensors
from distill.training.loop import TrainingContext, fit
from distill.training.two_stages import TwoStages


def layout(size: str, config: Teach) -> VisageConfig:
    """The released layout on a trunk of this size, with the recipe's window and widths."""
    with usage_errors("[teach]: "):
        return VisageConfig.released(
            size, trunk=InternVideo2Config.of(size, frames=config.frames, px=config.px), reduced_width=config.reduced_width,
            embed_width=config.embed_width, head_width_1=config.head_width, head_width_2=config.head_width,
            norm_groups=config.norm_groups, out_px=config.out_px, sample_fps=config.fps, lora_rank=config.rank,
            lora_alpha=config.alpha,
        )  # fmt: skip


def teach(
    clips: Sequence[Clip], validation: Sequence[Clip], config: Teach, size: str, files: Mapping[str, Path | None],
    context: TrainingContext, cache: Path,
) -> dict[str, Any]:  # fmt: skip
    """From clips and files (`base`, `expert1`, `expert2`) to `visage.json` in the context's folder and the files it names.

    Without a base the trunk's weights are random, and written beside the experts. All ranks of a torchrun job call this.
    Raises UsageError where files do not fit or no clip is annotated.
    """
    folder, narrator = context.folder, context.narrator
    visage = layout(size, config)
    base, starts = files.get("base"), [files.get("expert1"), files.get("expert2")]
    if any(starts) and (not all(starts) or config.stage1_steps):
        raise UsageError(
            "teach: experts to start from are two, expert1 and expert2, and have their LoRA: set teach.stage1_steps=0"
        )
    annotated, held_out = ([clip for clip in some if clip.annotated_frames] for some in (clips, validation))
    if not annotated:
        raise UsageError("teach: fine-tuning learns from fixations, but no training clip is annotated")
    rank, ranks = rank_and_world()
    share = [*annotated, *held_out][rank::ranks]
    for clip in narrator.track(share, "teach: decode", len(share)):
        visage_windows.cache(cache, clip, visage)
    wait_for_ranks()
    train, val = ([visage_windows.cache(cache, clip, visage) for clip in some] for some in (annotated, held_out))
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if context.device.type == "cuda" else "fp32"
    trunk = _trunk(visage, base, config.base_frames, context.seed)
    trunk = trunk.to(context.device, torch.bfloat16 if precision == "bf16" else torch.float32)
    written = folder / "visage" / "trunk.safetensors"
    if base is None and rank == 0:
        write_tensors(written, trunk.state_dict())
    narrator.say(
        f"teach: visage {size} on {base.name if base else 'a trunk of random weights'}, {len(train)} clips, "
        f"{config.stage1_steps} + {config.stage2_steps} steps of {config.batch} x {config.frames} frames, {precision}, "
        f"{ranks} {'process' if ranks == 1 else 'processes'}"
    )
    task = TwoStages(train, val, config, visage, trunk, starts, precision, context)
    progress = fit(task, folder / "visage.jsonl")
    if rank == 0:
        base_name, base_frames = (base, config.base_frames) if base else (written.relative_to(folder), config.frames)
        shape = {"base": str(base_name), "base_frames": base_frames, "experts": task.files, "config": visage.to_dict()}
        write_json(folder / "visage.json", shape)
        task.resume_path.unlink(missing_ok=True)
    wait_for_ranks()
    return {"steps": progress.step, "val_cc": [progress.kept[file] for file in task.files]}


def open_tuned(folder: Path, device: torch.device, how: Inference = PLAIN) -> Visage:
    """The teacher that `teach` wrote to `folder`. Raises UsageError where files are missing or do not fit."""
    description = read_json(folder / "visage.json")
    with usage_errors():
        config = VisageConfig.from_dict(description["config"])
        files = [folder / name for name in description["experts"]]
        dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
        base, frames = folder / description["base"], description["base_frames"]
        net = load_released(config, base, files, orig_t_size=frames, dtype=dtype, device=device)
    return Visage(net.eval(), config, device=device, how=how)


def outputs(random: bool) -> list[str]:
    """The files that `teach` writes, relative to its folder; `random`: without a published base."""
    weights = ("expert1", "expert2", "trunk") if random else ("expert1", "expert2")
    return ["visage.json", "visage.jsonl", *(f"visage/{name}.safetensors" for name in weights)]


def _trunk(visage: VisageConfig, base: Path | None, base_frames: int, seed: int) -> InternVideo2:
    """The trunk with its published weights, in the file's type; without a file, random weights that follow from the seed."""
    if base is None:
        torch.manual_seed(seed)
        return InternVideo2(visage.trunk)
    with torch.device("meta"):
        trunk = InternVideo2(visage.trunk)
    with usage_errors():
        load_trunk(trunk, trunk_state(read_weights(base)), orig_t_size=base_frames, source=str(base))
    return trunk
