"""Every image encoder conforms, and a backbone comes from a file or by name, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models as torchvision_models

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import load_checkpoint, save_checkpoint
from robo_reward.errors import ConfigError
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.encoders import Backbone, TinyEncoder
from robo_reward.model.progress_model import ProgressModel
from robo_reward.testing import check_encoder

WIDTH, CAMERA_WIDTH = 24, 16
SIZES = [(84, 84), (96, 128), (37, 50)]
SMALL = "test_vit"  # timm's own smallest transformer, 0.3 M parameters
TORCHVISION = "torchvision/resnet18"


def backbone(size: tuple[int, int] = (64, 64), name: str = SMALL, weights: Path | None = None) -> Backbone:
    torch.manual_seed(0)
    file = None if weights is None else str(weights)
    return Backbone(size, WIDTH, CAMERA_WIDTH, name=name, pretrained=False, weights=file)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of random weights, which stands for a downloaded one."""
    pytest.importorskip("timm")
    torch.manual_seed(1)
    state = {name: torch.randn_like(value) * 0.1 for name, value in backbone().body.state_dict().items()}
    save_file(state, tmp_path / "backbone.safetensors")
    return tmp_path / "backbone.safetensors"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("position", [True, False])
def test_the_tiny_encoder_conforms(size: tuple[int, int], position: bool) -> None:
    encoder = TinyEncoder(size, WIDTH, CAMERA_WIDTH, channels=(4, 8, 8, 16), bottleneck=4, position=position)
    check_encoder(encoder, size, WIDTH, CAMERA_WIDTH)


def test_groups_are_as_asked_for_and_an_encoder_without_them_is_the_one_of_before() -> None:
    def groups(**arguments: tuple[int, ...]) -> list[int]:
        encoder = TinyEncoder((32, 32), WIDTH, CAMERA_WIDTH, channels=(24, 9, 10, 16), **arguments)
        return [norm.num_groups for norm in encoder.norms]

    assert groups(groups=(3, 3, 5, 8)) == [3, 3, 5, 8]
    # Before there were four, or two, or one, and never three: models of then have to load as they were.
    assert groups() == [4, 1, 2, 4]


def test_a_transformer_conforms_and_refuses_sizes_its_patches_do_not_fill() -> None:
    pytest.importorskip("timm")
    check_encoder(backbone((96, 128)), (96, 128), WIDTH, CAMERA_WIDTH)
    with pytest.raises(ConfigError, match=r"'test_vit' does not take images of 84x84.*Set image_size"):
        backbone((84, 84))


@pytest.mark.parametrize("name", ["test_resnet", TORCHVISION])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_convolutional_backbone_conforms(name: str, size: tuple[int, int]) -> None:
    if not name.startswith("torchvision/"):
        pytest.importorskip("timm")
    check_encoder(backbone(size, name), size, WIDTH, CAMERA_WIDTH)


def test_the_check_finds_what_does_not_conform() -> None:
    class Mixes(nn.Module):
        def remember(self, rgb: torch.Tensor) -> torch.Tensor:
            return rgb.float()

        def forward(self, rgb: torch.Tensor, memory: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
            return rgb.float().mean() + rgb.float().mean(dim=(1, 2, 3))[:, None].expand(-1, WIDTH)

    with pytest.raises(AssertionError, match="changes the embedding of others"):
        check_encoder(Mixes(), (8, 8), WIDTH, CAMERA_WIDTH)
    with pytest.raises(AssertionError, match=r"gives \(5, 24\) for 5 images, needs \(5, 12\)"):
        check_encoder(TinyEncoder((16, 16), WIDTH, CAMERA_WIDTH), (16, 16), 12, CAMERA_WIDTH)


def test_a_frozen_backbone_neither_learns_nor_leaves_eval_mode() -> None:
    """Batch statistics of a ResNet would change in training mode, without any gradient."""
    encoder = backbone((40, 40), TORCHVISION)
    for switched in (encoder, encoder.train()):
        assert switched.training
        assert not any(module.training for module in switched.body.modules())
    before = {name: value.clone() for name, value in encoder.body.state_dict().items()}
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    rgb = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoder(rgb, encoder.remember(rgb), torch.ones(4, CAMERA_WIDTH))[:, :3].sum().backward()
    assert all(parameter.grad is None for parameter in encoder.body.parameters())
    assert encoder.project[1].weight.grad.abs().sum() > 0
    optimizer.step()
    after = encoder.body.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    learning = Backbone((40, 40), WIDTH, CAMERA_WIDTH, TORCHVISION, pretrained=False, frozen=False).train()
    assert learning.body.training
    assert all(parameter.requires_grad for parameter in learning.body.parameters())


def test_weights_from_a_file_are_those_in_the_file(weights: Path, tmp_path: Path) -> None:
    wanted = load_file(weights)
    found = backbone(weights=weights).body.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    torch.save(wanted, tmp_path / "backbone.pt")
    again = backbone(weights=tmp_path / "backbone.pt").body.state_dict()
    assert all(torch.equal(again[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", TORCHVISION])
def test_published_weights_fit_without_their_last_layer_and_at_another_size(
    name: str, tmp_path: Path
) -> None:
    """Files as hubs have them: with a classifier, transformers with positions of their own image size."""
    timm = pytest.importorskip("timm")
    torchvision = name.startswith("torchvision/")
    make = torchvision_models.get_model if torchvision else timm.create_model
    published = make(name.removeprefix("torchvision/"))
    torch.save(published.state_dict(), tmp_path / "published.pt")
    found = backbone((96, 128), name, weights=tmp_path / "published.pt").body.state_dict()
    shared = [key for key, value in published.state_dict().items() if key in found and value.ndim]
    same = [torch.equal(found[key], published.state_dict()[key]) for key in shared if "pos_embed" not in key]
    assert len(same) > 10
    assert all(same)


HEADS = ["deit_tiny_distilled_patch16_224", "levit_128s"]  # a classifier and its teacher's; norms beside them


@pytest.mark.parametrize("name", HEADS)
def test_published_weights_may_have_two_classifiers(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    published = timm.create_model(name).state_dict()
    assert len({key.rpartition(".")[0] for key in published if key.startswith("head")}) > 1
    torch.save(published, tmp_path / "published.pt")
    found = backbone((224, 224), name, tmp_path / "published.pt").body.state_dict()
    assert len(found) > 50
    assert all(torch.equal(found[key], published[key]) for key in found)
    torch.save({**published, "neck.weight": torch.zeros(3)}, tmp_path / "more.pt")
    with pytest.raises(
        ConfigError, match=r"more\.pt' does not fit the backbone: missing \[\], unknown .*neck"
    ):
        backbone((224, 224), name, tmp_path / "more.pt")


@pytest.mark.parametrize("name", [SMALL, "test_resnet", TORCHVISION])
@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        ("state_dict", ""),
        ("state_dict", "model.module."),
        ("model", ""),
        ("model_ema", "module."),
        (None, "module."),
    ],
)
def test_weights_are_taken_out_of_a_training_scripts_checkpoint(
    name: str, wrapper: str | None, prefix: str, tmp_path: Path
) -> None:
    if name != TORCHVISION:
        pytest.importorskip("timm")
    torch.manual_seed(3)
    wanted = backbone(name=name).body.state_dict()
    wanted = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in wanted.items()}
    state = {prefix + key: value for key, value in wanted.items()}
    torch.save(state if wrapper is None else {"epoch": 3, wrapper: state}, tmp_path / "last.pt")
    found = backbone(name=name, weights=tmp_path / "last.pt").body.state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    del state[next(iter(state))]
    torch.save({"epoch": 3, "model": state}, tmp_path / "torn.pt")
    with pytest.raises(ConfigError, match=r"torn\.pt' does not fit the backbone: missing \['"):
        backbone(name=name, weights=tmp_path / "torn.pt")


def test_a_backbone_that_ends_in_a_convolution_is_as_wide_as_what_it_gives() -> None:
    timm = pytest.importorskip("timm")
    assert timm.create_model("mobilenetv3_small_050", num_classes=0).num_features == 288  # it gives 1024
    check_encoder(backbone((64, 64), "mobilenetv3_small_050"), (64, 64), WIDTH, CAMERA_WIDTH)
    with pytest.raises(ConfigError, match="no last linear layer"):
        backbone((64, 64), "torchvision/squeezenet1_0")


def test_wrong_files_and_names_are_refused_by_name(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file '.*gone\.pt'"):
        backbone(weights=tmp_path / "gone.pt")
    with pytest.raises(ConfigError, match=r"backbone\.safetensors' does not fit the backbone"):
        backbone(name=TORCHVISION, weights=weights)
    for name in ("noise.safetensors", "noise.pt"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(ConfigError, match=rf"{name}' is not a file of weights"):
            backbone(weights=tmp_path / name)
    for number, held in enumerate(([torch.zeros(2)], torch.zeros(2), {"weights": {"a": torch.zeros(2)}}, {})):
        torch.save(held, tmp_path / f"{number}.pt")
        for name in (SMALL, TORCHVISION):
            with pytest.raises(ConfigError, match=rf"{number}\.pt' does not fit the backbone"):
                backbone(name=name, weights=tmp_path / f"{number}.pt")
    with pytest.raises(ConfigError, match=r"backbone 'resnet19000'.*timm\.list_models"):
        backbone(name="resnet19000")
    with pytest.raises(ConfigError, match="torchvision has no model 'resnet19'"):
        backbone(name="torchvision/resnet19")


@pytest.mark.parametrize("origin", [{"pretrained": False}, {}], ids=["told", "by default"])
def test_a_checkpoint_needs_no_download(
    origin: dict[str, bool], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run holds the backbone's weights: nothing is fetched again, and the first file may be gone."""
    encoder = {"_target_": "robo_reward.model.encoders.Backbone", "name": SMALL, "weights": str(weights)}
    config = ModelConfig(
        encoder={**encoder, **origin},
        tasks=(TaskConfig(("go",), ("a", "b"), (0.5, 0.5)),),
        cameras=("front",),
        image_size=(64, 64),
        period_s=0.1,
        width=16,
    )
    model = ProgressModel(config)
    save_checkpoint(tmp_path / "run", model, Calibration(), {})
    kept = json.loads((tmp_path / "run" / "model.json").read_text())["model"]["encoder"]
    assert kept["pretrained"] is False
    assert kept["weights"] is None
    weights.unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = load_checkpoint(tmp_path / "run").model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
