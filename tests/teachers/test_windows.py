import numpy as np
import pytest
import torch
from torch import Tensor

from distill.teachers.windows import BatchSize, cut_windows, exact_float32, infer, shares, windows_that_fit


def test_windows_are_cut_as_released() -> None:
    windows = [window.tolist() for window in cut_windows(11, stride=2, length=4)]
    assert windows == [[0, 2, 4, 6], [8, 10], [1, 3, 5, 7], [9]]


def test_windows_that_overlap_begin_with_the_end_of_the_one_before() -> None:
    windows = [window.tolist() for window in cut_windows(11, stride=1, length=4, overlap=0.5)]
    assert windows == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9], [8, 9, 10]]
    windows = [window.tolist() for window in cut_windows(6, stride=1, length=4, overlap=0.5)]
    assert windows == [[0, 1, 2, 3], [2, 3, 4, 5]], "a last window that another holds whole says nothing new"


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("stride", [1, 5])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 16, 53])
def test_every_frame_is_in_a_window_and_its_shares_sum_to_one(count: int, stride: int, overlap: float) -> None:
    windows = cut_windows(count, stride, 4, overlap)
    total, seen = np.zeros(count), np.zeros(count, int)
    for window, share in zip(windows, shares(windows, count, 4), strict=True):
        assert 1 <= len(window) <= 4 and (np.diff(window) == stride).all() and (share > 0).all()
        total[window] += share
        seen[window] += 1
    assert np.allclose(total, 1) and (seen >= 1).all()
    if overlap == 0:
        assert (seen == 1).all() and (total == 1).all()
    if overlap == 0.5 and count == 53 and stride == 1:
        assert (seen[2:-2] == 2).all()


def test_a_window_counts_most_in_its_middle() -> None:
    windows = cut_windows(8, 1, 4, 0.5)
    assert [share.tolist() for share in shares(windows, 8, 4)] == [
        [1, 1, pytest.approx(2 / 3), pytest.approx(1 / 3)],
        [pytest.approx(1 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(1 / 3)],
        [pytest.approx(1 / 3), pytest.approx(2 / 3), 1, 1],
    ]


def test_an_overlap_of_everything_is_refused() -> None:
    with pytest.raises(ValueError, match=r"it must lie in \[0, 1\)"):
        cut_windows(8, 1, 4, 1.0)


def test_logits_of_overlapping_windows_are_averaged_by_their_shares() -> None:
    """A network that returns each frame's position in its window: the result is the mean position, weighted by shares."""

    def network(frames_BT: Tensor) -> Tensor:
        places = torch.arange(4.0).expand(len(frames_BT), 4)
        return (places + 100 * frames_BT)[..., None, None]

    windows = cut_windows(6, 1, 4, 0.5)
    logits = infer(network, torch.arange(6), windows, 4, BatchSize("cpu"))
    expected = [0, 1, 2 * 2 / 3 + 0 / 3, 3 / 3 + 1 * 2 / 3, 2, 3]
    assert logits.dtype == torch.float32
    assert logits[:, 0, 0].tolist() == pytest.approx([100 * i + e for i, e in enumerate(expected)])


def test_padding_of_the_last_window_is_ignored() -> None:
    seen = []

    def network(frames_BT: Tensor) -> Tensor:
        seen.append(frames_BT.tolist())
        return frames_BT[..., None, None].float() + torch.arange(4.0)[:, None, None]

    logits = infer(network, torch.arange(5), cut_windows(5, 1, 4), 4, BatchSize("cpu"))
    assert seen == [[[0, 1, 2, 3], [4, 4, 4, 4]]]
    assert logits[:, 0, 0].tolist() == [0, 2, 4, 6, 4]


# --- how many at once -------------------------------------------------------------------------------------------------


def outer_product(index_N: Tensor) -> Tensor:
    return index_N[:, None].float()


@pytest.mark.parametrize(("fixed", "threads"), [(0, 1), (0, 3), (1, 1), (4, 1), (5, 2)])
def test_on_the_cpu_the_same_pairs_go_together_whatever_the_threads(fixed: int, threads: int) -> None:
    pairs = []

    def step(index_N: Tensor) -> Tensor:
        pairs.append(index_N.tolist())
        assert torch.get_num_threads() == 1 and torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        return outer_product(index_N)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            out = torch.stack(list(BatchSize("cpu", fixed).passes(step, torch.arange(7))))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert sorted(pairs) == [[0, 1], [2, 3], [4, 5], [6]]
    assert out.flatten().tolist() == list(range(7))


def test_an_error_in_a_thread_is_raised_and_the_rest_is_dropped() -> None:
    def step(index_N: Tensor) -> Tensor:
        raise ValueError(f"window {index_N[0].item()}")

    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="window 0"):
        list(BatchSize("cpu").passes(step, torch.arange(100)))
    assert torch.get_num_threads() == threads


def test_a_batch_that_does_not_fit_is_halved_and_that_is_remembered() -> None:
    tried = []

    def step(index_N: Tensor) -> Tensor:
        tried.append(len(index_N))
        if len(index_N) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outer_product(index_N)

    batch = BatchSize("cuda", fixed=8)
    out = torch.stack(list(batch.passes(step, torch.arange(10))))
    assert out.flatten().tolist() == list(range(10))
    assert tried == [8, 4, 2, 2, 2, 2, 2]
    tried.clear()
    list(batch.passes(step, torch.arange(3)))
    assert tried == [2, 1]


def test_one_window_that_does_not_fit_is_an_error() -> None:
    def step(index_N: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        list(BatchSize("cuda", fixed=4).passes(step, torch.arange(10)))


@pytest.mark.parametrize(("needed", "free", "windows"), [(10, 100, 8), (10, 60, 4), (10, 5, 1), (0, 100, 8), (10, 0, 1)])
def test_the_batch_follows_from_free_memory(needed: int, free: int, windows: int) -> None:
    assert windows_that_fit(needed, free) == windows


def test_the_first_pass_on_cuda_measures_and_the_next_takes_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    figures = {
        "memory_allocated": 2 * gib, "max_memory_allocated": 5 * gib, "memory_reserved": 6 * gib,
        "mem_get_info": (8 * gib, 20 * gib), "reset_peak_memory_stats": None,
    }  # fmt: skip
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    sizes = []

    def step(index_N: Tensor) -> Tensor:
        sizes.append(len(index_N))
        return outer_product(index_N)

    batch = BatchSize("cuda")
    list(batch.passes(step, torch.arange(7)))
    assert sizes == [1, 3, 3], "3 GiB a window, 8 free and 4 idle in torch's own pool, four fifths of which are usable"


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_float32_is_exact_inside_and_as_before_afterwards(exact: bool) -> None:
    def settings() -> tuple[bool, str]:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    before = settings()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ValueError, match="inside"), exact_float32(exact):
            assert settings() == ((False, "highest") if exact else (True, "high"))
            raise ValueError("inside")
        assert settings() == (True, "high")
    finally:
        torch.set_float32_matmul_precision(before[1])
    assert settings() == before
