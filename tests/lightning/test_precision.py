"""Every precision of the Trainer, for every module: it trains, or an error says why not before it does."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from quiet import quiet_trainer

from invconv import InputError
from invconv.autoencoder import PseudoInverseAutoencoder
from invconv.flows import MultiScaleFlow
from invconv.lightning import (
    AutoencoderModule,
    ClassifierModule,
    FlowModule,
    ImageDataModule,
    InversionPictures,
    InvertibilityMonitor,
    PictureWriter,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*log_every_n_steps",
    "ignore:.*isinstance.*LeafSpec",
    "ignore::invconv.IllConditionedWarning",  # of pictures of what pooling loses
)

MODULES: dict[str, Any] = {
    "flow": lambda: FlowModule(MultiScaleFlow(3, 16, 2, 1, 8), optimizer="adam"),
    "flow, adamax, zeros": lambda: FlowModule(MultiScaleFlow(3, 16, 2, 1, 8, padding_mode="zeros", num_classes=3)),
    "autoencoder": lambda: AutoencoderModule(
        PseudoInverseAutoencoder((3, 16, 16), (1, 4)), sparsity=0.1, code_noise=0.1
    ),
    "autoencoder, zeros": lambda: AutoencoderModule(
        PseudoInverseAutoencoder((3, 16, 16), (1, 4), activation="leaky_relu", padding_mode="zeros"), loss="mse"
    ),
    "vgg": lambda: ClassifierModule("vgg", 3, 3, 8),
    "resnet": lambda: ClassifierModule("resnet", 3, 3, 8),
}
WATCHED = {
    "flow": lambda: [InvertibilityMonitor(), PictureWriter(columns=2, rows=1)],
    "vgg": lambda: [InversionPictures(["2"], images=1, steps=2)],
}
TRUE = {"32-true": torch.float32, "64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
MIXED = ("bf16-mixed",)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Smooth random colours, with labels."""
    coarse = torch.rand(72, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = (255 * torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")).byte().numpy()
    path, labels = tmp_path_factory.mktemp("data") / "smooth.npz", np.arange(72) % 3
    np.savez(path, x_train=images[:64], x_test=images[64:], y_train=labels[:64], y_test=labels[64:])
    return f"npz:{path}"


def run(module, source, folder, precision, callbacks=()):
    """Two steps, a validation and a test; all that was logged."""
    trainer = quiet_trainer(
        folder, *callbacks, precision=precision, max_steps=2, enable_checkpointing=False, num_sanity_val_steps=1,
        limit_val_batches=1, limit_test_batches=1, val_check_interval=1,
    )  # fmt: skip
    data = ImageDataModule(source, batch_size=16, val_fraction=0.25)
    trainer.fit(module, data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.test(module, data, verbose=False)
    return logged | {name: float(value) for name, value in trainer.callback_metrics.items()}


def refused(name, precision):
    return precision == "16-true" or (precision == "bf16-true" and name.startswith("flow"))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("precision", [*TRUE, *MIXED])
def test_a_precision_trains_or_says_why_not(name, precision, source, tmp_path):
    torch.manual_seed(0)
    exact = run(MODULES[name](), source, tmp_path, "64-true")
    torch.manual_seed(0)
    module = MODULES[name]()
    if refused(name, precision):
        before = {k: v.clone() for k, v in module.state_dict().items()}
        with pytest.raises(InputError, match="bf16-mixed"):
            run(module, source, tmp_path, precision)
        assert all(torch.equal(v.to(before[k].dtype), before[k].to(v.dtype).to(before[k].dtype))
                   for k, v in module.state_dict().items())  # fmt: skip
        return
    logged = run(module, source, tmp_path, precision)
    dtype = TRUE.get(precision, torch.float32)
    assert all(p.dtype == dtype and p.isfinite().all() for p in module.parameters())
    coarse = dtype == torch.bfloat16 or precision in MIXED
    assert logged.keys() == exact.keys()
    for key, value in logged.items():
        if "accuracy" not in key:
            assert math.isclose(value, exact[key], rel_tol=0.03 if coarse else 1e-3, abs_tol=1e-3), key


@pytest.mark.parametrize("name", WATCHED)
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_callbacks_look_on_in_every_precision_that_trains(name, precision, source, tmp_path):
    if name == "vgg" and precision == "bf16-true":  # too few digits to invert a network
        with pytest.raises(InputError, match=r"the model is torch\.bfloat16"):
            run(MODULES[name](), source, tmp_path, precision, WATCHED[name]())
    elif not refused(name, precision):
        logged = run(MODULES[name](), source, tmp_path, precision, WATCHED[name]())
        assert all(math.isfinite(value) for value in logged.values())
        assert list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_modules_around_a_network_of_another_type(dtype):
    """Made by the user in that type, with no Trainer to change it."""
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert (
        AutoencoderModule(PseudoInverseAutoencoder((3, 16, 16), (1, 4)).to(dtype)).reconstruct(images).isfinite().all()
    )
    assert ClassifierModule("vgg", 3, 3, 8).to(dtype).eval()(images).dtype == dtype
