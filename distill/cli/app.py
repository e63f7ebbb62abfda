"""The command line as a whole: its verbs, in the order of the help. Nothing heavy is imported before a verb needs it.

Standard output is the result, standard error the narration.
"""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from distill import __version__
from distill.cli.encode_verbs import bd, encode
from distill.cli.help_verbs import calibrate, catalogue, convert, doctor, fetch, inspect
from distill.cli.model_verbs import bench, demo, luma, predict, quantize, variant
from distill.cli.options import expand_groups
from distill.cli.output import print_text
from distill.cli.run_verbs import evaluate, init, run, stage_verb

PIPELINE = "Pipeline"


class _RunOrder(typer.core.TyperGroup):
    """Lists the verbs in pipeline order; typer would put `teach`, which has subcommands, last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: (name != "run", name != "teach"))


class _WithDefault(typer.core.TyperGroup):
    """`distill teach [RECIPE.toml]` is the stage, unless the first word names one of the verbs below `teach`."""

    default: str
    """The hidden verb that stands for the group itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and ctx.resilient_parsing:  # a shell asks for the first word
            return super().parse_args(ctx, args)
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        default = self.commands[self.default]
        with default.make_context(self.default, [], parent=ctx, resilient_parsing=True) as inner:
            first = next((p for p in default.params if p.param_type_name == "argument"), None)
            words = first.shell_complete(inner, incomplete) if first and not incomplete.startswith("-") else []
            found = [*super().shell_complete(ctx, incomplete), *words, *default.shell_complete(inner, incomplete)]
            return [*{item.value: item for item in found}.values()]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.params = self.commands[self.default].params  # the help shows its options beside the other verbs
        super().format_help(ctx, formatter)


class _Teach(_WithDefault):
    default = "stage"


class _Teachers(_WithDefault):
    default = "catalogue"


app = typer.Typer(
    name="distill",
    cls=_RunOrder,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="From eye-tracking video and a heavyweight teacher to a tiny recurrent saliency student, as verified ONNX.\n\n"
    "[bold]distill run[/bold] without arguments shows it all: a procedural corpus, a small teacher, CPU, a few minutes.",
    epilog="Exit codes: 0 done, 1 a gate or check failed, 2 could not run or print, 130 interrupted (run the same command to continue).",
)
teach = typer.Typer(
    cls=_Teach,
    help="Train or open the teacher; the verbs below prepare one. Does the earlier stages first, and skips what is done.",
)

teachers = typer.Typer(cls=_Teachers, help=catalogue.__doc__)

app.add_typer(teach, name="teach", rich_help_panel=PIPELINE)
app.add_typer(teachers, name="teachers", rich_help_panel="Help")
teachers.command(_Teachers.default, hidden=True)(catalogue)
teachers.command()(expand_groups(fetch))
teach.command(_Teach.default, hidden=True)(expand_groups(stage_verb("teach", "Train or open the teacher.")))
teach.command()(expand_groups(convert))
teach.command()(expand_groups(calibrate))
VERBS: dict[str, dict[str, Callable[..., None]]] = {
    PIPELINE: {
        "run": run,
        "label": stage_verb("label", "Write the teacher's soft labels."),
        "train": stage_verb("train", "Train the student."),
        "export": stage_verb("export", "Write the ONNX files, check them and give them their names."),
        "report": stage_verb("report", "Write report.html."),
        "eval": evaluate,
        "init": init,
    },
    "Model": {verb.__name__: verb for verb in (predict, demo, bench, quantize, variant, luma, encode, bd)},
    "Help": {verb.__name__: verb for verb in (inspect, doctor)},
}
for _panel, _verbs in VERBS.items():
    for _name, _verb in _verbs.items():
        app.command(_name, rich_help_panel=_panel)(expand_groups(_verb))


def _version(value: bool) -> None:
    if value:
        print_text(f"distill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version", callback=_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    pass
