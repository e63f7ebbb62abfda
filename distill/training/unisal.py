"""Trains UNISAL on images and videos at once, by its published recipe, on a corpus's ground truth.

Every batch is of one domain: images, or windows of videos of one kind. The convolutions learn from all of them; norms,
priors and blur of a domain learn from it alone, for the others are not in the batch's graph, get no gradient, and the
optimiser leaves alone what has none. Likewise images, which bypass the recurrence, do not touch it.

    frames/unisal/CLIP.frames.npy   uint8 [T,h,w,3], as the network sees them, 6 per second
    frames/unisal/CLIP.truth.npy    uint8 [T,2,h,w]: density (largest value 255) and fixations (0 or 1)

An epoch is one pass over the clips. What a step sees follows from (seed, step) alone, so a resumed run goes on exactly
where it was. The recipe, from Droste, Jiao and Noble (2020) and its code: `UnisalRecipe`.

Legend: B clips · T frames · C channels · H, W pixels · N frames of a batch that have fixations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.corpora import Clip, density_map, fixation_map
from distill.run.errors import Interrupted, UsageError
from distill.run.files import write_array
from distill.run.progress import Narrator
from distill.teachers.unisal import (
    SIZES,
    STATIC_DOMAIN,
    Unisal,
    UnisalNet,
    input_size,
    load_trunk,
    normalise,
    scale,
    stream_count,
)
from distill.teachers.weights import load_state_dict_exact, read_weights
from distill.training import checkpoint
from distill.training.frames import ArrayFile

EPS = 1e-8
VIDEO_DOMAINS = tuple(domain for domain in SIZES if domain != STATIC_DOMAIN)


@dataclass(frozen=True)
class UnisalRecipe:
    """How UNISAL is trained. The defaults are as published."""

    epochs: int = 16
    """Passes over the clips."""
    lr: float = 0.04
    """Learning rate of the first epoch (SGD)."""
    lr_decay: float = 0.8
    """What it is multiplied by from epoch to epoch."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4
    """Of everything but the trunk."""
    trunk_weight_decay: float = 1e-5
    """Of the trunk."""
    trunk_lr: float = 0.1
    """The trunk's learning rate, as a share of the others'. A trunk that starts at random learns like the rest."""
    frozen_epochs: int = 2
    """Epochs before the trunk learns at all."""
    clip: float = 2.0
    """Largest norm of the gradient."""
    batch: int = 4
    """Videos per batch."""
    window: int = 12
    """Frames of each, 6 per second."""
    images: int = 32
    """Images per batch."""
    image_weight: float = 0.5
    """Weight of an image batch's loss. As published; the released code keeps it in its settings and never applies it."""
    windows: int = 1
    """Windows that an epoch draws from each video."""
    cc: float = 0.1
    """Weight of -CC, beside KL's 1."""
    nss: float = 0.1
    """Weight of -NSS."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "window", "images", "windows"):
            if getattr(self, name) < 1:
                raise UsageError(f"UnisalRecipe.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Material:
    """A clip to train on, cached."""

    clip: Clip
    domain: str
    frames: ArrayFile
    truth: ArrayFile

    @property
    def kind(self) -> tuple[str, int, int]:
        """Clips of one kind may share a batch: domain, height, width."""
        height, width = self.frames.shape[1:3]
        return self.domain, height, width


def train_unisal(
    clips: Sequence[Clip],
    recipe: UnisalRecipe,
    folder: Path,
    frames: Path,
    device: torch.device,
    seed: int,
    narrator: Narrator,
    *,
    domains: Mapping[str, str] | None = None,
    domain: str = "DHF1K",
    start: Path | None = None,
    trunk: Path | None = None,
    checkpoint_every: int = 50,
) -> Unisal:
    """Trains, or goes on training, and leaves `folder/unisal.pt`, a state dict in the released layout.

    `frames` is the folder where clips are cached, decoded: 430 KB of disk for a frame at 224x384, 6 per second.
    `domains`: the domain of each part's videos, by `clip.corpus`; DHF1K for parts it does not name. Images are SALICON's.
    `domain` is the returned teacher's. Training starts from `start`, a file in the released layout, or at random with the
    trunk from `trunk`, MobileNetV2's ImageNet weights (`mobilenet_v2.pth.tar`), or wholly at random. Raises Interrupted
    after saving, UsageError for clips or files that cannot be used, and where a gradient is not finite.
    """
    annotated = [clip for clip in clips if clip.annotated_frames]
    if not annotated:
        raise UsageError(
            "teacher unisal trains on fixations, but no training clip is annotated; give it weights instead"
        )
    folder.mkdir(parents=True, exist_ok=True)
    materials = [
        cache(frames, clip, domain_of(clip, domains or {}))
        for clip in narrator.track(annotated, "frames for unisal", len(annotated))
    ]
    torch.manual_seed(seed)
    net = UnisalNet()
    try:
        if start:
            load_state_dict_exact(net, read_weights(start), source=str(start))
        elif trunk:
            load_trunk(net, trunk)
    except ValueError as error:
        raise UsageError(str(error)) from None
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained_trunk = bool(start or trunk)
    trunk_share = recipe.trunk_lr if trained_trunk else 1.0
    others = [parameter for name, parameter in net.named_parameters() if not name.startswith("cnn.")]
    optimizer = torch.optim.SGD(
        [
            {"params": others, "weight_decay": recipe.weight_decay, "share": 1.0},
            {"params": net.cnn.parameters(), "weight_decay": recipe.trunk_weight_decay, "share": trunk_share},
        ],
        lr=recipe.lr,
        momentum=recipe.momentum,
    )
    per_epoch = len(plan(materials, recipe, seed, 0))
    steps = recipe.epochs * per_epoch
    last, first = folder / "unisal_last.pt", 0
    if last.exists():
        saved = checkpoint.load(last, device)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
        narrator.say(f"teach: going on at step {first} of {steps}")

    def save(step: int) -> None:
        checkpoint.save(last, {"step": step, "net": net.state_dict(), "optimizer": optimizer.state_dict()})

    with narrator.bar("teach", steps, first) as bar:
        for step in range(first, steps):
            epoch, number = divmod(step, per_epoch)
            batch = [materials[i] for i in plan(materials, recipe, seed, epoch)[number]]
            rng = np.random.default_rng([seed, 3, step])
            torch.manual_seed(int(rng.integers(2**62)))  # of the dropouts
            frames_BTCHW, truth_BT2HW = (x.to(device) for x in windows(batch, recipe.window, rng))
            net.train()
            net.cnn.train(not trained_trunk)  # a trained trunk's norms keep what they know of many more images
            net.cnn.requires_grad_(not trained_trunk or epoch >= recipe.frozen_epochs)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * recipe.lr_decay**epoch * group["share"]

            static = batch[0].clip.static
            density_BTHW, _ = net(normalise(frames_BTCHW), batch[0].domain, static=static)
            truth_N2HW = truth_BT2HW.flatten(0, 1).float()
            seen = truth_N2HW.amax((2, 3)).amin(1) > 0
            losses_N = density_losses(
                density_BTHW.flatten(0, 1)[seen], truth_N2HW[seen, 0], truth_N2HW[seen, 1], recipe
            )
            loss = (recipe.image_weight if static else 1.0) * losses_N.sum() / seen.sum().clamp(min=1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
            if not torch.isfinite(norm):  # before the weights are touched; NaN in the loss arrives here too
                raise UsageError(
                    f"teach: the gradient is not finite at step {step + 1}: clips {', '.join(m.clip.id for m in batch)}; "
                    f"{checkpoint.kept(last)}; try a smaller learning rate"
                )
            optimizer.step()
            bar.advance(note=f"epoch {epoch + 1} {batch[0].domain} loss {loss.item():.3f}")
            done = step + 1
            if done % checkpoint_every == 0 and done < steps:
                save(done)
            if narrator.stop() and done < steps:
                save(done)
                raise Interrupted(f"teaching, after step {done} of {steps}")
    checkpoint.save(folder / "unisal.pt", {key: value.cpu().contiguous() for key, value in net.state_dict().items()})
    last.unlink(missing_ok=True)
    return Unisal(net.eval(), domain, device=device)


def density_losses(log_density_NHW: Tensor, truth_NHW: Tensor, fixations_NHW: Tensor, recipe: UnisalRecipe) -> Tensor:
    """KL(truth || prediction) - nss·NSS - cc·CC of each frame `[N]`; definitions as in Bylinskii et al., 2019.

    log_density: its exp sums to 1 over a frame. truth: non-negative, any scale. fixations: 1 where fixated, else 0.
    """
    log_p, truth, fixations = log_density_NHW.flatten(1), truth_NHW.flatten(1), fixations_NHW.flatten(1)
    q = truth / truth.sum(1, keepdim=True)
    kl = (torch.xlogy(q, q) - q * log_p).sum(1)
    # CC and NSS do not depend on the scale: with the largest value at 1 no square vanishes in float32.
    p = (log_p - log_p.detach().amax(1, keepdim=True)).exp()
    p, q = p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True)
    cc = (p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1) + EPS)
    nss = (p / (p.std(1, keepdim=True) + EPS) * fixations).sum(1) / fixations.sum(1)
    return kl - recipe.nss * nss - recipe.cc * cc


# --- batches ---------------------------------------------------------------------------------------------------------


def plan(materials: Sequence[Material], recipe: UnisalRecipe, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch, each a list of places in `materials` of one kind. As many in every epoch.

    Every video comes `recipe.windows` times, every image once. The last batch of a kind is filled up with its first
    clips. The kinds' batches are mixed.
    """
    rng = np.random.default_rng([seed, 2, epoch])
    kinds: dict[tuple[str, int, int], list[int]] = {}
    for i, material in enumerate(materials):
        kinds.setdefault(material.kind, []).append(i)
    batches = []
    for members in kinds.values():
        static = materials[members[0]].clip.static
        size = min(recipe.images if static else recipe.batch, len(members))
        order = np.concatenate([rng.permutation(members) for _ in range(1 if static else recipe.windows)])
        count = -(-len(order) // size)
        batches += np.resize(order, (count, size)).tolist()
    return [batches[i] for i in rng.permutation(len(batches))]


def windows(batch: Sequence[Material], length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A window of each clip: frames uint8 `[B,T,H,W,3]` and truth uint8 `[B,T,2,H,W]`. An image is one frame.

    A video shorter than the window is filled up by its last frame.
    """
    frames, truths = [], []
    for material in batch:
        total = len(material.frames)
        begin = int(rng.integers(max(1, total - length + 1)))
        index = np.minimum(begin + np.arange(1 if material.clip.static else length), total - 1)
        frames.append(torch.from_numpy(material.frames[index]))
        truths.append(torch.from_numpy(material.truth[index]))
    return torch.stack(frames), torch.stack(truths)


def domain_of(clip: Clip, domains: Mapping[str, str]) -> str:
    """Images are SALICON's; videos of the domain that `domains` has for their part of the corpus, or DHF1K's."""
    if clip.static:
        return STATIC_DOMAIN
    domain = domains.get(clip.corpus, VIDEO_DOMAINS[0])
    if domain not in VIDEO_DOMAINS:
        raise UsageError(
            f"the videos of '{clip.corpus}' are to train domain {domain!r}; UNISAL's domains of video are "
            f"{', '.join(VIDEO_DOMAINS)}"
        )
    return domain


def cache(folder: Path, clip: Clip, domain: str) -> Material:
    """Decodes a clip into the cache, unless it is there: of its annotated frames every n-th, for about 6 per second."""
    frames_path, truth_path = folder / f"{clip.id}.frames.npy", folder / f"{clip.id}.truth.npy"
    if not frames_path.exists():
        size = input_size(domain, clip.height, clip.width)
        stride = 1 if clip.static else stream_count(clip.fps)
        frames, truth = [], []
        for index, frame in zip(range(0, clip.annotated_frames, stride), clip.read(stride), strict=False):
            frames.append(scale(frame[None], size)[0].numpy())
            truth.append(_truth(clip, index, size))
        write_array(truth_path, np.stack(truth))
        write_array(frames_path, np.stack(frames))  # last: where it stands, both are complete
    return Material(clip, domain, ArrayFile(frames_path), ArrayFile(truth_path))


def _truth(clip: Clip, index: int, size: tuple[int, int]) -> np.ndarray:
    """Density and fixations of a frame, uint8 `[2,*size]`; zeros where it has none."""
    truth = np.zeros((2, *size), np.uint8)
    fixations = fixation_map(clip, index)
    if fixations is None or not fixations.any():
        return truth
    y, x = np.nonzero(fixations)
    truth[1, y * size[0] // clip.height, x * size[1] // clip.width] = 1
    density = torch.from_numpy(density_map(clip, index, fixations))[None, None]
    density = torch.nn.functional.interpolate(density, size=size, mode="bilinear", antialias=True)[0, 0]
    truth[0] = (255 * density / density.max().clamp(min=EPS)).round().byte().numpy()
    return truth
