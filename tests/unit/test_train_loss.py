"""What training asks of every window beside its own task: told another's instruction, nothing has begun."""

from __future__ import annotations

from dataclasses import replace

import torch

from robo_reward.clips import CounterfactualInstruction
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward.train.config import HoldoutConfig, WindowConfig
from robo_reward.train.data import WindowSampler
from robo_reward.train.loop import to_tensors
from robo_reward.train.loss import TensorBatch, losses, predict
from robo_reward.train.split import make_split

TASKS = (
    TaskConfig(("fill the bar",), ("red", "green"), (0.5, 0.5)),
    TaskConfig(("empty the bar",), ("green", "red"), (0.5, 0.5)),
)


def model_and_batch() -> tuple[ProgressModel, TensorBatch]:
    """Windows of the first task, some of which are told the second."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [8, 8, 8, 8],
            "groups": [3, 4, 4, 4],
            "bottleneck": 4,
        },
        tasks=TASKS,
        cameras=("front", "wrist"),
        image_size=(32, 32),
        period_s=0.1,
        width=16,
        heads=2,
        layers=1,
    )
    readers = [MemoryReader(toy_episode(index)) for index in range(2)]
    split = make_split([r.info for r in readers], HoldoutConfig(calibration=0.0, test=0.0), seed=1)
    swap = {"swap": CounterfactualInstruction(0.5, tuple(task.instructions[0] for task in TASKS))}
    windows = WindowConfig(frames=4)
    sampler = WindowSampler(readers, split, config, windows, swap, {}, 1e9, [None] * len(readers))
    batch = to_tensors(sampler.batch(12, seed=3, step=0), torch.device("cpu"))
    assert set(batch.off_task.tolist()) == {True, False}
    return ProgressModel(config).eval(), batch


def test_told_another_task_nothing_has_begun() -> None:
    model, batch = model_and_batch()
    _, state, context = predict(model, batch)
    others = [TASKS[1 - task].instructions[0] for task in batch.task.tolist()]
    told = replace(context, text=model.embed_text(others), task=1 - batch.task)
    live = batch.moment_mask & batch.mask.any(dim=1)[:, :4]
    found = model(state, told, batch.time_s, live & ~batch.apart[:, None], None)
    start = found.stage_logits.softmax(-1)[..., 0] * found.tau_logits.softmax(-1)[..., 0, 0]
    not_done = 1.0 - found.success_logit.sigmoid()
    counted = live & ~batch.off_task[:, None]
    expected = -start.log().mean(dim=-1)[counted].mean() - not_done.log()[counted].mean()
    torch.testing.assert_close(losses(model, batch, 0)["other"], expected, rtol=1e-4, atol=1e-5)


def test_a_model_of_one_task_and_one_that_is_not_asked_go_without() -> None:
    model, batch = model_and_batch()
    terms = set(losses(model, batch, 0))
    assert "other" in terms
    assert set(losses(model, batch, 0, other=False)) == terms - {"other"}
    one = ProgressModel(replace(model.config, tasks=TASKS[:1])).eval()
    alone = replace(batch, task=torch.zeros_like(batch.task))
    assert set(losses(one, alone, 0)) == terms - {"other"}
    off = losses(model, replace(batch, off_task=torch.ones_like(batch.off_task)), 0)
    assert off["other"].item() == 0.0
    # The head of hops sees no text: that nothing has changed between two pictures would be a lie to it.
    assert off["hop"].item() == 0.0 < losses(model, batch, 0)["hop"].item()
