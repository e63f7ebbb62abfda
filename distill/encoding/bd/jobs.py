"""The clips of a comparison, one after the other, or at the same time in processes.

After Ctrl-C every process ends with the encode that it is at; also where the process that started them was killed.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.synchronize import Event
from typing import Any

from distill.encoding.bd.clips import Work, measure_clip
from distill.encoding.bd.excerpts import Source
from distill.run.errors import Interrupted
from distill.run.progress import Narrator

POLL = 0.2  # seconds between looks at whether the user wants to stop


def measure_clips(sources: Sequence[Source], work: Work, jobs: int, narrator: Narrator) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names and the results of clips, as they are done. jobs: how many at the same time. Raises Interrupted."""
    jobs = min(jobs, len(sources))
    return _in_processes(sources, work, jobs, narrator) if jobs > 1 else _one_by_one(sources, work, narrator)


def _one_by_one(sources: Sequence[Source], work: Work, narrator: Narrator) -> Iterator[tuple[str, dict[str, Any]]]:
    with narrator.bar("bd", len(sources) * work.encodes, unit="encodes") as bar:

        def step(note: str, encodes: int) -> None:
            bar.advance(encodes, note)
            if narrator.stop() and bar.done < bar.total:
                raise Interrupted(f"bd, at {note}; nothing is saved")

        for source in sources:
            yield source.name, measure_clip(source, work, step)


def _in_processes(
    sources: Sequence[Source], work: Work, jobs: int, narrator: Narrator
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """The results of clips as they are done."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with (
        narrator.bar("bd", len(sources) * work.encodes, unit="encodes") as bar,
        ProcessPoolExecutor(jobs, context, _start_worker, (stop,)) as pool,
    ):
        try:
            pending = {pool.submit(_in_worker, source, work) for source in sources}
            while pending:
                finished, pending = wait(pending, POLL, FIRST_COMPLETED)
                for name, facts in [future.result() for future in finished]:
                    bar.advance(work.encodes, name)
                    yield name, facts
                if pending and narrator.stop():
                    raise Interrupted("bd; nothing is saved")
        finally:  # the workers end with the encode that they are at
            stop.set()
            pool.shutdown(cancel_futures=True)


_stop: Event
_busy = threading.Lock()


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Ends this process after the encode that it is at, so that it leaves no files, when its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _stop.set()
    with _busy:
        os._exit(1)


def _in_worker(source: Source, work: Work) -> tuple[str, dict[str, Any]]:
    def step(note: str, encodes: int) -> None:
        if _stop.is_set():
            raise Interrupted(f"bd, at {note}")

    with _busy:
        return source.name, measure_clip(source, work, step)
