import numpy as np
import pytest

from distill.labels.store import LabelStore
from distill.run.errors import UsageError
from distill.run.files import ArrayFile
from distill.teachers.maps import MapsTeacher
from distill.tools.inspect_files import describe

ME = {"name": "me", "fingerprint": "a" * 16, "source": "test", "license": "x"}
OTHER = {**ME, "name": "other", "fingerprint": "b" * 16}


def logits(frames=5, seed=0):
    return np.random.default_rng(seed).normal(-2, 3, (frames, 6, 8)).astype(np.float32)


def test_labels_come_back_as_float16_from_disk(tmp_path):
    store = LabelStore.create(tmp_path, ME)
    store.write("001", logits())
    read = LabelStore.open(tmp_path).read("001", 5)
    assert isinstance(read, ArrayFile) and read.shape == (5, 6, 8) and read[1:3].dtype == np.float16
    assert np.allclose(read[:], logits(), atol=0.01)
    assert "001" in store and "002" not in store


def test_a_store_refuses_another_teacher(tmp_path):
    LabelStore.create(tmp_path, ME).write("001", logits())
    assert LabelStore.create(tmp_path, ME).teacher == ME
    with pytest.raises(UsageError, match=r"labels of me \(aaaaaaaaaaaa\), not of other \(bbbbbbbbbbbb\)"):
        LabelStore.create(tmp_path, OTHER)


def test_labels_without_a_teacher_are_refused(tmp_path):
    np.save(tmp_path / "001.npy", logits())
    with pytest.raises(UsageError, match=r"no store\.json"):
        LabelStore.create(tmp_path, ME)


def test_nan_is_named_and_nothing_is_stored(tmp_path):
    bad = logits()
    bad[3, 2, 2] = np.nan
    store = LabelStore.create(tmp_path, ME)
    with pytest.raises(UsageError, match="clip 007, frame 4"):
        store.write("007", bad)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store.json"]


def test_later_damage_is_named(tmp_path):
    store = LabelStore.create(tmp_path, ME)
    store.write("001", logits())
    with pytest.raises(UsageError, match="the clip has 6 frames"):
        store.read("001", 6)
    bad = logits().astype(np.float16)
    bad[2] = np.inf
    np.save(tmp_path / "001.npy", bad)
    with pytest.raises(UsageError, match="NaN or infinity at frame 3 of clip 001"):
        store.read("001", 5)
    (tmp_path / "001.npy").write_bytes((tmp_path / "001.npy").read_bytes()[:90])
    with pytest.raises(UsageError, match="is damaged"):
        store.read("001", 5)
    (tmp_path / "001.npy").write_bytes(b"")
    with pytest.raises(UsageError, match="is damaged"):
        store.read("001", 5)
    with pytest.raises(UsageError, match="is missing"):
        store.read("002", 5)


def test_only_whole_labels_of_every_frame_count_as_labelled(tmp_path):
    store = LabelStore.create(tmp_path, ME)
    store.write("001", logits())
    path, whole = tmp_path / "001.npy", (tmp_path / "001.npy").read_bytes()
    assert store.holds("001", 5) and not store.holds("001", 6) and not store.holds("002", 5)
    for damaged in (
        b"",
        whole[:4],
        whole[:90],
        whole[:-1],
        whole + b"x",
        b"PK" + whole[2:],
        whole.replace(b"(5,", b"(9,"),
        whole.replace(b"<f2", b"<i2"),
    ):
        path.write_bytes(damaged)
        assert not store.holds("001", 5)
    with pytest.raises(UsageError, match=r"holds int16 labels of shape \(5, 6, 8\), the clip has 5 frames"):
        store.read("001", 5)
    (tmp_path / "002.npy").write_bytes(b"")
    facts = describe(tmp_path)
    assert facts["broken or NaN"] == ["001.npy", "002.npy"] and facts["clips"] == 2


def write_npz(folder, name="001", frames=5, peak=0.5):
    maps = np.random.default_rng(0).integers(0, 256, (frames, 6, 8), np.uint8)
    np.savez(folder / f"{name}.npz", maps=maps, peak=np.full(frames, peak, np.float32))
    return maps


def test_the_maps_teacher_inverts_the_sigmoid(tmp_path):
    maps = write_npz(tmp_path)
    saliency = MapsTeacher(tmp_path).logits("001", 5).sigmoid().numpy()
    assert np.allclose(saliency, np.clip(maps / 255 * 0.5, 0.5 / 510, 1), atol=1e-5)


def test_the_maps_teacher_reads_pngs_by_name(tmp_path):
    import cv2

    (tmp_path / "001").mkdir()
    for t in range(12):  # unpadded: 10.png comes after 9.png
        cv2.imwrite(str(tmp_path / "001" / f"{t}.png"), np.full((6, 8), 20 * (t + 1), np.uint8))
    saliency = MapsTeacher(tmp_path).logits("001", 12).sigmoid().numpy()
    assert np.allclose(saliency[:, 0, 0] * 255, 20 * np.arange(1, 13), atol=1e-2)


def test_large_maps_are_averaged_before_the_logit(tmp_path):
    maps = np.zeros((2, 180, 320), np.uint8)
    maps[:, :, 160:] = 200
    np.savez(tmp_path / "001.npz", maps=maps, peak=np.ones(2, np.float32))
    saliency = MapsTeacher(tmp_path).logits("001", 2).sigmoid()
    assert saliency.shape == (2, 90, 160) and saliency[0, 40, 120] == pytest.approx(200 / 255, abs=1e-5)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda f: write_npz(f, "002"), "nothing for clip 001"),
        (lambda f: write_npz(f, frames=4), "has 4 maps, clip 001 has 5 frames"),
        (lambda f: write_npz(f, peak=np.nan), r"001\.npz, frame 1: peak is nan"),
        (lambda f: (f / "001.npz").write_text("<html>"), "is not an npz file with"),
        (lambda f: np.savez(f / "001.npz", maps=np.zeros((5, 6, 8)), peak=np.zeros(5)), "expected maps uint8"),
        (lambda f: (f / "001").mkdir(), "holds no PNGs"),
    ],
)
def test_unusable_maps_are_named(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(ValueError, match=message):
        MapsTeacher(tmp_path).logits("001", 5)


def test_a_folder_without_maps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither"):
        MapsTeacher(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        MapsTeacher(tmp_path / "none")


def test_the_fingerprint_follows_the_contents(tmp_path):
    write_npz(tmp_path)
    before = MapsTeacher(tmp_path).fingerprint()
    assert MapsTeacher(tmp_path).fingerprint() == before
    write_npz(tmp_path, peak=0.25)
    assert MapsTeacher(tmp_path).fingerprint() != before
