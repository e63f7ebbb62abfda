"""The one check between a graph and its name: the gate with the file's contract, loading included, size, parity; and its limits.

Every ONNX file that ships passes `verify` first: image, step, variants, int8. Nothing here writes a file; the caller does, with
the graph that passed. Needs no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import onnx

from distill.opallowlist import check

OPSET, IR_VERSION = 17, 8  # the downstream's house opset; an IR that onnxruntime loads from 1.16 on
MAX_BYTES = 2_000_000
TOLERANCE = 1e-5  # maximum absolute difference of saliency maps, the downstream's own bound


class ExportRefused(Exception):
    """The gate or parity refused a graph; nothing was written under its name."""


class Comparison(Protocol):
    """The result of running a graph; `failures` gives the reasons, one line each, why it may not ship."""

    @property
    def failures(self) -> list[str]: ...


C = TypeVar("C", bound=Comparison)


def largest_difference(parity: Mapping[str, Any]) -> float:
    """Between the maps of a student's ONNX files and PyTorch's; parity: the fields of `student.Parity`, as NAME.parity.json has them."""
    return max(parity["image_max_abs"], parity["step_max_abs"])


def verify(
    graphs: Mapping[str, tuple[onnx.ModelProto, str]], compare: Callable[[], C], more_failures: Sequence[str] = ()
) -> tuple[C, dict[str, Any]]:
    """Checks graphs that ship together; returns their comparison and the gate's report on each, as plain values.

    graphs: by a label for the messages: the graph, and the name of its gate contract. compare: runs them; called where all
    else passed, since a graph that the gate refuses may crash this process. more_failures: those that the caller has found already.
    Raises ExportRefused naming every failure.
    """
    failures, reports = list(more_failures), {}
    for label, (model, contract) in graphs.items():
        report = check(model, contract=contract, load=True)
        failures += [f"{label}: {violation}" for violation in report.violations]
        reports[label] = report.to_dict()
        if (size := model.ByteSize()) > MAX_BYTES:
            failures.append(f"{label}: {size:,} bytes, more than the {MAX_BYTES:,} of the contract")
    if not failures:
        try:
            comparison = compare()
        except ValueError as error:  # a graph does not load, or does not run
            failures = [str(error)]
        else:
            failures = comparison.failures
    if failures:
        raise ExportRefused("; ".join(failures))
    return comparison, reports
