"""The command `opallowlist`: the only file here that prints or exits.

    opallowlist check MODEL... [--list NAME|FILE] [--contract NAME] [--load] [--format text|json|sarif|github]
    opallowlist ops [NAME|FILE]
    opallowlist diff A B

Exit codes: 0 every model accepted (lists equal), 1 at least one refused (lists differ), 2 usage or unreadable, 130
interrupted. Anything unforeseen is 2, a full or closed standard output too: 1 always means that a model was checked and
refused. A reader that closes the pipe changes no code.
"""

import json
import os
import sys
import traceback
from enum import StrEnum
from itertools import pairwise
from typing import Annotated

import typer

from distill.opallowlist import formats, streams
from distill.opallowlist.foreign import printable, printable_lines
from distill.opallowlist.gate import NoVerdict, require_contract
from distill.opallowlist.gate import check as check_model
from distill.opallowlist.loading import NoLoader, require_onnx
from distill.opallowlist.reading.container import MAX_BYTES, Unreadable
from distill.opallowlist.report import Report
from distill.opallowlist.rules.allowlist import BUILT_IN, ListError, load_list
from distill.opallowlist.rules.contract import CONTRACTS
from distill.opallowlist.rules.scan import MAX_FINDINGS

ACCEPTED, REFUSED, NOT_RUN, INTERRUPTED = 0, 1, 2, 130

MAX_BATCH_FINDINGS = 10_000
"""Violations and warnings listed for all files of one command; beyond them, each file lists its first three."""
_FEWEST_FINDINGS = 3

app = typer.Typer(
    name="opallowlist",
    help="Which ONNX operators and graph features the downstream accepts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


Format = StrEnum("Format", ["text", "json", "sarif", "github"])
ListName = Annotated[str, typer.Option("--list", metavar="NAME|FILE", help="built-in list, text file or C source")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> int:
    if version:
        print(f"opallowlist {_version()}")
    return ACCEPTED


@app.command()
def check(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help=".onnx files", show_default=False)],
    allowlist: ListName = BUILT_IN[0],
    contract: Annotated[str | None, typer.Option(metavar="NAME", help=f"also the interface: {', '.join(CONTRACTS)}")] = None,
    load: Annotated[bool, typer.Option("--load", help="also load it in ONNX Runtime, in a child process")] = False,
    form: Annotated[Format, typer.Option("--format", help="how to report")] = Format.text,
    as_json: AsJson = False,
    max_bytes: Annotated[int, typer.Option(min=1, metavar="N", help="largest file accepted")] = MAX_BYTES,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="text: only refused models")] = False,
) -> int:
    """Accept or refuse models: exit 0 all accepted, 1 at least one refused, 2 usage or unreadable."""
    try:
        require_contract(contract)
        allowed = load_list(allowlist)
        if load:
            require_onnx()
    except (ValueError, NoLoader) as error:
        raise _Unusable(str(error)) from error
    reports: list[Report] = []
    unread: list[formats.Unread] = []
    left = MAX_BATCH_FINDINGS
    for model in models:
        at_most = max(_FEWEST_FINDINGS, min(left, MAX_FINDINGS))
        try:
            report = check_model(
                model, allowlist=allowed, contract=contract, max_bytes=max_bytes, load=load, max_findings=at_most
            )
            reports.append(report)
            left -= len(report.violations) + len(report.warnings)
        except (Unreadable, NoVerdict, NoLoader) as error:
            message = f"{model}: {error}" if isinstance(error, NoLoader) else str(error)  # the others begin with it
            unread.append(formats.Unread(model, message))
            _complain(message)
            if context.obj["debug"] and error.__cause__ is not None:
                _show_traceback(error.__cause__)
    form = Format.json if as_json else form
    if form is Format.text:
        shown = [report for report in reports if not (quiet and report.ok)]
        blocks = [_coloured(formats.text(report)) for report in shown]
        if len(models) > 1 and not (quiet and not shown):
            blocks.append(formats.summary(reports, unread))
        if blocks:
            print("\n".join(blocks))
    elif form is Format.json:
        print(formats.as_json(reports, unread))
    else:
        print(formats.sarif(reports, unread, _version()) if form is Format.sarif else formats.github(reports, unread))
    if unread:
        return NOT_RUN
    return ACCEPTED if all(report.ok for report in reports) else REFUSED


@app.command()
def ops(
    allowlist: Annotated[str, typer.Argument(metavar="NAME|FILE", help="the list")] = BUILT_IN[0], as_json: AsJson = False
) -> int:
    """Print a list, one operator per line, sorted."""
    allowed = load_list(allowlist)
    names = sorted(allowed.ops)
    print(json.dumps({"schema": formats.JSON_SCHEMA, "list": allowed.name, "ops": names}) if as_json else "\n".join(names))
    return ACCEPTED


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="a list: NAME or FILE")],
    b: Annotated[str, typer.Argument(metavar="B", help="the other list")],
    as_json: AsJson = False,
) -> int:
    """Compare two lists: '-' only in A, '+' only in B. Exit 0 if they are equal, 1 if not."""
    first, second = load_list(a), load_list(b)
    gone, new = sorted(first.ops - second.ops), sorted(second.ops - first.ops)
    if as_json:
        print(json.dumps({"schema": formats.JSON_SCHEMA, "a": a, "b": b, "only_a": gone, "only_b": new}))
    elif gone or new:
        print("\n".join([*(f"- {op}" for op in gone), *(f"+ {op}" for op in new)]))
    return REFUSED if gone or new else ACCEPTED


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code. `--debug` anywhere shows the traceback of an internal error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    streams.take_over()
    code, problem = _run([argument for argument in arguments if argument != "--debug"], "--debug" in arguments)
    if problem:
        _complain(problem)
        if "--json" in arguments or "--format=json" in arguments or ("--format", "json") in pairwise(arguments):
            print(formats.as_json([], [formats.Unread("", problem)]))
    if code != INTERRUPTED and (problem := streams.lost_output()):
        _complain(problem)
        code = NOT_RUN
    sys.exit(code)


class _Unusable(Exception):
    """The command cannot run."""


def _run(arguments: list[str], debug: bool) -> tuple[int, str]:
    """The exit code, and why nothing could be checked."""
    try:
        # Not standalone mode, in which typer turns an abort and an uncaught error into exit code 1.
        code = app(arguments, prog_name="opallowlist", standalone_mode=False, obj={"debug": debug})
        return code if isinstance(code, int) else NOT_RUN, ""
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED, ""
    except (ListError, _Unusable) as error:
        return NOT_RUN, str(error)
    except OSError as error:
        if debug:
            _show_traceback(error)
        return NOT_RUN, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except Exception as error:
        if debug:
            _show_traceback(error)
        if hasattr(error, "format_message"):  # a usage error; typer's versions differ in where its class lives
            message = error.format_message()  # empty after the help that an empty command line prints
            return NOT_RUN, f"{message} (see opallowlist --help)" if message else ""
        return NOT_RUN, f"internal error: {type(error).__name__}: {error} (--debug shows where)"


def _version() -> str:
    from distill import __version__

    return __version__


def _complain(message: str) -> None:
    print(f"opallowlist: {printable(message)}", file=sys.stderr)


def _show_traceback(error: BaseException) -> None:
    print(printable_lines("".join(traceback.format_exception(error))), file=sys.stderr)


def _coloured(block: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return block
    colours = {"✗": "red", "!": "yellow"}
    verdict, *lines = block.splitlines()
    styled = [typer.style(verdict, fg="red" if ": refused  " in verdict else "green")]
    for line in lines:
        colour = colours.get(line.lstrip()[:1])
        styled.append(typer.style(line, fg=colour) if colour else line)
    return "\n".join(styled)
