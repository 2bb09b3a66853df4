"""Folders: what is a part, what is a class, what is held out in which stage, and what is said of it."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import tifffile
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from quiet import SILENT, quiet_trainer

from invconv import InputError
from invconv.examples.flow.train import FlowCLI
from invconv.flows import MultiScaleFlow
from invconv.lightning import FlowModule, ImageDataModule

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*log_every_n_steps")
RNG = np.random.default_rng(0)


def write(root: Path, count: int = 60, mode: str = "RGB", folder: str = ".") -> str:
    """Image files of noise; the source that they are."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    shape = (10, 12, 3) if mode == "RGB" else (10, 12)
    for index in range(count):
        Image.fromarray(RNG.integers(256, size=shape, dtype=np.uint8)).save(root / folder / f"{index}.png")
    return f"folder:{root}"


def loaded(source: str, stage: str | None = None, **options: Any) -> Any:
    data: Any = ImageDataModule(source, image_size=8, **options)
    data.setup(stage)
    return data


def sizes(data: Any) -> list[int]:
    return [len(part) for part in data.splits[:3]]


def pixels(part: Any) -> set[bytes]:
    return {x.numpy().tobytes() for x, _ in part}


trainer = partial(quiet_trainer, max_epochs=1)


def module(channels: int = 3) -> FlowModule:
    torch.manual_seed(0)
    return FlowModule(MultiScaleFlow(channels, image_size=8, scales=1, steps=1, hidden=8))


class Seen(L.Callback):
    """How many images were met."""

    def __init__(self) -> None:
        self.count = {"validate": 0, "test": 0, "predict": 0}

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        self.count["validate"] += len(batch[0])

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        self.count["test"] += len(batch[0])

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        self.count["predict"] += len(batch[0])


class Predicts(FlowModule):
    def predict_step(self, batch: Any, *args: Any) -> torch.Tensor:
        return self.flow.bits_per_dim(batch[0], generator=self.noise(0, 0))


# -- stages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_all_images_of_a_folder_are_scored(tmp_path: Path, stage: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = ImageDataModule(write(tmp_path), image_size=8, batch_size=16)
    seen, flow = Seen(), Predicts(module().flow)
    run = trainer(tmp_path, seen)
    result = getattr(run, stage)(flow, datamodule=data)
    assert seen.count[stage] == 60
    assert f"all of them: 60 images to {stage}" in caplog.text
    if stage == "test":
        flow.eval()
        with torch.no_grad():
            batches = [x for x, _ in data.test_dataloader()]
            scores = [flow.flow.bits_per_dim(x, generator=flow.noise(0, k)) for k, x in enumerate(batches)]
        assert result[0]["test/bits_per_dim"] == pytest.approx(float(torch.cat(scores).mean()), rel=1e-5)


def test_a_folder_is_split_for_training_and_its_test_part_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data: Any = ImageDataModule(write(tmp_path), image_size=8, batch_size=16)
    data.setup("test")
    assert sizes(data) == [0, 60, 60]
    seen, flow = Seen(), module()
    run = trainer(tmp_path, seen)
    run.fit(flow, datamodule=data)
    assert "split at random: 54 images to train, 3 to validate, 3 to test" in caplog.text
    parts = [pixels(part) for part in data.splits[:3]]
    assert [len(part) for part in parts] == [54, 3, 3] and len(set.union(*parts)) == 60
    run.test(flow, datamodule=data, verbose=False)
    assert seen.count["test"] == 3 and pixels(data.splits.test) == parts[2]
    assert "split at random: 3 images to test" in caplog.text


def test_a_checkpoint_knows_what_it_was_trained_on(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    source, flow = write(tmp_path / "images", 20), module()
    keep = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, keep).fit(flow, datamodule=ImageDataModule(source, image_size=8))

    def test(source: str, **options: Any) -> list[str]:
        recwarn.clear()
        data = ImageDataModule(source, image_size=8, **options)
        trainer(tmp_path).test(module(), datamodule=data, ckpt_path=keep.last_model_path, verbose=False)
        return [str(w.message) for w in recwarn if "trained on" in str(w.message)]

    (said,) = test(source)
    assert "trained on a part of" in said and "all of them" in said and "seed 0" in said
    assert not test(write(tmp_path / "others", 5))
    data = ImageDataModule(source, image_size=8, seed=1)
    with pytest.warns(UserWarning, match="drawn with seed 0"):
        trainer(tmp_path).fit(module(), datamodule=data, ckpt_path=keep.last_model_path)


def test_parts_of_a_folder_are_never_mixed(tmp_path: Path) -> None:
    for part, count in (("train", 9), ("valid", 4), ("test", 5)):
        for kind in "ab" if part != "test" else "b":
            source = write(tmp_path, count, folder=f"{part}/{kind}")
    for stage in (None, "fit", "test", "validate"):
        data = loaded(source, stage)
        assert sizes(data) == [18, 8, 5] and data.classes == 2
        assert {int(y) for _, y in data.splits.test} == {1}, "b is b, though no a is tested"


@pytest.mark.parametrize(
    ("folders", "expected", "tested"),
    [
        (["train", "val"], [18, 20, 2], [18, 20, 2]),
        (["train", "test"], [18, 2, 20], [18, 2, 20]),
        (["train"], [16, 2, 2], [16, 2, 2]),
        (["Train", "Validation", "Test"], [20, 20, 20], [20, 20, 20]),
        (["test"], None, [0, 20, 20]),
        (["val", "test"], None, [0, 20, 20]),
        (["val"], None, [0, 20, 0]),
        (["train", "cat"], [32, 4, 4], [0, 40, 40]),
        (["test", "dog"], [32, 4, 4], [0, 40, 40]),
        (["train", "test", "more"], [18, 2, 20], [18, 2, 20]),
    ],
)
def test_names_of_parts(tmp_path: Path, folders: list[str], expected: list[int] | None, tested: list[int]) -> None:
    for folder in folders:
        source = write(tmp_path, 20, folder=folder)
    assert sizes(loaded(source, "test", val_fraction=0.1)) == tested
    if expected is None:
        with pytest.raises(InputError, match=r"but no folder train"):
            loaded(source)
        return
    data = loaded(source, val_fraction=0.1)
    assert sizes(data) == expected
    seen = [pixels(part) for part in data.splits[:3]]
    assert sum(map(len, seen)) == len(set.union(*seen)), "no image in two parts"


def test_two_folders_of_one_part_and_a_file_for_a_folder_are_refused(tmp_path: Path) -> None:
    for folder in ("train", "val", "valid"):
        source = write(tmp_path, 2, folder=folder)
    with pytest.raises(InputError, match=r"two folders of one part \(train, val, valid\)"):
        loaded(source)
    with pytest.raises(InputError, match=r"0\.png is a file, expected a folder"):
        loaded(f"folder:{tmp_path / 'train' / '0.png'}")


def test_a_part_that_is_not_there_is_missed(tmp_path: Path) -> None:
    data = loaded(write(tmp_path, 5, folder="val"), "validate")
    assert len(next(iter(data.val_dataloader()))[0]) == 5
    with pytest.raises(InputError, match="no images to test"):
        data.test_dataloader()


def test_too_few_images_are_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 images are too few"):
        loaded(write(tmp_path, 1))
    assert sizes(loaded(write(tmp_path, 3), val_fraction=0.01)) == [1, 1, 1], "a share of nothing is one image"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_larger_than_the_data_lose_nothing(tmp_path: Path, workers: int) -> None:
    data = loaded(write(tmp_path, 10), batch_size=500, val_fraction=0.1, num_workers=workers)
    assert [len(x) for x, _ in data.train_dataloader()] == [8]
    assert [len(x) for x, _ in data.test_dataloader()] == [1]


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"num_workers": -1}, {"image_size": 0}, {"image_size": (8, 8, 3)}, {"image_size": (8, 0)},
     {"image_size": 8.5}, {"val_fraction": 0.0}, {"val_fraction": 1.0}, {"channels": 2}],
)  # fmt: skip
def test_options_are_checked_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=str(next(iter(options)))):
        ImageDataModule("photos", **options)


def test_numpy_sizes_are_sizes() -> None:
    assert ImageDataModule("photos", image_size=np.int64(16)).size == (16, 16)  # type: ignore[arg-type]
    assert ImageDataModule("photos", image_size=[16, 24]).size == (16, 24)  # type: ignore[arg-type]


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_grey_folder_trains_a_flow_of_one_channel(tmp_path: Path) -> None:
    source = write(tmp_path / "grey", 20, "L")
    tifffile.imwrite(tmp_path / "grey" / "deep.tif", RNG.integers(65536, size=(9, 9)).astype(np.uint16))
    data = ImageDataModule(source, image_size=8, batch_size=8, num_workers=0)
    trainer(tmp_path).fit(module(1), datamodule=data)
    assert next(iter(data.train_dataloader()))[0].shape == (8, 1, 8, 8)
    assert next(iter(loaded(source, channels=3).train_dataloader()))[0].shape[1] == 3
    rgb = next(iter(loaded(write(tmp_path / "grey", 1), "test").test_dataloader()))[0]
    assert rgb.shape == (21, 3, 8, 8), "one picture in colours, and all are"
    assert loaded(source, channels=1).splits.train[0][0].shape == (1, 8, 8)


def test_other_processes_see_the_same_channels(tmp_path: Path) -> None:
    for mode, channels in (("L", 1), ("RGB", 3)):
        data: Any = ImageDataModule(write(tmp_path, 4, mode), image_size=8)
        data._process = lambda: (2, 1)
        data.setup("test")
        assert data.splits.test[0][0].shape == (channels, 8, 8)


def test_what_was_taken_for_granted_is_said(tmp_path: Path) -> None:
    source = write(tmp_path, 3)
    for index in range(2):
        Image.new("RGBA", (9, 9), (0, 0, 0, 10)).save(tmp_path / f"clear{index}.png")
    tifffile.imwrite(tmp_path / "dark.tif", np.full((9, 9), 700, np.uint16))
    Image.new("RGB", (9, 9)).save(tmp_path / "left.gif")
    (tmp_path / "notes.txt").write_text("seen by nobody")
    with pytest.warns(UserWarning, match="left out of") as said:
        data = loaded(source, "test")
    text = "\n".join(str(warning.message) for warning in said)
    assert "clear0.png has transparent pixels, which are laid over white (2 of 6 files)" in text
    assert "dark.tif has 16 bits but no value above 4095" in text
    assert "as no images by their names (.gif, .txt): 2" in text
    assert sizes(data) == [0, 6, 6]
    assert int(data.splits.test[3][0].min()) == 245, "ten parts of 255 black, the rest white"


def test_folders_turn_pictures_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    stored = np.zeros((20, 20, 3), np.uint8)
    stored[:, :10] = 255  # left as it lies, above as it is seen
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    x = loaded(f"folder:{tmp_path}", "test").splits.test[0][0]
    assert x[0, 1].min() > 250 and x[0, 6].max() < 5


# -- found before the first step ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_folder_trains_a_flow_of_its_shape(tmp_path: Path, mode: str, channels: int) -> None:
    flow = {"class_path": "invconv.flows.MultiScaleFlow", "init_args": {"scales": 1, "steps": 1}}
    config = tmp_path / "config.yaml"
    settings = {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_checkpointing": False, **SILENT}
    source = write(tmp_path / "images", 8, mode)
    data = {"source": source, "image_size": 8, "batch_size": 2}
    config.write_text(yaml.safe_dump({"model": {"flow": flow}, "data": data, "trainer": settings}))
    cli = FlowCLI(
        FlowModule,
        ImageDataModule,
        args=["fit", f"--config={config}", f"--trainer.default_root_dir={tmp_path}"],
        save_config_callback=None,
    )
    assert cli.model.flow.image_shape == (channels, 8, 8)
    assert cli.trainer.global_step == 1


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_channels_are_known_by_the_heads_of_files(tmp_path: Path, layout: str) -> None:
    for channels in (1, 3):
        x = np.zeros((2, channels, 8, 8) if layout == "nchw" else (2, 8, 8, channels), np.uint8)
        np.savez(tmp_path / f"{channels}.npz", x_train=x, x_test=x)
        images = ImageDataModule(f"npz:{tmp_path / f'{channels}.npz'}")
        assert images.image_channels() == channels and images.image_size() == (8, 8)
    grey = write(tmp_path / "grey", 3, "L")
    assert ImageDataModule(grey).image_channels() == 1
    assert ImageDataModule(grey, channels=3).image_channels() == 3
    assert ImageDataModule("photos").image_channels() == 3
    sizes = {"photos": (16, 24), "cifar10": (32, 32), grey: (16, 24)}
    assert {source: ImageDataModule(source, image_size=(16, 24)).image_size() for source in sizes} == sizes
    (tmp_path / "grey" / "0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"0\.png is no readable image"):
        ImageDataModule(grey).image_channels()
    (tmp_path / "1.npz").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match=r"1\.npz is no readable \.npz file"):
        ImageDataModule(f"npz:{tmp_path / '1.npz'}").image_channels()


@pytest.mark.parametrize("run", ["fit", "validate", "test"])
def test_a_flow_refuses_images_of_another_shape_before_the_first_step(tmp_path: Path, run: str) -> None:
    data = ImageDataModule(write(tmp_path, 8, "L"), image_size=8)
    with pytest.raises(InputError, match=r"= \(1, 8, 8\), but the flow takes \(3, 8, 8\): make it with in_channels=1"):
        getattr(trainer(tmp_path), run)(module(3), datamodule=data)


def test_what_is_said_of_files_points_at_the_line_of_the_caller(tmp_path: Path) -> None:
    source = write(tmp_path, 8)
    (tmp_path / "notes.txt").write_text("no picture")
    for call in (
        lambda data: data.setup(),
        lambda data: trainer(tmp_path, enable_checkpointing=False, max_steps=1).fit(module(), datamodule=data),
    ):
        with pytest.warns(UserWarning, match="left out of") as said:
            call(ImageDataModule(source, image_size=8))
        ours = [warning for warning in said if "left out of" in str(warning.message)]
        assert [Path(warning.filename).name for warning in ours] == [Path(__file__).name]


def test_the_limit_of_pillow_is_an_error_of_ours_where_its_warnings_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of 120
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"0\.png: Image size \(120 pixels\).*Scale it down"):
            loaded(source, "test")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(InputError, match=r"0\.png: Image size \(120 pixels\).*Scale it down"):
        loaded(source, "test")
