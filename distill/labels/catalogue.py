"""The teacher catalogue: every teacher and size, its licences, its cost and the files that it needs. Torch-free.

`distill teachers` prints it. Parameters and multiply-accumulates are counted from the networks of `teachers/` on torch's meta
device; one multiply-accumulate is two FLOPs.
"""

from dataclasses import dataclass, replace

from distill.recipe.files import did_you_mean
from distill.run.errors import UsageError

OURS = "BSD-2-Clause-Patent"
UNSTATED = "none stated"


@dataclass(frozen=True)
class Published:
    """A weights file as its authors publish it, for `distill teachers fetch`."""

    name: str
    url: str
    sha256: str  # in hex
    bytes: int
    about: str


@dataclass(frozen=True)
class Entry:
    """A teacher at one size. A figure that was not measured is None."""

    name: str
    size: str = ""
    about: str = ""
    page: str = ""  # the authors' page that offers the weights
    code: str = UNSTATED  # licence of the authors' code
    weights: str = UNSTATED  # licence of their weights
    trained_on: tuple[tuple[str, str], ...] = ()  # what the published weights were trained on, and its licence; () if not known
    parameters: int | None = None
    rate: float | None = None  # frames per second that the network sees; None: every frame
    window: int | None = None  # frames that it sees at once; None: the whole clip, its state carried
    gmac: float | None = None  # billions of multiply-accumulates per labelled frame, at every = 1 and no overlap
    files: tuple[str, ...] = ()  # required weights files: "" is a teacher's only one, NAME; others are NAME.PART
    more: tuple[str, ...] = ()  # optional ones
    published: tuple[Published, ...] = ()  # files that can be fetched; a run without teacher.weights uses the first
    variants: tuple[str, ...] = ()  # NAME@VARIANT: what one network offers several of, such as UNISAL's domains

    @property
    def title(self) -> str:
        """Name and size, as in `visage tiny`."""
        return f"{self.name} {self.size}".rstrip()


# The revision of the authors' repository whose blobs have these hashes.
_UNISAL = (
    "https://raw.githubusercontent.com/rdroste/unisal/0440df77f6fb4c93bb6f5ba1aa8cf543061ffc56/training_runs/pretrained_unisal"
)
# fmt: off
_VISAGE = Entry(
    "visage", code="Apache-2.0", rate=5.0, window=20, files=("base", "expert1", "expert2"), more=("expert3", "expert4"),
    about="two experts, each with a LoRA, on an InternVideo2 trunk (2026); experts are published for 6B only, and "
    "teach.finetune trains them at any size",
    page="https://huggingface.co/OpenGVLab/InternVideo2_distillation_models (trunk)",
)
_SALFOM = Entry(
    "salfom", "L", window=16, files=("",), parameters=402_945_443, gmac=1520, about="UMT encoder, three-branch decoder (2024)",
    page="https://github.com/mr17m/SalFoM---Video-Saliency-Prediction",
)
CATALOGUE = (
    Entry(
        "visage", "tiny", code=OURS, weights=OURS, rate=8.0, window=8, files=("",), parameters=698_649, gmac=0.174,
        about="the same architecture, small: trained from scratch in the run, on its own corpus",
    ),
    replace(_VISAGE, size="S", parameters=87_504_905, gmac=49.3),
    replace(_VISAGE, size="B", parameters=166_282_889, gmac=108),
    replace(_VISAGE, size="L", parameters=418_702_729, gmac=304),
    replace(
        _VISAGE, size="1B", weights="Apache-2.0", parameters=1_202_207_753, gmac=841,
        page="https://huggingface.co/OpenGVLab/InternVideo2-CLIP-1B-224p-f8 (trunk)",
    ),
    replace(
        _VISAGE, size="6B", weights="Apache-2.0", parameters=6_312_387_849, gmac=3881,
        page="https://github.com/iLearn-Lab/CVPRW26-ViSAGE (experts), "
        "https://huggingface.co/OpenGVLab/InternVideo2-Stage2_6B-224p-f4 (trunk)",
    ),
    Entry(
        "unisal", code="Apache-2.0", weights="Apache-2.0", rate=6.0, files=("",), more=("trunk",), parameters=3_714_872, gmac=0.954,
        about="MobileNetV2 with a ConvGRU, for images and video, one set of norms per data set (2020)",
        variants=("DHF1K", "Hollywood", "UCFSports", "SALICON"),
        page="https://github.com/rdroste/unisal",
        published=(
            Published(
                "weights_best.pth", f"{_UNISAL}/weights_best.pth",
                "4a9157411f1741d588b15670d15295e998805648b8b6348599fe447298338481", 15_368_928,
                "trained on DHF1K, Hollywood-2, UCF Sports and SALICON; used where teacher.weights names no file",
            ),
            Published(
                "weights_ft_mit1003.pth", f"{_UNISAL}/weights_ft_mit1003.pth",
                "a6de8ea27d812cfc3fbc2b8cab59862a8e48aaf4d512e670468d3b6972a81262", 15_387_271,
                "fine-tuned on MIT1003, for still images",
            ),
        ),
        trained_on=(
            ("DHF1K", "CC BY 4.0"), ("Hollywood-2 with gaze", "the authors' agreement"),
            ("UCF Sports with gaze", "the authors' agreement"), ("SALICON", "not stated; images of MS COCO"),
            ("MIT1003 (weights_ft_mit1003.pth alone)", "not stated"),
            ("ImageNet (trunk)", "non-commercial research and education"),
        ),
    ),
    Entry(
        "tased", code="MIT", weights="MIT", window=32, files=("",), parameters=21_260_693, gmac=78.5,
        about="S3D encoder, decoder with max-unpooling (2019, the updated weights)",
        page="https://github.com/MichiganCOG/TASED-Net",
    ),
    _SALFOM,
    replace(_SALFOM, size="B", parameters=149_082_787, gmac=508, page="", about="with a smaller encoder; no published weights"),
    Entry(
        "onnx", code="the file's", weights="the file's", files=("",),
        about="any ONNX saliency model, image or step, for example an earlier student; its licence is read from its metadata",
    ),
    Entry(
        "maps", code="not stated", weights="not stated",
        about="precomputed labels: teacher.maps is a folder of CLIP.npz files, or of one PNG folder per clip",
    ),
)
# fmt: on
NAMES = tuple(dict.fromkeys(entry.name for entry in CATALOGUE))


def entries(name: str | None = None) -> tuple[Entry, ...]:
    """All teachers, or the sizes of one, the default size first. Raises UsageError for an unknown name."""
    if name is not None and name not in NAMES:
        raise UsageError(f"unknown teacher '{name}'{did_you_mean(name, NAMES)}")
    return tuple(entry for entry in CATALOGUE if name in (None, entry.name))


def part_name(name: str, part: str) -> str:
    """A weights file's name in teacher.weights: `unisal`, `visage.expert1`."""
    return f"{name}.{part}" if part else name


def row(entry: Entry) -> dict[str, str]:
    """One line of the table, at most 80 columns wide. Licences that differ are shown as code / weights."""
    computes = entry.name != "maps"
    licences = (licence.replace(UNSTATED, "none") for licence in (entry.code, entry.weights))
    return {
        "teacher": entry.title,
        "M params": f"{entry.parameters / 1e6:,.1f}" if entry.parameters else "",
        "licence": " / ".join(dict.fromkeys(licences)),
        "rate": (f"{entry.rate:g}/s" if entry.rate else "all") if computes else "",
        "window": str(entry.window or "clip") if computes else "",
        "GMAC/frame": f"{entry.gmac:,.4g}" if entry.gmac else "",
    }


def details(entry: Entry) -> dict[str, str]:
    """Everything about a teacher, for the user."""
    short = row(entry)
    rate = f"{entry.rate:g} frames per second" if entry.rate else "every frame"
    window = f"windows of {entry.window}" if entry.window else "with its state carried through the clip"
    facts = {
        "teacher": entry.title,
        "what it is": entry.about,
        "licence of the code": entry.code,
        "licence of the weights": entry.weights,
        "trained on": "; ".join(f"{name}: {licence}" for name, licence in entry.trained_on),
        "weights from": entry.page,
        "teacher.size": entry.size,
        "variants": ", ".join(f"{entry.name}@{variant}" for variant in entry.variants),
        "teacher.weights": ", ".join(f"{part_name(entry.name, part)}=FILE" for part in entry.files),
        "fetched by": f"distill teachers fetch {entry.name}" if entry.published else "",
        "parameters": f"{entry.parameters:,}" if entry.parameters else "",
        "input": f"{rate}, {window}" if short["rate"] else "",
        "GMAC per frame": short["GMAC/frame"],
    }
    return {key: value for key, value in facts.items() if value}
