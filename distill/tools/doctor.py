"""Facts about this machine, for a person or a bug report."""

import shutil
from typing import Any

from distill.run.directory import environment, missing_modules
from distill.run.parallel import usable_cores


def machine() -> dict[str, Any]:
    """Versions, device, disk, and which packages of the `train` extra are missing (a comma-separated string)."""
    facts: dict[str, Any] = dict(environment())
    facts["cores"] = usable_cores()
    facts["free disk here"] = f"{shutil.disk_usage('.').free / 1e9:.0f} GB"
    missing = missing_modules()
    if "torch" not in missing:
        from distill.run.device import choose  # needs torch, which may be missing

        facts["device"] = choose("auto")[1]
    facts["missing"] = ", ".join(missing)
    return facts
