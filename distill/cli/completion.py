"""Shell completion: the words that an option takes, with a word of help. `distill --install-completion` sets it up.

A shell asks at every Tab, so nothing slow is imported, and every word is known without the extras.
"""

import dataclasses
import typing
from collections.abc import Callable
from textwrap import shorten

from typer.models import OptionInfo, ParameterInfo

from distill.labels.catalogue import CATALOGUE
from distill.opallowlist.foreign import toml_text
from distill.recipe import keys
from distill.recipe.keys import SECTIONS, STUDENT_ABOUT

HELP_WIDTH = 60
Completer = Callable[[str], list[tuple[str, str]]]
"""From what stands before the cursor to words that begin with it, each with its help, which may be empty."""


def words(*choices: str, between: str = "") -> Completer:
    """One of these words; or several with `between` between them."""
    return _of(lambda: dict.fromkeys(choices, ""), between)


def _of(choices: Callable[[], dict[str, str]], between: str = "") -> Completer:
    def complete(incomplete: str) -> list[tuple[str, str]]:
        before, mark, last = incomplete.rpartition(between) if between else ("", "", incomplete)
        return [(before + mark + word, _short(about)) for word, about in choices().items() if word.startswith(last)]

    return complete


def _short(text: str) -> str:
    """On one line of a terminal beside a word: shells take a second line for another word."""
    return shorten(text, HELP_WIDTH, placeholder=" ...")


def _teachers() -> dict[str, str]:
    return {entry.name: entry.about for entry in reversed(CATALOGUE)}


def _teachers_and_variants() -> dict[str, str]:
    variants = {
        f"{entry.name}@{variant}": f"{entry.name}, as for {variant}" for entry in CATALOGUE for variant in entry.variants
    }
    return _teachers() | variants


def _recipes() -> dict[str, str]:
    from distill.recipe.shipped import shipped

    return shipped()


def recipe_key(incomplete: str) -> list[tuple[str, str]]:
    """`section.key=` with its default and meaning; after the `=`, the words that the key accepts."""
    found, defaults = [], keys.Recipe()
    for section, section_type in SECTIONS.items():
        kinds = typing.get_type_hints(section_type)
        for field in dataclasses.fields(section_type):
            name = f"{section}.{field.name}="
            if incomplete.startswith(name):
                values = ("true", "false") if kinds[field.name] is bool else field.metadata.get("among", ())
                found += [(name + value, "") for value in values if (name + value).startswith(incomplete)]
            elif name.startswith(incomplete):
                default = getattr(getattr(defaults, section), field.name)
                text = toml_text(list(default) if isinstance(default, tuple) else default)
                found.append((name, _short(f"{text}; {field.metadata.get('about') or STUDENT_ABOUT[field.name]}")))
    return found


teacher = _of(_teachers)
fetched_teacher = _of(lambda: {entry.name: entry.about for entry in CATALOGUE if entry.published})
recipe = _of(_recipes)
BY_OPTION: dict[str, Completer] = {
    "--corpus": words(*keys.CORPORA, between=","),
    "--teacher": _of(_teachers_and_variants, between="+"),
    "--accept-licence": teacher,
    "--set": recipe_key,
    "--protocol": words(*keys.PROTOCOLS),
    "--baseline": words("mean", "ema=", "max", "motion-weighted"),
    "--kind": words("internvideo2", "visage", "unisal", "tased", "salfom"),
    "--map": words("centre", "none"),
    "--codec": words("x264", "x265"),
    "--preset": words(
        "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
    ),
    "--tune": words("film", "animation", "grain", "stillimage", "psnr", "ssim", "fastdecode", "zerolatency"),
    "--profile": words(
        "baseline", "main", "high", "high10", "high422", "high444", "main10", "main422-10", "main444-10", "main12"
    ),
    "--mapping": words("log", "log-strong", "linear", between=","),
    "--block": words("16", "32", "64"),
    "--neutral": words("bits", "mean", "off"),
    "--format": words("kvazaar", "svt-av1", "addroi", "int8"),
    "--measures": words("psnr", "ssim", "xpsnr", "vmaf", between=","),
    "--rate-control": words("crf", "2pass", "vbv"),
    "--input": words("yuv420", "nv12", "rgb", "luma"),
    "--output": words("map", "block-map"),
    "--matrix": words("bt601", "bt709", "bt2020"),
    "--range": words("limited", "full"),
    "--depth": words("8", "10"),
}
"""What completes an option, whichever verb it belongs to, unless the option states another."""


def complete_by_name(name: str, declared: ParameterInfo) -> None:
    """Gives an option, the parameter `name` of a verb, its words."""
    given = (declared.default, *(declared.param_decls or ()))  # in an annotation typer takes its first name for a default
    option = next((text for text in given if isinstance(text, str) and text.startswith("--")), f"--{name.replace('_', '-')}")
    if isinstance(declared, OptionInfo) and declared.autocompletion is None:
        declared.autocompletion = BY_OPTION.get(option)
