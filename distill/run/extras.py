"""The extras of this package: which modules each of them installs, and which of them are missing. Imports none of them."""

from importlib.util import find_spec

from distill.run.errors import UsageError

EXTRAS = {
    "predict": ("onnxruntime", "cv2"),
    "encode": ("av", "scipy"),
    "quality": ("av", "scipy", "imageio_ffmpeg"),
    "train": ("torch", "onnxscript", "onnx_ir", "matplotlib", "jinja2", "filelock", "safetensors"),
}
"""Modules by the extra that installs them; `encode` and `train` install those of `predict` too."""


def missing(extra: str) -> list[str]:
    """The modules of an extra, those of `predict` included, that are not installed."""
    modules = dict.fromkeys((*EXTRAS["predict"], *EXTRAS[extra]))
    return [module for module in modules if find_spec(module) is None]


def require(extra: str) -> None:
    """Raises UsageError where modules of an extra are not installed."""
    if modules := missing(extra):
        raise UsageError(f"{', '.join(modules)} not installed; {how_to_install(extra)}")


def extra_of(module: str) -> str | None:
    """The extra that installs a module, or a submodule of one; None where no extra does."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def how_to_install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'saliency-distill[{extra}]'"
