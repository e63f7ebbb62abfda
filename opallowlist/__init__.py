"""Which operators and graph features the downstream accepts, and the check that CI, exporters and tests run.

    from distill.opallowlist import check
    report = check("student.onnx", contract="saliency-image")
    report.ok, report.violations

Checking needs only the standard library (the command line adds typer); models in memory come from `onnx`. With `load=True`
a child process gives the model to onnx.checker and ONNX Runtime.
"""

from distill.opallowlist.gate import NoVerdict, assert_allowed, check
from distill.opallowlist.loading import NoLoader
from distill.opallowlist.reading.container import MAX_BYTES, Unreadable
from distill.opallowlist.report import RULES, Facts, Report, Violation
from distill.opallowlist.rules.allowlist import Allowlist, ListError, load_list
from distill.opallowlist.rules.contract import CONTRACTS

__all__ = ["CONTRACTS", "MAX_BYTES", "RULES", "Allowlist", "Facts", "ListError", "NoLoader", "NoVerdict", "Report"]
__all__ += ["Unreadable", "Violation", "assert_allowed", "check", "load_list"]
