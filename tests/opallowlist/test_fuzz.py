"""Damaged files: never a traceback, never a hang, and never accepted where the downstream's scanner refuses.

2,000 files by default; before a change of the reader run `FUZZ=20000 pytest tests/opallowlist/test_fuzz.py`. Deterministic:
case N is always the same file.
"""

import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import onnx

from distill.opallowlist import Report, check, load_list, wire
from distill.opallowlist.formats import as_json, github, sarif, text

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden")) / "scanner"
CASES = int(os.environ.get("FUZZ", "2000"))


def seeds(extra: list[bytes]) -> list[bytes]:
    files = [path.read_bytes() for path in sorted(GOLDEN.glob("*.onnx"))]
    return [data for data in [*files, *extra] if data]


def damaged(number: int, corpus: list[bytes]) -> bytes:
    """Case `number`: bytes flipped, cut, removed, repeated, overwritten with extremes, or spliced with another file."""
    rng = random.Random(number)
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        [kind] = rng.choices(range(7), (8, 4, 1, 1, 2, 1, 1))  # mostly single bytes, which reach past the parser
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randrange(1, 20)]
        elif kind == 4:
            other = rng.choice(corpus)
            data[at:] = other[rng.randrange(len(other)) :]
        elif kind == 5:
            data[at:at] = data[rng.randrange(len(data) + 1) :][: rng.randrange(1, 60)]
        else:
            data[at:at] = rng.choice((b"\xff" * 9 + b"\x01", b"\x0a\xff\xff\xff\xff\x07", b"\x3a\x80\x80\x80\x80\x08"))
    return bytes(data)


def peak_megabytes() -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def test_damaged_files_get_a_verdict(scanner, image, step):
    Path("/proc/self/clear_refs").write_text("5")  # other tests of this process had peaks of their own
    before = peak_megabytes()
    corpus = seeds([image.SerializeToString(), step.SerializeToString()])
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    allowed = load_list("libvmaf")
    batch: list[Report] = []
    for number in range(CASES):
        data = damaged(number, corpus)
        start = time.perf_counter()
        report = check(data, allowlist=allowed, contract=("saliency", None)[number % 2])
        slowest = max(slowest, time.perf_counter() - start)
        assert text(report).encode()
        batch.append(report)
        if len(batch) == 500 or number == CASES - 1:
            for shown in (as_json(batch, []), github(batch, []), sarif(batch, [], "0.1.0")):
                assert shown.encode()
            batch.clear()
        readable = True
        try:
            onnx.ModelProto.FromString(data)
        except Exception:  # protobuf's DecodeError lives in another module per implementation
            readable = False
        if report.ok:
            assert readable and scanner(data) == "", number
        if not readable:
            assert not report.ok
            try:
                wire.decode(data)
            except wire.Malformed:
                pass
            else:
                raise AssertionError(f"case {number}: protobuf cannot read it, wire can")
        outcomes[report.violations[0].rule if report.violations else "accepted"] += 1
    peak = peak_megabytes() - before
    print(f"\n{CASES} files, slowest {slowest * 1e3:.1f} ms, {peak:.0f} MB more at the peak, {dict(outcomes.most_common())}")
    assert slowest < 2 and peak < 500
    assert len(outcomes) > 5, "the damage should reach more than one rule"
