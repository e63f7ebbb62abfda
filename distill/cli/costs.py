"""What a run will take, in words: time and disk space as `run.estimate` reckons them."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.run.estimate import Estimate

LONG = 600  # seconds from which on it is said what a GPU would take


def summary(cost: "Estimate", to_do: Collection[str], path: Path) -> list[str]:
    """What the stages that are to do take, in a few sentences. path: of the run, which may not be there yet."""
    from distill.run.estimate import FOLDERS

    stages = [stage for stage in to_do if cost.seconds.get(stage, 0) >= 1]
    total, lines = sum(cost.seconds[stage] for stage in stages), list[str]()
    each = [", ".join(f"{stage} {told(cost.seconds[stage])}" for stage in stages)] if stages else []
    each += [f"{stage} not estimated" for stage in cost.unknown if stage in to_do]
    if each:
        lines.append(f"{f'about {told(total)}' if stages else 'time'} on {cost.on}: {'; '.join(each)}")
    disk = {FOLDERS[stage]: size for stage, size in cost.disk.items() if stage in to_do}
    free, needed = _free_bytes(path), sum(disk.values())
    if needed:
        kinds = ", ".join(f"{name} {told_bytes(size)}" for name, size in disk.items())
        lines.append(f"disk: about {told_bytes(needed)} ({kinds}); {told_bytes(free)} free")
    if needed > free:
        lines.append("disk: NOT ENOUGH; free some, name another --out, or lower train.sample_fps")
    faster = [stage for stage in stages if cost.seconds[stage] > 2 * cost.gpu.get(stage, cost.seconds[stage])]
    if faster and total > LONG:
        lines.append(f"on one H100 instead: {', '.join(f'{stage} {told(cost.gpu[stage])}' for stage in faster)}")
    return lines


def _free_bytes(path: Path) -> int:
    """The space that is free where `path` is or will be."""
    path = path.absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def told(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for size, unit, limit in ((1, "s", 100), (60, "min", 100), (3600, "h", 48)):
        if seconds < size * limit:
            return f"{_short(seconds / size)} {unit}"
    return f"{_short(seconds / 86400)} days"


def told_bytes(count: float) -> str:
    """`550 kB`, `190 MB`, `28 GB`."""
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{_short(count / size)} {unit}"
    return f"{_short(count / 1e3)} kB"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0") if value >= 1 else "1" if value > 0 else "0"
