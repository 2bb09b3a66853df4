"""Every source of images, what it does with what is missing or broken, and the order of batches."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from invconv.errors import InputError
from invconv.lightning import ImageDataModule, sources

CIFAR_NPZ = Path(
    os.environ.get("INVCONV_CIFAR_NPZ", Path(__file__).parents[3] / "shared" / "data" / "cifar10_subset.npz")
)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(256, size=(24, 3, 32, 32), dtype=np.uint8)


def _npz(path, images, **more):
    np.savez(path, x_train=images, x_test=images[:6], **more)
    return f"npz:{path}"


def _parts(data):
    """The sets for training, validation and test."""
    return data.splits[:3]


def _sizes(data):
    return [len(part) for part in _parts(data)]


def _rows(data):
    return {tuple(x.flatten().tolist()) for x, _ in data}


def test_npz_with_labels_in_either_layout(tmp_path, images):
    labels = np.arange(24) % 5
    source = _npz(tmp_path / "a.npz", images, y_train=labels, y_test=labels[:6])
    last = _npz(tmp_path / "b.npz", images.transpose(0, 2, 3, 1))
    first, second = (ImageDataModule(s, batch_size=6, val_fraction=0.25) for s in (source, last))
    for data in (first, second):
        data.setup()
        assert _sizes(data) == [18, 6, 6]
        assert not _rows(data.splits.train) & _rows(data.splits.val)
        assert _rows(data.splits.train) | _rows(data.splits.val) == _rows(
            zip(torch.tensor(images), labels, strict=True)
        )
    (x, y), (x_last, none) = next(iter(first.test_dataloader())), next(iter(second.test_dataloader()))
    assert torch.equal(x, torch.tensor(images[:6])) and torch.equal(y, torch.tensor(labels[:6]))
    assert torch.equal(x_last, x) and (none == -1).all() and x.dtype == torch.uint8


def test_validation_split_depends_on_the_seed_alone(tmp_path, images):
    source = _npz(tmp_path / "a.npz", images)
    splits = []
    for seed in (0, 0, 1):
        data = ImageDataModule(source, seed=seed, val_fraction=0.25)
        data.setup()
        splits.append(_rows(data.splits.val))
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.skipif(not CIFAR_NPZ.exists(), reason=f"no CIFAR-10 subset at {CIFAR_NPZ} (INVCONV_CIFAR_NPZ)")
def test_cifar_subset():
    data = ImageDataModule(f"npz:{CIFAR_NPZ}")
    data.setup()
    assert _sizes(data) == [4831, 254, 1017]
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (64, 3, 32, 32) and y.min() >= 0 and y.max() <= 9


def test_photos_load_without_a_network_and_share_no_pixel(monkeypatch):
    # Photographs whose every pixel is unique: position in three bytes.
    def numbered():
        number = np.arange(200 * 300).reshape(200, 300)
        return [np.stack([number >> 16, number >> 8 & 255, number & 255], -1).astype(np.uint8)]

    data = ImageDataModule("photos")
    data.prepare_data()
    data.setup()
    sizes = _sizes(data)
    assert sizes[0] >= 4800 and min(sizes[1:]) >= 64
    x, _ = data.splits.train[0]
    assert x.shape == (3, 32, 32) and x.dtype == torch.uint8

    monkeypatch.setattr(sources, "_photographs", numbered)
    pixels = []
    parts: Any = sources.photos((32, 32))[:3]
    for part in parts:
        all_pixels = torch.stack([x for x, _ in part]).long().transpose(0, 1).flatten(1)
        pixels.append(set((all_pixels[0] * 65536 + all_pixels[1] * 256 + all_pixels[2]).tolist()))
    assert not pixels[0] & pixels[1] and not pixels[0] & pixels[2] and not pixels[1] & pixels[2]


def test_photos_too_large():
    with pytest.raises(InputError, match="too small for crops of"):
        ImageDataModule("photos", image_size=400).setup()


def _write_folder(root, names, size=(50, 40)):
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * index, 0, 255)).save(root / name)


def test_flat_folder(tmp_path):
    _write_folder(tmp_path, [f"{i}.png" for i in range(20)])
    data = ImageDataModule(f"folder:{tmp_path}", image_size=(16, 24), val_fraction=0.1)
    data.setup()
    assert _sizes(data) == [16, 2, 2]
    reds = [sorted(int(x[0, 0, 0]) for x, _ in part) for part in _parts(data)]
    assert sorted(red for part in reds for red in part) == list(range(0, 200, 10))
    x, y = data.splits.train[0]
    assert x.shape == (3, 16, 24) and x.dtype == torch.uint8 and y == -1


def test_folder_of_classes_with_its_own_test_set(tmp_path):
    _write_folder(tmp_path, [f"{part}/{kind}/{i}.jpg" for part in ("train", "test") for kind in "ab" for i in range(4)])
    data = ImageDataModule(f"folder:{tmp_path}", image_size=16, val_fraction=0.25)
    data.setup()
    assert _sizes(data) == [6, 2, 8]
    assert [int(y) for _, y in data.splits.test] == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
def test_corrupt_images_are_named_before_the_training(tmp_path, content):
    _write_folder(tmp_path, [f"{i}.png" for i in range(5)])
    for broken in (tmp_path / "3.png", tmp_path / "4.png"):
        broken.write_bytes(broken.read_bytes()[:60] if content == "truncated" else content)
        data = ImageDataModule(f"folder:{tmp_path}", image_size=8, val_fraction=0.2)
        with pytest.raises(InputError, match=r"3\.png is no readable image.*repair or remove") as refused:
            data.setup()
    assert "4.png is no readable image" in str(refused.value) and "2 of 5 files cannot be read" in str(refused.value)


def test_other_processes_read_heads_only(tmp_path):
    _write_folder(tmp_path, [f"{i}.png" for i in range(5)])
    broken = tmp_path / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = ImageDataModule(f"folder:{tmp_path}", image_size=8, val_fraction=0.2)
    data._process = lambda: (2, 1)
    data.setup()
    with pytest.raises(InputError, match=r"3\.png is no readable image.*repair or remove"):
        [image for part in _parts(data) for image in part]
    broken.write_bytes(b"no image")
    data = ImageDataModule(f"folder:{tmp_path}", image_size=8)
    data._process = lambda: (2, 1)
    with pytest.raises(InputError, match=r"3\.png is no readable image"):
        data.setup()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("npz:nowhere.npz", r"no such file.*nowhere\.npz"),
        ("folder:nowhere", "no such file or folder: nowhere"),
        ("imagenet", "unknown source 'imagenet'"),
        ("npz", "use auto"),
        ("npz:{tmp}/text.npz", "no readable .npz"),
        ("npz:{tmp}/float.npz", r"uint8 images.*float64.*\(2, 3, 4, 4\)"),
        ("npz:{tmp}/other.npz", "lacks.*x_test"),
        ("npz:{tmp}/labels.npz", r"2 images, but labels of shape \(3,\)"),
        ("folder:{tmp}/empty", "no image files"),
    ],
)
def test_bad_sources_are_named(tmp_path, source, text):
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    x = np.zeros((2, 3, 4, 4), np.uint8)
    np.savez(tmp_path / "float.npz", x_train=x / 2, x_test=x)
    np.savez(tmp_path / "other.npz", x_train=x)
    np.savez(tmp_path / "labels.npz", x_train=x, x_test=x, y_train=np.zeros(3))
    with pytest.raises(InputError, match=text):
        ImageDataModule(source.format(tmp=tmp_path)).setup()


def test_auto_takes_photos_on_a_dead_network_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    data = ImageDataModule("auto", data_dir=str(tmp_path))
    data.prepare_data()
    data.setup()
    assert data.description.startswith("photographs of scikit-image, as there is no CIFAR-10: its server")
    with pytest.raises(InputError, match="cannot be downloaded"):
        ImageDataModule("cifar10", data_dir=str(tmp_path)).prepare_data()


def test_a_server_that_never_answers_is_given_up(monkeypatch, tmp_path):
    release = threading.Event()

    def never(*args, **kwargs):
        release.wait(30)
        raise OSError

    monkeypatch.setattr("urllib.request.urlopen", never)
    start = time.perf_counter()
    reason = sources.download_cifar10(tmp_path, patience=0.2)
    assert reason is not None and "no answer" in reason
    assert time.perf_counter() - start < 5
    release.set()


def test_auto_takes_cifar10_from_disk(monkeypatch, tmp_path, images):
    class OnDisk:
        def __init__(self, root, train=True, download=False):
            self.data = images.transpose(0, 2, 3, 1)[: 24 if train else 6]
            self.targets = [3] * len(self.data)

    monkeypatch.setattr(datasets, "CIFAR10", OnDisk)
    data = ImageDataModule("auto", data_dir=str(tmp_path), val_fraction=0.25)
    data.prepare_data()
    data.setup()
    assert data.description == "CIFAR-10" and _sizes(data) == [18, 6, 6]


def _epoch(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return torch.cat([x for x, _ in loader])


def test_order_and_mirroring_follow_seed_and_epoch(tmp_path, images):
    source = _npz(tmp_path / "a.npz", images)
    loaders = []
    for seed in (0, 0, 1):
        data = ImageDataModule(source, batch_size=6, flip=True, seed=seed, val_fraction=0.25)
        data.setup()
        loaders.append(data.train_dataloader())
    first = _epoch(loaders[0], 0)
    assert torch.equal(first, _epoch(loaders[1], 0)) and torch.equal(first, _epoch(loaders[0], 0))
    assert not torch.equal(first, _epoch(loaders[0], 1)) and not torch.equal(first, _epoch(loaders[2], 0))
    mirrored = sum(not any(torch.equal(x, torch.tensor(i)) for i in images) for x in first)
    assert 3 <= mirrored <= 15
    assert all(
        any(torch.equal(x.flip(-1), torch.tensor(i)) or torch.equal(x, torch.tensor(i)) for i in images) for x in first
    )


def test_processes_share_out_an_epoch(tmp_path, images):
    data = ImageDataModule(_npz(tmp_path / "a.npz", images), batch_size=3, val_fraction=0.25)
    data.setup()
    shares = []
    for rank in range(2):
        data._process = lambda rank=rank: (2, rank)
        shares.append({tuple(x.flatten().tolist()) for x in _epoch(data.train_dataloader(), 4)})
    assert len(shares[0]) == len(shares[1]) == 9 and not shares[0] & shares[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_goes_on_in_the_middle_of_an_epoch(tmp_path, images, workers):
    data = ImageDataModule(_npz(tmp_path / "a.npz", images), 3, flip=True, val_fraction=0.25, num_workers=workers)
    data.setup()
    loader: Any = data.train_dataloader()
    whole = [x for x, _ in loader]
    assert len(whole) == len(loader) == 6
    batches = iter(loader)
    next(batches), next(batches)
    again: Any = data.train_dataloader()
    again.load_state_dict(loader.state_dict())
    rest = [x for x, _ in again]
    assert len(rest) == 4 and all(torch.equal(a, b) for a, b in zip(rest, whole[2:], strict=True))
    again.load_state_dict(loader.state_dict())
    again.sampler.set_epoch(1)
    assert len(list(again)) == 6
