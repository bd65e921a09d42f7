"""The optimizer: orthogonal steps, whom they are for, and that it agrees with PyTorch's own Muon."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robo_reward.model.encoders import Backbone, TinyEncoder
from robo_reward.model.heads import EnsembleLinear
from robo_reward.train.config import OptimizerConfig
from robo_reward.train.optimizer import MuonAdamW, make_optimizer, orthogonalized, set_learning_rate

LR = 1e-2


@pytest.mark.parametrize("shape", [(32, 32), (24, 200), (200, 24)])
def test_orthogonalizing_keeps_singular_vectors_and_makes_singular_values_one(shape: tuple[int, int]) -> None:
    small = min(shape)
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(random, full_matrices=False)
    matrix = (u * torch.linspace(1.0, 0.05, small, dtype=torch.float64)) @ v
    inside = u.T @ orthogonalized(matrix).double() @ v.T
    assert inside.diagonal().min() > 0.6
    assert inside.diagonal().max() < 1.25
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-3


def test_orthogonalizing_nothing_gives_nothing() -> None:
    assert not orthogonalized(torch.zeros(30, 40)).any()


def test_agrees_with_torch_muon_where_that_applies() -> None:
    generator = torch.Generator().manual_seed(1)
    ours = nn.Parameter(torch.randn(48, 64, generator=generator))
    theirs = nn.Parameter(ours.detach().clone())
    bias = nn.Parameter(torch.zeros(3))
    mine = MuonAdamW([{"params": [bias]}], [ours], LR, (0.9, 0.98), 0.05, scale=1.0)
    reference = torch.optim.Muon(
        [theirs], lr=LR, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    start = ours.detach().clone()
    for _ in range(6):
        gradient = torch.randn(48, 64, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # theirs iterates in bfloat16


def test_kernels_are_turned_as_the_matrices_that_they_are() -> None:
    generator = torch.Generator().manual_seed(2)
    kernel = nn.Parameter(torch.randn(32, 4, 3, 3, generator=generator))
    before = kernel.detach().clone()
    kernel.grad = torch.randn(kernel.shape, generator=generator)
    MuonAdamW([{"params": [nn.Parameter(torch.zeros(1))]}], [kernel], LR, (0.9, 0.98), 0.0, scale=2.0).step()
    values = torch.linalg.svdvals((kernel.detach() - before).flatten(1)) / (2.0 * LR * 0.2 * 36**0.5)
    assert values.min() > 0.6
    assert values.max() < 1.25


def _step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened() -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 2))
        return model, make_optimizer(model, OptimizerConfig(lr=LR, muon=2.0))

    whole, steady = make()
    for seed in range(4):
        _step(steady, list(whole.parameters()), seed)
    first, killed = make()
    for seed in range(2):
        _step(killed, list(first.parameters()), seed)
    second, resumed = make()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(killed.state_dict())
    for seed in range(2, 4):
        _step(resumed, list(second.parameters()), seed)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tiny = TinyEncoder((32, 32), width=32, camera_width=17)
        self.backbone = Backbone(
            (32, 32), width=32, camera_width=17, name="resnet10t", pretrained=False, frozen=False
        )
        self.names = nn.Embedding(40, 32)
        self.heads = EnsembleLinear(4, 32, 30)
        self.wide, self.thin = nn.Linear(32, 40), nn.Linear(32, 2)
        self.fixed = nn.Linear(32, 32).requires_grad_(requires_grad=False)


def test_matrices_are_turned_and_vectors_tables_ensembles_and_backbones_are_not() -> None:
    model = _Net()
    optimizer = make_optimizer(model, OptimizerConfig(muon=2.0))
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(found) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    turned = {names[id(p)] for p in optimizer.param_groups[-1]["params"]}
    assert {"wide.weight", "tiny.down2.weight", "tiny.readout.weight", "backbone.project.1.weight"} <= turned
    for name in turned:
        assert not name.startswith(("thin", "names", "heads", "backbone.body", "tiny.film")), name
    alone = make_optimizer(model, OptimizerConfig(muon=0.0))
    assert type(alone) is torch.optim.AdamW


@pytest.mark.parametrize("muon", [0.0, 2.0])
def test_a_pretrained_backbone_moves_less_far_all_along_the_schedule(muon: float) -> None:
    torch.manual_seed(0)
    model = _Net()
    config = OptimizerConfig(lr=LR, muon=muon, weight_decay=0.0, backbone_lr=0.1)
    optimizer = make_optimizer(model, config, tunes_backbone=True)
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(found) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    optimizer.load_state_dict(optimizer.state_dict())  # a resumed run keeps the factor
    for lr in (LR, LR / 4):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        set_learning_rate(optimizer, lr)
        for p in model.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        optimizer.step()
        for name, p in model.named_parameters():
            factor = 0.1 if name.startswith("backbone.body") else 1.0
            if p.requires_grad and (muon == 0.0 or p.ndim < 2):
                # AdamW moves by the learning rate where all gradients were alike.
                moved = (p.detach() - before[name]).abs()
                torch.testing.assert_close(moved, torch.full_like(moved, lr * factor), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(("tunes", "factor"), [(False, 0.1), (True, 1.0)])
def test_what_is_trained_from_scratch_has_the_groups_that_it_had(tunes: bool, factor: float) -> None:
    """Or else a half-finished run of before could not go on."""
    model = _Net()
    config = OptimizerConfig(muon=2.0, backbone_lr=factor)
    groups = make_optimizer(model, config, tunes_backbone=tunes).param_groups
    assert [group.get("muon") for group in groups] == [None, None, 2.0]
    names = {id(p): name for name, p in model.named_parameters()}
    turned = {id(p) for p in groups[-1]["params"]}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in turned]
    for group, expected in zip(
        groups, ([p.ndim >= 2 for p in rest], [p.ndim < 2 for p in rest]), strict=False
    ):
        wanted = [names[id(p)] for p, kept in zip(rest, expected, strict=True) if kept]
        assert [names[id(p)] for p in group["params"]] == wanted
