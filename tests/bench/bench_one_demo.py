"""What carries one demonstration of a long task to other places and other orders?

Run with: python tests/bench/bench_one_demo.py --out DIR
One demonstration of a table that two arms clear (`table_scene.py`: three cameras, 16 stages, the usual
order), and unseen episodes with things in other places, half of them in another order. Three models are
trained on the one: a plain per-frame net of three views (no memory, no stages), `robo-reward train`, and the
same with other orders composed (`reorder.stages=2`). Prints error and order by method; goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from table_scene import clear_table
from torch import Tensor, nn
from torch.nn import functional

from robo_reward.cli.main import run_command
from robo_reward.labels import label_episode
from robo_reward.metrics import spearman
from robo_reward.schema import EpisodeReader
from robo_reward_data.store import EpisodeStore

METHODS = {"net": None, "ours": [], "ours, other orders": ["reorder.stages=2"]}
BINS = torch.linspace(0, 1, 21)


def record(out: Path, seeds: list[int], other_order: float) -> Path:
    """Draw episodes that are not there yet."""
    store = EpisodeStore.create(out, {"bench": "one demo"}, exist_ok=True)
    for seed in seeds:
        if (name := f"episode_{seed:06d}") not in store:
            store.write(clear_table(seed, name, other_order))
    return out


def progress_of(reader: EpisodeReader) -> np.ndarray:
    label = label_episode(reader.info)
    assert label is not None
    return (label.stage + label.tau) / len(reader.info.stage_names)


def images_of(reader: EpisodeReader) -> Tensor:
    """u8[t, v, 3, h, w]"""
    frames = np.arange(reader.info.length)
    views = [reader.read_frames(camera, frames) for camera in reader.info.cameras]
    return torch.from_numpy(np.stack(views, 1)).permute(0, 1, 4, 2, 3)


class PerFrameNet(nn.Module):
    """Three views of one moment to 21 bins of progress."""

    def __init__(self, views: int) -> None:
        super().__init__()
        self.views = nn.ModuleList([self._encoder() for _ in range(views)])
        self.head = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(64 * views, 128), nn.ReLU(), nn.Linear(128, len(BINS))
        )

    @staticmethod
    def _encoder() -> nn.Sequential:
        layers: list[nn.Module] = []
        for before, after in ((3, 24), (24, 48), (48, 96), (96, 96)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d((3, 4)), nn.Flatten(), nn.Linear(96 * 12, 64), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        views = [encode(images[:, index]) for index, encode in enumerate(self.views)]
        return self.head(torch.cat(views, 1))


def per_frame(train: Path, test: Path, seed: int, steps: int) -> list[np.ndarray]:
    """Train the net with shifts and changes of color; its claims on every test episode."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    (demo,) = EpisodeStore.open(train).episodes
    images, truth = images_of(demo), torch.from_numpy(progress_of(demo).astype(np.float32))
    net = PerFrameNet(images.shape[1])
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    height, width, shift = *images.shape[-2:], 6
    for _ in range(steps):
        pick = torch.from_numpy(rng.integers(0, len(images), 64))
        batch = functional.pad(images[pick].float().flatten(0, 1) / 255, [shift] * 4, mode="replicate")
        dx, dy = rng.integers(0, 2 * shift + 1, 2)
        batch = batch[..., dy : dy + height, dx : dx + width].unflatten(0, (64, -1))
        batch = batch * (1 + 0.1 * torch.randn(64, 1, 3, 1, 1)) + 0.06 * torch.randn(64, 1, 1, 1, 1)
        soft = (1 - (truth[pick][:, None] - BINS).abs() / 0.05).clamp(min=0)
        loss = -(soft * net(batch.clamp(0, 1) - 0.5).log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        return [
            torch.cat(
                [net(part.float() / 255 - 0.5).softmax(1) @ BINS for part in images_of(e).split(64)]
            ).numpy()
            for e in EpisodeStore.open(test).episodes
        ]


def ours(train: Path, test: Path, out: Path, seed: int, steps: int, options: list[str]) -> list[np.ndarray]:
    """Train and evaluate by the commands; the claims on every test episode."""
    run_command("train", [f"data={train}", f"out={out / 'run'}", f"steps={steps}", f"seed={seed}", *options])
    judged = out / "evaluation"
    if not (judged / "predictions.parquet").is_file():
        run_command(
            "evaluate",
            [f"model={out / 'run'}", f"data={test}", f"out={judged}", "overwrite=true", "media_episodes=1"],
        )
    table = pd.read_parquet(judged / "predictions.parquet").groupby("uid").progress
    return [table.get_group(e.info.uid).to_numpy() for e in EpisodeStore.open(test).episodes]


def score(claims: list[np.ndarray], test: Path) -> dict[str, Any]:
    """Error of each episode, and order in time."""
    episodes = EpisodeStore.open(test).episodes
    rows = [
        {
            "kind": e.info.kind,
            "error": float(np.abs(claim - progress_of(e)).mean()),
            "order": spearman(claim.astype(np.float64), np.arange(len(claim), dtype=np.float64)),
        }
        for claim, e in zip(claims, episodes, strict=True)
    ]
    table = pd.DataFrame(rows)
    by_kind = table.groupby("kind")[["error", "order"]].mean().round(3)
    return {
        "error": round(float(table.error.mean()), 3),
        "order": round(float(table.order.mean()), 3),
        "by_kind": by_kind.to_dict("index"),
        "errors": table.error.round(3).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--demos", type=int, nargs="+", default=[1, 2], help="seeds of the demonstrations")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--test", type=int, default=8, help="unseen episodes")
    parser.add_argument("--steps", type=int, default=1000, help="of ours")
    parser.add_argument("--net-steps", type=int, default=300)
    args = parser.parse_args()
    test = record(args.out / "test", [100 + i for i in range(args.test)], 0.5)
    for demo in args.demos:
        train = record(args.out / f"demo_{demo}", [demo], 0.0)
        for method in args.methods:
            folder = args.out / f"{method.replace(', ', '_').replace(' ', '_')}_{demo}"
            folder.mkdir(exist_ok=True)
            options = METHODS[method]
            if options is None:
                kept = folder / "claims.npz"
                if not kept.is_file():
                    np.savez(kept, *per_frame(train, test, demo, args.net_steps))
                with np.load(kept) as file:
                    claims = [file[name] for name in file.files]
            else:
                claims = ours(train, test, folder, demo, args.steps, options)
            sys.stdout.write(json.dumps({"demo": demo, "method": method, **score(claims, test)}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
