"""The decoder is the pseudo-inverse of the encoder, layer by layer, against dense matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from invconv import InputError
from invconv.autoencoder import ACTIVATIONS, PseudoInverseAutoencoder
from invconv.cli import main
from invconv.lightning import AutoencoderModule


def dense(layer: nn.Conv2d, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a plain convolution with the same weights."""
    weight = layer.weight.detach()
    padding: Any = layer.padding[0]
    units = torch.eye(torch.Size(shape).numel(), dtype=weight.dtype).view(-1, *shape)
    padded = nn.functional.pad(units, (padding,) * 4, "circular" if layer.padding_mode == "circular" else "constant")
    return nn.functional.conv2d(padded, weight, stride=layer.stride).flatten(1).T


@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
@pytest.mark.parametrize("compression", [(1, 8), (2, 2), (0.5, 8)])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_the_decoder_is_the_pseudo_inverse(
    activation: str | None, compression: tuple[float, ...], padding_mode: str
) -> None:
    torch.manual_seed(0)
    model = PseudoInverseAutoencoder((2, 8, 8), compression, activation=activation, padding_mode=padding_mode).double()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    z = torch.randn(3, *model.code_shape).double()
    h, shapes, x = z, [], torch.randn(1, 2, 8, 8).double()
    layers: list[Any] = list(model.layers)
    for layer in layers:
        shapes.append(tuple(x.shape[1:]))
        x = layer(x)
    for layer, shape in zip(reversed(layers), reversed(shapes), strict=True):
        if isinstance(layer, nn.Conv2d):
            inverse = torch.linalg.pinv(dense(layer, shape))
            shift = 0 if layer.bias is None else layer.bias.detach().view(1, -1, 1, 1)
            h = ((h - shift).flatten(1) @ inverse.T).view(3, *shape)
        else:
            h = layer.inverse(h)
    assert torch.allclose(model.decode(z), h, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_a_code_survives_the_way_through_the_image(activation: str | None) -> None:
    torch.manual_seed(0)
    model = PseudoInverseAutoencoder((3, 16, 16), (1, 2, 8), activation=activation).double()
    z = torch.randn(2, *model.code_shape).double()
    assert torch.allclose(model.encode(model.decode(z)), z, atol=1e-9)
    assert model.compression == 16


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_reach_encoder_through_decoder(activation: str) -> None:
    torch.manual_seed(0)
    model = PseudoInverseAutoencoder((1, 4, 4), (1, 4), activation=activation).double()
    names, values = zip(*model.named_parameters(), strict=True)
    values = tuple((v.detach() + 0.1 * torch.randn_like(v)).requires_grad_() for v in values)
    x = torch.randn(2, 1, 4, 4).double()

    def reconstruct(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(reconstruct, values)


def test_it_starts_as_principal_components() -> None:
    torch.manual_seed(0)
    model = PseudoInverseAutoencoder((3, 8, 8), (6,)).double()
    x = torch.randn(64, 3, 8, 8).double().cumsum(-1).cumsum(-2)
    means = nn.functional.pixel_unshuffle(x, 2).mean((0, 2, 3), keepdim=True)
    x = x - nn.functional.pixel_shuffle(means.expand(1, 12, 4, 4), 2)  # what is not kept has no mean
    model.initialize(x)
    # Blocks are read at the kernel's centre: 2 x 2, without overlap.
    blocks = nn.functional.pixel_unshuffle(x, 2).movedim(1, -1).flatten(0, -2)
    centred = blocks - blocks.mean(0)
    kept = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    best = (centred - centred @ kept.T @ kept).square().sum()
    assert torch.allclose((model(x)[0] - x).square().sum(), best, rtol=1e-9)


def test_training_goes_on_from_where_it_was() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.zeros(16)), batch_size=8)
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}

    def fit(module: AutoencoderModule, steps: int) -> None:
        L.Trainer(accelerator="cpu", max_steps=steps, logger=False, **quiet).fit(module, loader)  # type: ignore[arg-type]

    module = AutoencoderModule(PseudoInverseAutoencoder((3, 8, 8), (1, 4)))
    layers: Any = module.model.layers
    first = layers[0]
    start = first.weight.detach().clone()
    fit(module, 2)
    trained = first.weight.detach().clone()
    assert (trained - start).abs().max() > 0.1, "the principal components"
    module.lr = 0.0
    fit(module, 1)
    assert torch.equal(first.weight, trained)
    again = PseudoInverseAutoencoder((3, 8, 8), (1, 4))
    again.load_state_dict(module.model.state_dict())
    assert again.initialized


def test_bad_input() -> None:
    with pytest.raises(InputError, match="compresses 12 channels 0 times"):
        PseudoInverseAutoencoder((3, 8, 8), (0,))
    with pytest.raises(InputError, match="unknown loss 'l1'"):
        AutoencoderModule(PseudoInverseAutoencoder(), loss="l1")
    with pytest.raises(InputError, match="cannot halve images of 12 x 12"):
        PseudoInverseAutoencoder((3, 12, 12), (1, 1, 16))
    with pytest.raises(InputError, match="compresses 12 channels 5 times"):
        PseudoInverseAutoencoder((3, 8, 8), (5,))
    with pytest.raises(InputError, match="must be even"):
        PseudoInverseAutoencoder(kernel_size=3)
    with pytest.raises(InputError, match="unknown activation 'relu'"):
        PseudoInverseAutoencoder(activation="relu")
    model = PseudoInverseAutoencoder((3, 8, 8), (1, 4))
    with pytest.raises(InputError, match=r"images have shape \(1, 3, 16, 16\)"):
        model(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match=r"codes have shape \(1, 3\)"):
        model.decode(torch.zeros(1, 3))


def test_the_example_trains_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "10", "--trainer.limit_val_batches", "1"]
    options = ["--trainer.limit_test_batches", "2", "--model.sparsity", "0.001", "--model.code_noise", "0.01"]
    main(["train", "autoencoder", "demo", "--data.source", "photos", *few, *options])
    said = capsys.readouterr().out
    psnr = float(said.split("PSNR")[1].split("dB")[0].strip(" │\n"))
    assert psnr > 20, "block components alone give that on photographs"
    assert list(tmp_path.glob("**/reconstructions.png"))
