"""The extras of this package: which modules each of them installs, which are missing, and the command that installs them.

Imports none of them. The command is one that works here: this package may come from an index, a wheel, a checkout or a repository.
"""

import json
import re
import shlex
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from distill.run.errors import UsageError

PACKAGE = "saliency-distill"
EXTRAS = {
    "predict": ("onnxruntime", "cv2"),
    "encode": ("av", "scipy"),
    "quality": ("av", "scipy", "imageio_ffmpeg"),
    "train": ("torch", "onnxscript", "onnx_ir", "matplotlib", "jinja2", "filelock", "safetensors"),
    "tensorboard": ("torch", "tensorboard"),
}
"""Modules by the extra that installs them; `encode` and `train` install those of `predict` too."""
CPU_TORCH = "without a GPU, install PyTorch's CPU build first (pytorch.org, Get started): the one with CUDA takes 5 GB"


def modules_of(extra: str) -> list[str]:
    """The modules that an extra installs, those of `predict` included."""
    return [*dict.fromkeys((*EXTRAS["predict"], *EXTRAS[extra]))]


def missing(extra: str) -> list[str]:
    """Those of them that are not installed."""
    return [module for module in modules_of(extra) if find_spec(module) is None]


def require(extra: str) -> None:
    """Raises UsageError where modules of an extra are not installed."""
    if modules := missing(extra):
        raise UsageError(f"{', '.join(modules)} not installed; {how_to_install(extra)}")


def extra_of(module: str) -> str | None:
    """The extra that installs a module, or a submodule of one; None where no extra does."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def how_to_install(extra: str) -> str:
    """The command that installs an extra; with a word on torch where pip would fetch its build for CUDA."""
    command = f"pip install {_requirement(extra)}"
    torch_comes = "torch" in EXTRAS.get(extra, ()) and sys.platform == "linux" and find_spec("torch") is None
    return f"{command}; {CPU_TORCH}" if torch_comes else command


def _requirement(extra: str) -> str:
    """What pip takes for an extra: this package from where it came from, or else the packages that the extra consists of.

    Installers write into direct_url.json where a package came from, unless that was an index (packaging.python.org, "Recording
    the Direct URL Origin of installed distributions").
    """
    found = [(d, origin) for d in metadata.distributions(name=PACKAGE) if (origin := d.read_text("direct_url.json"))]
    if not found:
        return f"'{PACKAGE}[{extra}]'"
    installed, origin = found[0][0], json.loads(found[0][1])
    url, repository = urlsplit(origin["url"]), origin.get("vcs_info")
    if repository:
        return shlex.quote(f"{PACKAGE}[{extra}] @ {repository['vcs']}+{origin['url']}@{repository['commit_id']}")
    if url.scheme != "file":
        return shlex.quote(f"{PACKAGE}[{extra}] @ {origin['url']}")
    path = Path(url2pathname(url.path))
    if path.exists():
        editable = origin.get("dir_info", {}).get("editable", False)
        return "-e " * editable + shlex.quote(f"{path}[{extra}]")
    return shlex.join(_packages(extra, installed.requires or []))  # the wheel is no longer there


def _packages(extra: str, requires: list[str]) -> list[str]:
    """The requirements of an extra, those of the extras that it includes in their place."""
    found: dict[str, None] = {}
    for requirement in requires:
        package, marked, marker = requirement.partition(";")
        if not marked or extra not in re.findall(r"""extra == ["']([\w-]+)""", marker):
            continue
        included = re.fullmatch(rf"{PACKAGE}\[(.*)\]", package.strip())
        found |= dict.fromkeys(
            [p for other in included[1].split(",") for p in _packages(other, requires)] if included else [package.strip()]
        )
    return [*found]
