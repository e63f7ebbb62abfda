"""The benchmark's count of the work, on which its share of the ceiling depends."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.teachers.internvideo2 import InternVideo2Config
from distill.teachers.visage import VisageConfig, VisageNet

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "label_throughput.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("label_throughput", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_place(y, a, b, out_shape=None, **_):
    """torch's counter has addmm, but not the in-place one."""
    return 2 * a[0] * a[1] * b[1]


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ("S", {}),
        ("B", {"experts": (1,), "lora_rank": 0}),
        ("B", {"experts": (2,)}),
        ("L", {"shared_trunk": False}),
        ("6B", {"lora_rank": 0}),
    ],
)
def test_the_formula_is_what_torch_counts(benchmark, size, fields):
    config = VisageConfig.released(size, **fields)
    with torch.device("meta"):
        net, clip = VisageNet(config).eval(), torch.empty(1, 3, 20, 224, 224)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter, torch.no_grad():
        net(clip)
    assert benchmark.window_flops(config) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_6b_costs_what_is_published(benchmark):
    both = VisageConfig.released("6B", shared_trunk=False)
    experts = sum(benchmark.expert_flops(both, kind) for kind in (1, 2))
    assert (benchmark.window_flops(both) - experts) / 2 == pytest.approx(76.5e12, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_is_measured_or_says_why_not(benchmark, monkeypatch, precision):
    trunk = InternVideo2Config(width=16, heads=2, mlp_width=16, frames=4, px=16, patch=8)
    small = VisageConfig(trunk=trunk, lora_rank=4, out_px=12)
    options = Namespace(precision=precision, compile=False, batch=0, windows=3, seconds=0.0)
    row = benchmark.measure("S", small, torch.device("cpu"), options).row(1e12).split()
    assert row[0] == "S" and row[2] == "M" and float(row[4]) > 0 and row[7].endswith("%")
    monkeypatch.setattr(benchmark, "free_memory", lambda _: 1000)
    assert (
        benchmark.measure("6B", small, torch.device("cpu"), options) == "  6B  skipped: 0.0 GiB of weights, 0.0 GiB free on cpu"
    )


def test_the_ceiling_is_a_rate_and_its_shape(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "CPU_SHAPES", ((8, 16, 24), (32, 32, 32)))
    rate, shape = benchmark.ceiling(torch.device("cpu"), torch.float32, 0.01)
    assert rate > 0 and shape in benchmark.CPU_SHAPES
