"""Archives of images: what is read, and what is refused before memory is taken."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invconv import InputError, OutOfMemoryError
from invconv.engine import memory
from invconv.lightning import ImageDataModule
from invconv.lightning.archives import MOST_CLASSES, read_archive

PARTS = ("train", "val", "test")
X = np.random.default_rng(0).integers(256, size=(12, 3, 8, 8), dtype=np.uint8)
Y = np.arange(12) % 4


def save(path: Path, **arrays: Any) -> Path:
    """An archive with images in both parts, unless told otherwise."""
    np.savez(path, **{name: a for name, a in {"x_train": X, "x_test": X, **arrays}.items() if a is not None})
    return path


def npy(array: np.ndarray, **claims: object) -> bytes:
    """A .npy file whose header claims something else."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {**np.lib.format.header_data_from_array_1_0(array), **claims})
    return file.getvalue() + array.tobytes()


def pack(path: Path, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """An archive with images in both parts and these members besides, or in their place."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in {"x_train": npy(X), "x_test": npy(X), **members}.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("fortran", [False, True])
def test_all_layouts_are_read(tmp_path: Path, save_as: Any, fortran: bool) -> None:
    last = X.transpose(0, 2, 3, 1)
    arrays = {"x_train": np.asfortranarray(last) if fortran else last, "x_test": X[:5], "x_val": X[5:]}
    save_as(tmp_path / "a.npz", **arrays, y_train=Y.astype(np.uint8), y_test=Y[:5].astype(np.float32))
    found = read_archive(tmp_path / "a.npz", PARTS)
    assert np.array_equal(found["train"][0], X) and np.array_equal(found["val"][0], X[5:])
    assert found["val"][1] is None
    for part, y in (("train", Y), ("test", Y[:5])):
        labels = found[part][1]
        assert labels is not None and labels.dtype == np.int64 and np.array_equal(labels, y)


def test_a_validation_set_of_its_own_is_used(tmp_path: Path) -> None:
    data = ImageDataModule(f"npz:{save(tmp_path / 'a.npz', x_val=X[:2], y_train=Y, y_test=Y + 3)}")
    data.setup()
    assert data.splits is not None
    assert [len(part) for part in data.splits[:3]] == [12, 2, 12]  # type: ignore[arg-type]
    assert data.classes == 7, "labels of all parts count"


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x_train": X / 255}, r"x_train of .* must be uint8 images .*float64 of shape \(12, 3, 8, 8\).*astype"),
        ({"x_train": X.astype(np.int64)}, "must be uint8 images .*int64"),
        ({"x_train": X[:, 0]}, r"shape \(12, 8, 8\).*axis for their one channel"),
        ({"x_train": np.zeros((5, 8, 8, 4), np.uint8)}, r"shape \(5, 8, 8, 4\), expected 1 or 3 channels.*RGBA"),
        ({"x_test": np.zeros((5, 4, 8, 8), np.uint8)}, r"x_test of .*shape \(5, 4, 8, 8\).*RGBA"),
        ({"x_test": np.zeros((5, 8, 8, 2), np.uint8)}, "expected 1 or 3 channels"),
        ({"x_train": X[:0]}, "holds no pixel"),
        ({"x_test": X[:, :1]}, r"several shapes.*\(3, 8, 8\).*\(1, 8, 8\)"),
        ({"x_test": X[..., :4]}, "several shapes"),
        ({"y_train": np.where(Y == 1, np.nan, Y)}, "y_train of .* labels from nan to nan"),
        ({"y_train": Y + 0.5}, "a label 0.5, expected whole numbers"),
        ({"y_train": Y.astype(str)}, "y_train of .* has <U21, expected integers"),
        ({"y_train": Y > 1}, "has bool"),
        ({"y_train": Y * 1j}, "has complex128"),
        ({"y_train": Y.astype(object)}, "has object"),
        ({"y_test": Y - 2}, "y_test of .* labels from -2 to 1"),
        ({"y_test": Y + MOST_CLASSES}, "at most 100000"),
        ({"y_test": Y.astype(np.uint64) + np.uint64(2**63)}, "labels from 9223372036854775808"),
        ({"y_test": Y[:5]}, r"12 images, but labels of shape \(5,\)"),
        ({"y_test": Y[:, None]}, r"12 images, but labels of shape \(12, 1\)"),
        ({"x_train": None}, "lacks.*x_train"),
        ({"x_train": None, "x_test": None, "pictures": X}, r"holds \['pictures'\]; expected an .npz .* x_train"),
    ],
)
def test_arrays_that_are_no_images_or_labels_are_refused(tmp_path: Path, arrays: Any, text: str) -> None:
    source = save(tmp_path / "it.npz", **arrays)
    with pytest.raises(InputError, match=text) as refused:
        ImageDataModule(f"npz:{source}").setup()
    assert "it.npz" in str(refused.value)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:700])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[400] ^= 255  # among the pixels of x_train
    file.write_bytes(content)


def _encrypt(file: Path) -> None:
    content = file.read_bytes()
    for head, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.index(head) + place
        content = content[:start] + struct.pack("<H", 1) + content[start + 2 :]
    file.write_bytes(content)


def _one_array(file: Path) -> None:
    np.save(file.with_suffix(".npy"), X)
    file.with_suffix(".npy").rename(file)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_one_array, r"one array \(.npy\) by another name"),
        (lambda file: file.write_text("x_train, x_test\n"), "not a zip file"),
        (lambda file: file.write_text(json.dumps({"x_train": [1]})), "not a zip file"),
        (lambda file: file.write_bytes(b""), "no readable .npz"),
        (_cut, "not a zip file"),
        (_flip, "Bad CRC|Error -3|is no readable"),
        (_encrypt, "encrypted"),
        (lambda file: (file.unlink(), file.mkdir()), "no such file"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Any, text: str, method: int) -> None:
    file = pack(tmp_path / "it.npz", method)
    damage(file)
    with pytest.raises(InputError, match=text) as refused:
        ImageDataModule(f"npz:{file}").setup()
    assert "it.npz" in str(refused.value) and "expected an .npz archive with arrays x_train" in str(refused.value)


@pytest.mark.parametrize("name", ["x_train", "y_test", "unused"])
@pytest.mark.parametrize(
    "claims",
    [
        {"shape": (2**40, 3, 8, 8)},
        {"shape": (2**31, 2**31, 2**31)},
        {"shape": (-1, 3, 8, 8)},
        {"shape": (-1, -2304)},
        {"descr": "<f8"},
        {"descr": "<U10000000"},
        {"shape": (13, 3, 8, 8)},
        {"shape": (11, 3, 8, 8)},
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_that_claim_too_much_are_refused(tmp_path: Path, name: str, claims: Any, method: int) -> None:
    file = pack(tmp_path / "it.npz", method, **{name: npy(X, **claims)})
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=rf"{name} of .*it\.npz claims .* but 2304 are there"):
            ImageDataModule(f"npz:{file}").setup()
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_an_archive_that_lies_about_its_members_is_refused(tmp_path: Path) -> None:
    claimed = 2**31 - 2048
    content = npy(X, shape=(claimed // 192, 3, 8, 8))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = pack(tmp_path / "it.npz", method, x_train=content)
        data = bytearray(file.read_bytes())
        entry = data.index(b"PK\1\2")
        size = len(content) - X.nbytes + claimed // 192 * 192
        data[entry + 24 : entry + 28] = struct.pack("<I", size)
        file.write_bytes(data)
        with pytest.raises(
            InputError, match=r"x_train of .*it\.npz claims \d{10} bytes, packed into \d+: it is damaged"
        ):
            ImageDataModule(f"npz:{file}").setup()
        data[entry + 20 : entry + 24] = struct.pack("<I", size)
        file.write_bytes(data)
        # Newer versions of Python see the overlap themselves.
        with pytest.raises(
            InputError, match=r"it\.npz (would end behind the file's \d+ bytes|is no readable .*Overlap)"
        ):
            ImageDataModule(f"npz:{file}").setup()


def test_twice_the_same_name_is_refused(tmp_path: Path) -> None:
    file = pack(tmp_path / "it.npz")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("x_train", npy(X))
    with pytest.raises(InputError, match=r"it\.npz holds x_train twice"):
        ImageDataModule(f"npz:{file}").setup()


def test_what_nobody_asked_for_is_left_alone(tmp_path: Path) -> None:
    file = pack(tmp_path / "it.npz", names=npy(np.array(["a", "b"])))
    np_file = io.BytesIO()
    np.lib.format.write_array(np_file, np.array([{}, None]), allow_pickle=True)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("objects.npy", np_file.getvalue())
        archive.writestr("README.txt", "of whom?")
    assert np.array_equal(read_archive(file, PARTS)["test"][0], X)


def test_what_does_not_fit_is_refused_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(tmp_path / "it.npz")
    monkeypatch.setattr(memory, "available_memory", lambda device: 4000)
    with pytest.raises(OutOfMemoryError, match=r"it\.npz takes up to .* GB to read where .* are free.*folder:PATH"):
        ImageDataModule(f"npz:{file}").setup()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_random_damage_ends_in_our_error_or_the_same_images(tmp_path: Path, method: int) -> None:
    rng, file = np.random.default_rng(0), pack(tmp_path / "it.npz", method, y_train=npy(Y))
    intact, refusals = file.read_bytes(), list[str]()
    for trial in range(150):
        content = bytearray(intact)
        heads = [place for k in range(len(intact)) if intact[k : k + 2] == b"PK" for place in range(k, k + 60)]
        places = heads if trial % 2 else range(len(intact))
        for place in rng.choice(places, 2):
            content[min(place, len(content) - 1)] = int(rng.integers(256))
        file.write_bytes(content)
        try:
            found = read_archive(file, ("train",))
        except (InputError, OutOfMemoryError) as error:
            refusals.append(str(error))
            continue
        assert np.array_equal(found["train"][0], X)
    assert len(refusals) > 30 and all("it.npz" in text for text in refusals)


def test_tests_alone_need_no_training_images(tmp_path: Path) -> None:
    data = ImageDataModule(f"npz:{save(tmp_path / 'it.npz', x_train=None)}", batch_size=20)
    for stage in ("test", "predict", "validate"):
        data.setup(stage)
        assert all(len(next(iter(loader()))[0]) == 12 for loader in (data.test_dataloader, data.predict_dataloader))
    assert torch.equal(next(iter(data.val_dataloader()))[0], torch.from_numpy(X))
    with pytest.raises(InputError, match="no images to train"):
        data.train_dataloader()
    with pytest.raises(InputError, match=r"lacks.*x_train"):
        data.setup("fit")
