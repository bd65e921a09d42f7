"""Image encoders: one view of one moment in, one embedding out.

An encoder is a module with

    remember(rgb u8[n, 3, h, w]) -> f32[n, ...]: what it keeps of a camera's first image of the episode
    forward(rgb u8[n, 3, h, w], memory f32[n, ...], camera f32[n, e]) -> f32[n, d]

built as `Encoder(image_size=(h, w), width=d, camera_width=e, **arguments)`. `memory` is what `remember` gave
for the same camera's first image of the episode, so that this work is done once an episode; where that image
is unknown it is what `remember` gives for the image itself ("no change"), and the last column of `camera` is
0 instead of 1. The other columns are the camera embedding that tells the views, which share the encoder,
apart. Images are treated independently (no batch statistics): streaming and batches have to agree.

An encoder may also have

    look(rgb, memory, camera) -> (f32[n, d], f32[n, c, i, j]): the embedding, and the map it was read from

or refuse it with a ConfigError. A map keeps where things are, in i rows and j columns of the image; an
embedding that was made to tell how far a task has come does not. Policies look at it (see
`robo_reward.improve.observer`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robo_reward.errors import ConfigError

__all__ = ["Backbone", "TinyEncoder"]

# Where training scripts keep weights in their checkpoints; timm takes the first of them, too.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_MAP_SIDE, _MAP_CHANNELS = 8, 64  # of a backbone's map: policies keep it for every moment of every rollout


class TinyEncoder(nn.Module):
    """A small convolutional net that trains from scratch on two CPU cores (23 M multiply-adds at 96x128).

    It sees each image beside its change since the first image of the episode: what moved, and what is gone,
    is there from the first layer on. That layer is linear, so the first image's part in it is computed once
    an episode. Four convolutions of stride 2; features are shifted and scaled by the
    camera embedding (FiLM, Perez et al. 2018, so that one net serves views as different as a wrist and a
    corner), and read out twice: the whole map, which keeps positions, and its average and maximum over the
    image, which do not depend on them.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        width: int,
        camera_width: int,
        channels: Sequence[int] = (24, 32, 64, 128),
        bottleneck: int = 64,
        position: bool = True,
        groups: Sequence[int] = (4, 4, 4, 4),
    ) -> None:
        super().__init__()
        c1, c2, c3, c4 = channels
        self.stem = nn.Conv2d(3, c1, 5, stride=2, padding=2)
        self.start = nn.Conv2d(3, c1, 5, stride=2, padding=2, bias=False)
        self.down1 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(c2, c3, 3, stride=2, padding=1)
        self.film = nn.Linear(camera_width, 2 * c3)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.down3 = nn.Conv2d(c3, c4, 3, stride=2, padding=1)
        # Per image, unlike batch norm: fewer steps to the same error, and streams agree with batches.
        # On a CPU its gradient takes several times as long where a group is no multiple of 8 channels.
        # Where channels do not divide into the groups asked for, there are as many as divide both.
        self.norms = nn.ModuleList(
            nn.GroupNorm(math.gcd(wanted, c), c) for wanted, c in zip(groups, channels, strict=True)
        )
        height, width_px = image_size
        cells = -(-height // 16) * -(-width_px // 16)
        self.squeeze = nn.Conv2d(c4, bottleneck, 1) if position else None
        self.readout = nn.Linear((bottleneck * cells if position else 0) + 2 * c4, width)
        self.norm = nn.LayerNorm(width)

    def remember(self, rgb: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n c i j"]:
        """What the first image adds to the first layer."""
        return -self.start(_scaled(rgb))

    def forward(
        self,
        rgb: UInt8[Tensor, "n 3 h w"],
        memory: Float[Tensor, "n c i j"],
        camera: Float[Tensor, "n e"],
    ) -> Float[Tensor, "n d"]:
        """Embed each image beside its change since the remembered one; pixels are scaled to [-1, 1]."""
        return self.look(rgb, memory, camera)[0]

    def look(
        self,
        rgb: UInt8[Tensor, "n 3 h w"],
        memory: Float[Tensor, "n c i j"],
        camera: Float[Tensor, "n e"],
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n m k l"]]:
        """The embedding, and the last map of features at a sixteenth of the image's size."""
        x = nn.functional.relu(self.norms[0](self.stem(_scaled(rgb)).add_(memory)), inplace=True)
        x = nn.functional.relu(self.norms[1](self.down1(x)), inplace=True)
        x = self.norms[2](self.down2(x))
        scale, shift = self.film(camera).to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        x = nn.functional.relu(torch.addcmul(x + shift, x, scale), inplace=True)
        x = nn.functional.relu(self.norms[3](self.down3(x)), inplace=True)
        parts = [x.mean(dim=(2, 3)), x.amax(dim=(2, 3))]
        if self.squeeze is not None:
            x = nn.functional.relu(self.squeeze(x))
            parts.append(x.flatten(1))
        return self.norm(self.readout(torch.cat(parts, dim=1))), x


def _scaled(rgb: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    return rgb.contiguous(memory_format=torch.channels_last).float().mul_(1 / 127.5).sub_(1.0)


class Backbone(nn.Module):
    """Any timm or torchvision image model by name, with its own weights and normalization.

    Args:
        name: a timm model name (`vit_small_patch14_dinov2.lvd142m`), or `torchvision/<name>`.
        pretrained: download and load the published weights (needs network access or a filled cache).
        weights: path of a local state dict (`.safetensors` or `.pt`) to load instead: as published, as
            `body.state_dict()` gave it, or in a training script's checkpoint (`state_dict`, `model`, ...).
        frozen: keep the backbone fixed and in eval mode; only the projection learns.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: tuple[int, int],
        width: int,
        camera_width: int,
        name: str = "vit_small_patch14_dinov2.lvd142m",
        pretrained: bool = True,
        weights: str | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.name, self.frozen = name, frozen
        self.body, mean, std = _build_backbone(name, image_size, pretrained and weights is None)
        if weights is not None:
            _load_weights(self.body, weights)
        features = _count_features(self.body, name, image_size)
        self.body.requires_grad_(not frozen).train(not frozen)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.project = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
        self.camera = nn.Linear(camera_width, width)
        self.norm = nn.LayerNorm(width)

    def train(self, mode: bool = True) -> Backbone:
        """As for any module, but a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def remember(self, rgb: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 0"]:
        """Nothing: the first image reaches the trunk alone."""
        return torch.zeros(len(rgb), 0, device=rgb.device)

    def forward(
        self, rgb: UInt8[Tensor, "n 3 h w"], memory: Float[Tensor, "n 0"], camera: Float[Tensor, "n e"]
    ) -> Float[Tensor, "n d"]:
        """Embed each image, normalized as the backbone was trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.body(self._normalized(rgb))
        return self._embed(features, camera)

    def look(
        self, rgb: UInt8[Tensor, "n 3 h w"], memory: Float[Tensor, "n 0"], camera: Float[Tensor, "n e"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n c i j"]]:
        """The embedding, and the last map: averaged to at most 8x8, 64 random mixtures of its channels.

        Raises:
            ConfigError: a model without `forward_intermediates`, as those of torchvision.
        """
        if not hasattr(self.body, "forward_intermediates"):
            raise ConfigError(
                f"backbone '{self.name}' has no maps: choose a timm model, or leave the map out"
            )
        body: Any = self.body
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            last, (grid,) = body.forward_intermediates(
                self._normalized(rgb), indices=1, output_fmt="NCHW", norm=True
            )
            features = body.forward_head(last)
        rows, columns = (min(side, _MAP_SIDE) for side in grid.shape[-2:])
        grid = nn.functional.adaptive_avg_pool2d(grid, (rows, columns))
        return self._embed(features, camera), torch.einsum("mc,ncij->nmij", _mixture(grid), grid)

    def _normalized(self, rgb: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        return (rgb.float() / 255.0 - self.mean) / self.std

    def _embed(self, features: Float[Tensor, "n f"], camera: Float[Tensor, "n e"]) -> Float[Tensor, "n d"]:
        return self.norm(self.project(features) + self.camera(camera))


def _mixture(grid: Float[Tensor, "n c i j"]) -> Float[Tensor, "m c"]:
    """A random projection of channels, always the same: it keeps distances (Johnson-Lindenstrauss)."""
    channels = grid.shape[1]
    if channels <= _MAP_CHANNELS:
        return torch.eye(channels, device=grid.device, dtype=grid.dtype)
    mixture = torch.randn(_MAP_CHANNELS, channels, generator=torch.Generator().manual_seed(0))
    return (mixture / _MAP_CHANNELS**0.5).to(grid)


def _build_backbone(
    name: str, image_size: tuple[int, int], pretrained: bool
) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    if name.startswith("torchvision/"):
        return _build_torchvision(name.removeprefix("torchvision/"), pretrained)
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"backbone '{name}' needs timm: pip install 'robo-reward[backbones]' "
            "(or name torchvision/<model>)"
        ) from error
    try:
        published = timm.get_pretrained_cfg(name)
        fixed = published is not None and published.fixed_input_size  # transformers are built for one size
        sizes: dict[str, Any] = {"img_size": image_size} if fixed else {}
        body: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **sizes)
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"backbone '{name}': {error}; choose one of timm.list_models(), or give encoder.weights=FILE"
        ) from error
    data = resolve_model_data_config(body)
    return body, data["mean"], data["std"]


def _build_torchvision(name: str, pretrained: bool) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    from torchvision import models

    if name not in models.list_models():
        raise ConfigError(f"torchvision has no model '{name}': see torchvision.models.list_models()")
    try:
        body = models.get_model(name, weights="DEFAULT" if pretrained else None)
    except OSError as error:
        raise ConfigError(f"cannot download the weights of torchvision/{name}: {error}") from error
    linear = [n for n, m in body.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise ConfigError(f"torchvision/{name} has no last linear layer to take off: choose another model")
    parent = body.get_submodule(linear[-1].rpartition(".")[0])
    setattr(parent, linear[-1].rpartition(".")[2], nn.Identity())
    return body, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _count_features(body: nn.Module, name: str, image_size: tuple[int, int]) -> int:
    """How many features an image has; refuses a size that the backbone does not take, before the first batch.

    Some models of timm end in a convolution of other width than the `num_features` that they name.
    """
    height, width = image_size
    try:
        with torch.no_grad():
            found = body.eval()(torch.zeros(1, 3, height, width))
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"backbone '{name}' does not take images of {height}x{width} pixels: {error} Set image_size=[h,w]"
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise ConfigError(f"backbone '{name}' gives no vector for an image: choose a model that classifies")
    return found.shape[1]


def _load_weights(body: nn.Module, path: str) -> None:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"encoder.weights: no file '{path}'")
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, SafetensorError, UnpicklingError, EOFError) as error:
        raise ConfigError(f"encoder.weights='{path}' is not a file of weights: {error}") from error
    problem: str | None = None
    for weights in _readings(body, state):
        problem = _misfit(body, weights)
        if problem is None:
            return
    raise ConfigError(f"encoder.weights='{path}' does not fit the backbone: {problem}")


def _readings(body: nn.Module, state: Any) -> Iterator[Any]:
    """A file as it is, then without a training script's wrapper, then without a prefix of all its names."""
    yield state
    if not isinstance(state, Mapping):
        return
    wrapped = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None)
    if wrapped is not None:
        yield wrapped
    plain = _without_prefix(body, state if wrapped is None else wrapped)
    if plain is not None:
        yield plain


def _without_prefix(body: nn.Module, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Weights without what wrappers put before every name (`module.`); None where nothing is before them."""
    own = {key.partition(".")[0] for key in body.state_dict()}
    plain = {str(key): value for key, value in state.items()}
    while len(first := {key.partition(".")[0] for key in plain}) == 1 and not first & own:
        if first & plain.keys():
            break
        plain = {key.partition(".")[2]: value for key, value in plain.items()}
    return None if plain.keys() == state.keys() else plain


def _misfit(body: Any, state: Any) -> str | None:
    """Load weights into the body: None, or why they do not fit.

    A published file has what was taken off the body to classify, and nothing else that the body lacks.
    """
    try:
        missing, unexpected = body.load_state_dict(_fitted(body, state), strict=False)
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:  # timm's filters trust what they get
        return str(error)
    classifiers = getattr(body, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    # Norms and hidden layers beside a classifier are taken off with it: `head.norm` where it is `head.fc`.
    heads = {name.partition(".")[0] for name in classifiers}
    known = all(key.partition(".")[0] in heads for key in unexpected)
    if missing or not (known or len({key.rpartition(".")[0] for key in unexpected}) <= 1):
        return f"missing {missing[:3]}, unknown {unexpected[:3]}"
    return None


def _fitted(body: Any, state: Any) -> Any:
    """Published weights for a body of another image size: timm resamples positions, as where it downloads."""
    resample = getattr(sys.modules.get(type(body).__module__), "checkpoint_filter_fn", None)
    return state if resample is None else resample(state, body)
