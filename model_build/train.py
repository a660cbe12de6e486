"""Training: a plan becomes weights, a log and checkpoints, the same on the same machine for the same plan. Needs torch.

Every step draws its patches from a generator seeded by (plan's seed, step), so that a training that was interrupted
and resumed sees what an uninterrupted one sees.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dicom_node.clock import Clock
from dicom_node.imaging.steps import Step
from model_build import architectures
from model_build.data import Example, draw_batch, make_example
from model_build.plan import Plan

__all__ = ["CHECKPOINT", "WEIGHTS", "Progress", "Report", "load_weights", "occupancy_loss", "train"]

WEIGHTS, CHECKPOINT, LOG = "weights.pt", "checkpoint.pt", "log.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a training stands."""

    stage: str
    """"data" or "training"."""
    done: int
    total: int
    loss: float | None = None
    """Mean since the last report."""


Report = Callable[[Progress], None]


def occupancy_loss(logits: Tensor, filled: Tensor) -> Tensor:
    """Return binary cross-entropy plus soft Dice against the filled fraction 0..1; both reach their least there.

    Dice is taken patch by patch: a small object weighs as much in its patch as a large one in another.
    """
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, filled)
    probability = torch.sigmoid(logits)
    patch = (1, 2, 3, 4)
    overlap = (probability * filled).sum(patch)
    dice = 1 - (2 * overlap + 1) / ((probability**2).sum(patch) + (filled**2).sum(patch) + 1)
    return cross_entropy + dice.mean()


def learning_rate(plan: Plan, step: int) -> float:
    """Return the rate of a step: a polynomial fall to zero, then one in every round of settling."""
    first, last = plan.optimiser, plan.settle
    if step < first.steps:
        return first.learning_rate * float((1 - step / first.steps) ** first.power)
    done = (step - first.steps) % last.steps / last.steps
    return last.learning_rate * float((1 - done) ** first.power)


def train(plan: Plan, steps: tuple[Step, ...], out: Path, *, clock: Clock, report: Report = lambda _: None) -> Path:
    """Train, or resume from the checkpoint in `out`, and return the file of the weights.

    Parameters
    ----------
    steps
        The preprocessing of the plugin's manifest.
    out
        Made when absent; gets weights.pt, checkpoint.pt and log.csv.
    """
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(plan, out, clock)
    examples = []
    for index in range(plan.data.phantoms):
        examples.append(_kept_example(plan.data.first_seed + index, steps, out / "data"))
        report(Progress(stage="data", done=index + 1, total=plan.data.phantoms))
    while run.step < plan.steps:
        losses = [run.advance(examples) for _ in range(min(plan.log.every, plan.steps - run.step))]
        run.write_log(float(np.mean(losses)))
        if run.step % plan.log.checkpoint_every < plan.log.every:
            run.save()
        report(Progress(stage="training", done=run.step, total=plan.steps, loss=float(np.mean(losses))))
    run.save()
    torch.save(run.network.state_dict(), out / WEIGHTS)
    return out / WEIGHTS


def load_weights(architecture: str, path: Path) -> nn.Module:
    """Return a network ready to infer; the file is read as tensors only, no code in it is run."""
    network = architectures.build(architecture)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


class _Run:
    """What changes while training."""

    def __init__(self, plan: Plan, out: Path, clock: Clock) -> None:
        self.plan, self.out, self.step = plan, out, 0
        self.clock, self.started = clock, clock.monotonic()
        self.network = architectures.build(plan.architecture).to(memory_format=torch.channels_last_3d)
        options = plan.optimiser
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        if (out / CHECKPOINT).is_file():
            kept = torch.load(out / CHECKPOINT, map_location="cpu", weights_only=True)
            self.network.load_state_dict(kept["network"])
            self.optimiser.load_state_dict(kept["optimiser"])
            self.step = int(kept["step"])

    def advance(self, examples: list[Example]) -> float:
        """Take one step and return its loss."""
        if self.step == self.plan.optimiser.steps:
            self._calibrate(examples)
        self.network.train()
        if self.step >= self.plan.optimiser.steps:
            for layer in self._normalisations():
                layer.eval()
        images, filled = self._batch(examples, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.plan, self.step)
        loss = occupancy_loss(self.network(images), filled)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return float(loss.item())

    def _batch(self, examples: list[Example], step: int) -> tuple[Tensor, Tensor]:
        """Return images and targets of a step: always the same ones."""
        rng = np.random.default_rng((self.plan.seed, step))
        images, filled = (torch.from_numpy(part) for part in draw_batch(rng, examples, self.plan.patches))
        return images.contiguous(memory_format=torch.channels_last_3d), filled

    def _normalisations(self) -> list[nn.BatchNorm3d]:
        return [layer for layer in self.network.modules() if isinstance(layer, nn.BatchNorm3d)]

    def _calibrate(self, examples: list[Example]) -> None:
        """Average the statistics of batch normalisation over many batches.

        While training they follow weights that move and batches of two patches. What is learned against those is a
        surface that lies some tenths of a millimetre off in inference, so the last steps learn with them held.
        """
        self.network.train()
        for layer in self._normalisations():
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over all batches
        with torch.no_grad():
            for index in range(self.plan.settle.calibrate):
                self.network(self._batch(examples, index)[0])

    def save(self) -> None:
        """Keep what resuming needs; an interruption while writing leaves the previous checkpoint."""
        part = self.out / (CHECKPOINT + ".part")
        state = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step}
        torch.save(state, part)
        part.replace(self.out / CHECKPOINT)

    def write_log(self, loss: float) -> None:
        """Append a row to the log."""
        path = self.out / LOG
        is_new = not path.is_file()
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["step", "loss", "learning_rate", "seconds"])
            rate = self.optimiser.param_groups[0]["lr"]
            writer.writerow([self.step, f"{loss:.6f}", f"{rate:.3e}", f"{self.clock.monotonic() - self.started:.1f}"])


def _kept_example(seed: int, steps: tuple[Step, ...], folder: Path) -> Example:
    """Return the example of `seed`, from the folder when an earlier run made it."""
    path = folder / f"{seed}.npz"
    fields = ("image", "filled", "objects", "distractors")
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            return Example(**{field: kept[field] for field in fields})
    example = make_example(seed, steps)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **{field: getattr(example, field) for field in fields})
    return example
