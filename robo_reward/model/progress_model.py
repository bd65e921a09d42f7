"""The progress model: pixels of any cameras to distributions over stage, in-stage progress, hop and success.

    frames -> encoder per view -> fusion over views -> state z_t of one moment
    (z_t, anchor z_first, goal z_goal, instruction, proprioception) -> causal trunk -> heads

Heads, with K stages and B bins: `p(stage)`, `p(tau | stage)` for every stage, and success. Together the first
two are one distribution over task progress `Phi = W_stage + w_stage tau`, whose mean is the estimate and
whose spread is its raw uncertainty; an ensemble of E such heads adds what they disagree about. The hop head
compares two states (first and now, now and goal, before and now).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor, nn

from robo_reward.errors import ConfigError
from robo_reward.fusion import hop_table
from robo_reward.imports import instantiate
from robo_reward.model.chunks import encode_pieces
from robo_reward.model.config import ModelConfig
from robo_reward.model.fusion import AttentionFusion
from robo_reward.model.heads import EnsembleLinear
from robo_reward.model.trunk import CausalTrunk

__all__ = ["Context", "Prediction", "ProgressModel"]

_CAMERA_WIDTH = 16
_ENCODER_BATCH = 16


@dataclass(frozen=True)
class Prediction:
    """Raw outputs for any leading shape.

    stage_logits  f32[..., E, K] of the E heads of the ensemble, -inf at stages that the task does not have
    tau_logits    f32[..., E, K, B]
    success_logit f32[...]
    """

    stage_logits: Tensor
    tau_logits: Tensor
    success_logit: Tensor


@dataclass(frozen=True)
class Context:
    """What stays the same over an episode, for b episodes.

    first, goal    f32[b, d] states of the anchor and of the goal picture; their masks say where they exist
    text           f32[b, d] instruction embedding
    task           i64[b] task index
    """

    first: Tensor
    first_mask: Tensor
    goal: Tensor
    goal_mask: Tensor
    text: Tensor
    task: Tensor


class ProgressModel(nn.Module):
    """See the module docstring. Built from a `ModelConfig` alone."""

    stage_weights: Tensor
    stage_mask: Tensor
    tau_values: Tensor
    hop_values: Tensor
    hop_table: Tensor
    familiar_mean: Tensor
    familiar_whiten: Tensor
    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        if width % config.heads or (width // config.heads) % 2:
            raise ConfigError(f"model.width={width} must be an even multiple of model.heads={config.heads}")
        self.encoder: Any = instantiate(
            config.encoder, image_size=config.image_size, width=width, camera_width=_CAMERA_WIDTH + 1
        )
        self.camera = nn.Embedding(len(config.cameras) + 1, _CAMERA_WIDTH)  # row 0: unknown camera
        self.fusion = AttentionFusion(width, _CAMERA_WIDTH)
        self.sentence_encoder: Any = instantiate(config.instruction) if config.instruction else None
        if self.sentence_encoder is None:
            # A row for each task, whichever of its wordings is used; row 0: unknown. Small at first: large
            # random vectors would be noise that training has to unlearn.
            self.text: nn.Module = nn.Embedding(len(config.tasks) + 1, width)
            nn.init.normal_(self.text.weight, std=0.1)
        else:
            self.text = nn.Linear(np.asarray(self.sentence_encoder(["probe"])).shape[-1], width)
        self.no_first = nn.Parameter(torch.zeros(width))
        self.no_goal = nn.Parameter(torch.zeros(width))
        self.join = nn.Sequential(
            nn.Linear(4 * width, 2 * width),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * width, width),
        )
        self.proprio = nn.Linear(config.proprio_dim + 1, width) if config.proprio_dim else None
        self.trunk = CausalTrunk(
            width, config.layers, config.heads, config.window, config.period_s, config.dropout
        )
        stages, bins = config.max_stages, config.tau_bins
        self.stage_head = EnsembleLinear(config.ensemble, width, stages)
        self.tau_head = nn.Sequential(
            nn.Linear(width, config.ensemble * width),
            nn.SiLU(),
            nn.Unflatten(-1, (config.ensemble, width)),
            EnsembleLinear(config.ensemble, width, stages * bins),
        )
        self.success_head = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1))
        self.hop_head = nn.Sequential(
            nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, config.hop_bins)
        )
        self._register_tables(config)

    def _register_tables(self, config: ModelConfig) -> None:
        weights = torch.zeros(len(config.tasks), config.max_stages)
        mask = torch.zeros(len(config.tasks), config.max_stages, dtype=torch.bool)
        for index, task in enumerate(config.tasks):
            weights[index, : len(task.stage_weights)] = torch.tensor(task.stage_weights)
            mask[index, : len(task.stage_weights)] = True
        self.register_buffer("stage_weights", weights, persistent=False)
        self.register_buffer("stage_mask", mask, persistent=False)
        self.register_buffer("tau_values", torch.linspace(0.0, 1.0, config.tau_bins), persistent=False)
        self.register_buffer("hop_values", torch.linspace(-1.0, 1.0, config.hop_bins), persistent=False)
        table = torch.from_numpy(hop_table(self.hop_values.numpy())).float()
        self.register_buffer("hop_table", table, persistent=False)
        self.register_buffer("familiar_mean", torch.zeros(config.width))
        self.register_buffer("familiar_whiten", torch.zeros(config.width, config.width))
        size = max(config.proprio_dim, 1)
        self.register_buffer("proprio_mean", torch.zeros(size))
        self.register_buffer("proprio_std", torch.ones(size))

    def camera_ids(self, names: Sequence[str]) -> Int[Tensor, " v"]:
        """Embedding rows of camera names; cameras the model was not trained on share row 0."""
        known = {name: index + 1 for index, name in enumerate(self.config.cameras)}
        return torch.tensor([known.get(name, 0) for name in names], device=self.no_goal.device)

    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Instruction embeddings; a text the learned table does not know gets the "unknown" row."""
        device = self.no_goal.device
        if self.sentence_encoder is None:
            known = [self.config.task_of(text) for text in texts]
            rows = [0 if index is None else index + 1 for index in known]
            return self.text(torch.tensor(rows, device=device))
        features = np.asarray(self.sentence_encoder(list(texts)), dtype=np.float32)
        return self.text(torch.from_numpy(features).to(device))

    def remember(self, first: UInt8[Tensor, "*batch v h w 3"], mask: Bool[Tensor, "*batch v"]) -> Tensor:
        """What the encoder keeps of each camera's first image of the episode: f32[*batch, v, ...].

        It is zero where masked.
        """
        flat = mask.reshape(-1)
        images = first.reshape(-1, *first.shape[-3:])[flat].permute(0, 3, 1, 2)
        if not len(images):
            images = first.new_zeros(1, 3, *first.shape[-3:-1])
            kept = self.encoder.remember(images)[:0]
        else:
            kept = self.encoder.remember(images)
        memory = kept.new_zeros(len(flat), *kept.shape[1:]).index_put((flat.nonzero()[:, 0],), kept)
        return memory.view(*mask.shape, *kept.shape[1:])

    def encode(
        self,
        rgb: UInt8[Tensor, "*batch v h w 3"],
        camera: Int[Tensor, "*batch v"],
        mask: Bool[Tensor, "*batch v"],
        memory: Tensor,
        known: Bool[Tensor, "..."],
    ) -> Float[Tensor, "*batch v d"]:
        """Each view's embedding, seen beside what is remembered of the same camera's first image.

        Only live images are encoded, the rest are zero.

        Args:
            memory: what `remember` gave, f32[..., v, ...]; its leading axes are those of `mask`, or 1.
            known: bool[..., v] of the same leading axes: where there is a first image. Elsewhere `memory`
                does not matter.
        """
        flat = mask.reshape(-1)
        features = self.camera.weight.new_zeros(flat.shape[0], self.config.width)
        if bool(flat.any()):
            images, memory, named = self._beside(rgb, camera, mask, memory, known)
            count = len(images)
            if self.training:
                # Convolution kernels are tuned anew for every batch size: round it up, so that there are few,
                # with images of the batch: black ones would count in the statistics of batch normalization.
                filled = torch.arange(count + -count % _ENCODER_BATCH, device=images.device) % count
                images, memory, named = images[filled], memory[filled], named[filled]
            live = encode_pieces(self.encoder, images, memory, named)[:count]
            features = features.to(live.dtype).index_put((flat.nonzero()[:, 0],), live)
        return features.view(*mask.shape, -1)

    def look(
        self,
        rgb: UInt8[Tensor, "*batch v h w 3"],
        camera: Int[Tensor, "*batch v"],
        mask: Bool[Tensor, "*batch v"],
        memory: Tensor,
        known: Bool[Tensor, "..."],
    ) -> tuple[Float[Tensor, "*batch v d"], Float[Tensor, "*batch v c i j"]]:
        """What `encode` gives, and beside it each view's map (see `robo_reward.model.encoders`).

        Raises:
            ConfigError: the encoder has no maps.
        """
        flat = mask.reshape(-1)
        if not bool(flat.any()):
            nothing = self.camera.weight.new_zeros(flat.shape[0], self.config.width)
            maps = nothing.new_zeros(*mask.shape, *self.map_shape())
            return nothing.view(*mask.shape, -1), maps
        where = (flat.nonzero()[:, 0],)
        live, seen = self.encoder.look(*self._beside(rgb, camera, mask, memory, known))
        features = live.new_zeros(flat.shape[0], self.config.width).index_put(where, live)
        maps = seen.new_zeros(flat.shape[0], *seen.shape[1:]).index_put(where, seen)
        return features.view(*mask.shape, -1), maps.view(*mask.shape, *maps.shape[1:])

    def map_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of a view's map.

        Raises:
            ConfigError: the encoder has none.
        """
        if not hasattr(self.encoder, "look"):
            raise ConfigError(
                f"the encoder {type(self.encoder).__name__} has no maps (no method look): "
                "robo_reward.model.encoders.TinyEncoder has"
            )
        weight = self.no_goal
        image = torch.zeros(1, 3, *self.config.image_size, dtype=torch.uint8, device=weight.device)
        with torch.no_grad():
            named = weight.new_zeros(1, _CAMERA_WIDTH + 1)
            _, seen = self.encoder.look(image, self.encoder.remember(image), named)
        channels, rows, columns = seen.shape[1:]
        return channels, rows, columns

    def _beside(
        self, rgb: Tensor, camera: Tensor, mask: Tensor, memory: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The live images, u8[n, 3, h, w], what each is seen beside, and the names of their cameras."""
        ids = self.camera(camera)
        flat = mask.reshape(-1)
        images = rgb.reshape(-1, *rgb.shape[-3:])[flat].permute(0, 3, 1, 2)
        beside = known.expand(mask.shape)
        named = torch.cat([ids, beside[..., None].to(ids.dtype)], dim=-1).reshape(-1, ids.shape[-1] + 1)[flat]
        memory = memory.reshape(known.numel(), *memory.shape[known.ndim :])
        if known.shape != mask.shape or not bool(flat.all()):
            rows = torch.arange(known.numel(), device=mask.device).view(known.shape).expand(mask.shape)
            memory = memory[rows.reshape(-1)[flat]]
        return images, self._unchanged(images, memory, beside.reshape(-1)[flat]), named

    def _unchanged(self, images: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        """Memory of images n with that of the image itself where there is no first one."""
        if bool(known.all()):
            return memory
        own = self.encoder.remember(images[~known])
        return memory.to(own.dtype).index_put(((~known).nonzero()[:, 0],), own)

    def fuse(
        self,
        features: Float[Tensor, "*batch v d"],
        camera: Int[Tensor, "*batch v"],
        mask: Bool[Tensor, "*batch v"],
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch v"]]:
        """State z of each moment from its views' embeddings, and each view's share of the attention."""
        return self.fusion(features, self.camera(camera).to(features.dtype), mask)

    def inputs(
        self,
        state: Float[Tensor, "b t d"],
        context: Context,
        proprio: Float[Tensor, "b t p"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """What the trunk sees: each state beside its anchor, its goal and the instruction.

        Proprioception with NaN in it counts as missing.
        """
        first = torch.where(context.first_mask[:, None], context.first, self.no_first)[:, None].expand_as(
            state
        )
        goal = torch.where(context.goal_mask[:, None], context.goal, self.no_goal)[:, None].expand_as(state)
        text = context.text[:, None].expand_as(state)
        x = state + self.join(torch.cat([state, first, goal, text], dim=-1))
        if self.proprio is not None:
            if proprio is None:
                proprio = state.new_full((*state.shape[:2], self.config.proprio_dim), float("nan"))
            known = torch.isfinite(proprio).all(dim=-1, keepdim=True)
            scaled = torch.where(known, (proprio - self.proprio_mean) / self.proprio_std, 0.0)
            x = x + self.proprio(torch.cat([scaled.clamp(-10, 10), known.to(scaled.dtype)], dim=-1))
        return x

    def heads(self, h: Float[Tensor, "*batch d"], task: Int[Tensor, "*batch"]) -> Prediction:
        """Distributions from trunk outputs."""
        stages, bins = self.config.max_stages, self.config.tau_bins
        mask = self.stage_mask[task][..., None, :]
        each = h[..., None, :].expand(*h.shape[:-1], self.config.ensemble, -1)
        return Prediction(
            stage_logits=self.stage_head(each).float().masked_fill(~mask, float("-inf")),
            tau_logits=self.tau_head(h).float().unflatten(-1, (stages, bins)),
            success_logit=self.success_head(h).float()[..., 0],
        )

    def hop_logits(
        self, start: Float[Tensor, "*batch d"], end: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch m"]:
        """Logits over `hop_values` of the hop from one state to another."""
        return self.hop_head(torch.cat([start, end, end - start], dim=-1)).float()

    def hop_moments(
        self, start: Float[Tensor, "*batch d"], end: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch 4"]:
        """Moments of the hop from one state to another: see `robo_reward.fusion.hop_table`."""
        return self.hop_logits(start, end).softmax(dim=-1) @ self.hop_table

    def strangeness(self, state: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Mahalanobis distance of states from those that `familiar_mean` and `_whiten` were fitted on."""
        return ((state - self.familiar_mean) @ self.familiar_whiten).norm(dim=-1)

    def forward(
        self,
        state: Float[Tensor, "b t d"],
        context: Context,
        time_s: Float64[Tensor, "b t"],
        mask: Bool[Tensor, "b t"],
        proprio: Float[Tensor, "b t p"] | None = None,
    ) -> Prediction:
        """Predictions at every moment from the moments up to it; `mask` is False where nothing was seen."""
        h = self.trunk(self.inputs(state, context, proprio), time_s, mask)
        return self.heads(h, context.task[:, None].expand(h.shape[:2]))

    def progress_support(self, task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch k m"]:
        """Task progress that each (stage, tau bin) stands for."""
        weights = self.stage_weights[task]
        before = weights.cumsum(dim=-1) - weights
        return before[..., None] + weights[..., None] * self.tau_values
