"""Arguments and options that several verbs share, each declared once; and groups of them as dataclasses.

A verb is a plain function. Where it takes a parameter whose type is a dataclass of this file, `expand_groups` puts the
fields of the dataclass on the command line and hands the verb the filled dataclass.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from distill.cli.completion import complete_by_name

FROM = "another run: its recipe where none is given, and its stages as far as they agree; with --out"
SHIPPED = "default: the student that ships with this package"
ACCEPT = "teacher.accept_licence: a teacher whose licence you have cleared for your use"
MAPPING = "from saliency to offsets: log (as a density), log-strong (gains more, costs the rest more), linear (as a mask)"
STRENGTH = (
    "log: QP per doubling of the saliency, 0 to 3; default 0.75, which saves a sixth of the rate where people look and costs no VMAF; "
    "log-strong 2.5: 30 % there, for 22 % more over the whole frame. linear: largest offset, up to 12; default 4"
)
NEUTRAL = "what stays as without a map: bits (the size, about), mean (the mean offset is 0), off (nothing)"

RecipeArgument = Annotated[Path | None, Argument(metavar="RECIPE.toml", help="recipe; `distill init` writes one")]
CorpusOption = Annotated[str | None, Option(help="corpus.name: dhf1k, gaze-table, ...; several: dhf1k:1,images:0.5")]
LayoutOption = Annotated[str | None, Option("--corpus", help="name of the corpus, where its folders do not show it")]
RootOption = Annotated[
    list[Path] | None,
    Option(metavar="DIR", help="corpus.root: folder of the corpus, whose layout is recognised; repeatable, for several"),
]
SizesOption = Annotated[
    list[str] | None, Option("--size", metavar="WxH", help="frame size; repeatable; default 640x360, 1920x1080")
]
ModelOption = Annotated[
    Path | None, Option("--model", "-m", metavar="ONNX", help=f"ONNX student, step or image file; {SHIPPED}")
]
JsonOption = Annotated[bool, Option("--json", help="one JSON object on standard output")]
QuietOption = Annotated[bool, Option("--quiet", "-q", help="no narration on standard error")]


@dataclass(frozen=True)
class Output:
    """How a verb reports."""

    as_json: JsonOption = False
    quiet: QuietOption = False


@dataclass(frozen=True)
class RunOptions:
    """Which run: the recipe keys that have their own option, and the run directory."""

    root: RootOption = None
    teacher: Annotated[str | None, Option(help="teacher.name; `distill teachers` lists them; several: a+b")] = None
    maps: Annotated[list[Path] | None, Option(metavar="DIR", help="teacher.maps: folder of soft labels; repeatable")] = None
    accept: Annotated[list[str] | None, Option("--accept-licence", metavar="NAME", help=ACCEPT)] = None
    out: Annotated[Path | None, Option("--out", "-o", help="run directory; default runs/CORPUS-TEACHER or runs/RECIPE")] = None
    sets: Annotated[list[str] | None, Option("--set", metavar="SECTION.KEY=VALUE", help="any recipe key; repeatable")] = None
    force: Annotated[bool, Option("--force", help="start over: replace the run in --out")] = False
    source: Annotated[Path | None, Option("--from", metavar="RUN", help=FROM)] = None


@dataclass(frozen=True)
class EncoderOptions:
    """Which encoder, and how a saliency map becomes QP offsets."""

    codec: Annotated[str, Option(help="x264 or x265")] = "x264"
    preset: Annotated[str, Option(help="preset of the encoder")] = "medium"
    mapping: Annotated[str, Option(help=MAPPING)] = "log"
    strength: Annotated[float | None, Option(help=STRENGTH)] = None
    block: Annotated[int, Option(help="block size in pixels: 16, 32, 64")] = 16
    prior: Annotated[float | None, Option(help="share of a centred Gaussian in a model's map; default 0.2, linear 0.5")] = None
    neutral: Annotated[str, Option(help=NEUTRAL)] = "bits"


def expand_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as typer needs it: every parameter that is a dataclass is replaced by the fields of that dataclass, and shells
    know the words of every option."""
    hints = typing.get_type_hints(verb, include_extras=True)
    parameters, groups, keyword = [], {}, inspect.Parameter.KEYWORD_ONLY
    for name, parameter in inspect.signature(verb).parameters.items():
        if dataclasses.is_dataclass(group := hints[name]):
            own = typing.get_type_hints(group, include_extras=True)
            groups[name] = dataclasses.fields(group)
            parameters += [inspect.Parameter(f.name, keyword, default=f.default, annotation=own[f.name]) for f in groups[name]]
        else:
            parameters.append(parameter.replace(kind=keyword, annotation=group))
    for parameter in parameters:
        for declared in getattr(parameter.annotation, "__metadata__", ()):
            complete_by_name(parameter.name, declared)

    @functools.wraps(verb)
    def expanded(**values: Any) -> None:
        for name, fields in groups.items():
            values[name] = hints[name](**{f.name: values.pop(f.name) for f in fields})
        verb(**values)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return expanded
