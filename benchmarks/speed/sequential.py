"""Seconds per epoch of next-item training: ours beside the same model in plain PyTorch over all 50 positions.

``python benchmarks/speed/sequential.py -o benchmarks/speed/results/sequential.json`` times steps of both in turn, in
one process, on the same batches of the same log, and writes medians and their ratio. The plain model is what most
SASRec code does: histories padded to 50 positions, ``nn.TransformerEncoder`` over all of them, logits of all products
at every position, padding ignored by the loss. Ours encodes real positions in buckets of like length, and makes logits
a few positions at a time. Both have 2 layers of width 64, full softmax, AdamW and fp32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

MAX_LENGTH = 50


def main() -> None:
    """Time both and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides on experiment=next_item, such as data.root=PATH")
    parser.add_argument("-o", "--output", type=Path, help="JSON to write")
    parser.add_argument("--steps", type=int, default=20, help="steps of each (20), after two that do not count")
    options = parser.parse_args()

    import torch
    from torch import Tensor, nn

    from catalign.artifacts import write_json
    from catalign.config import compose
    from catalign.data.catalogue import Catalogue
    from catalign.data.history_batches import HistoryLoader
    from catalign.objectives.base import run_objectives
    from catalign.provenance import describe_hardware, describe_versions, git_revision
    from catalign.training.model import build_model
    from catalign.training.optim import build_optimizer

    config = compose(["experiment=next_item", *options.overrides])
    (stage,) = config.stages
    catalogue, trainer = Catalogue.load(config.data), config.trainer_of(stage)
    model = build_model(config, stage, catalogue).train()
    encoder = model.encoders["behaviour"]
    count = len(catalogue)
    loader = HistoryLoader(
        catalogue, catalogue.rows(), ["behaviour"], held_out=False, longest=MAX_LENGTH, seed=0, steps=1,
        batch_size=trainer.batch_size,
    )  # fmt: skip

    class Plain(nn.Module):
        """SASRec with every position encoded and scored."""

        def __init__(self) -> None:
            super().__init__()
            self.items, self.positions = nn.Embedding(count + 1, encoder.width), nn.Embedding(MAX_LENGTH, encoder.width)
            layer = nn.TransformerEncoderLayer(
                encoder.width, 2, 4 * encoder.width, 0.2, "gelu", batch_first=True, norm_first=True
            )
            self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(encoder.width), enable_nested_tensor=False)
            mask = nn.Transformer.generate_square_subsequent_mask(MAX_LENGTH)
            self.register_buffer("mask", mask, persistent=False)

        def forward(self, history: Tensor) -> Tensor:
            hidden = self.items(history) + self.positions.weight
            return self.blocks(hidden, mask=self.mask, is_causal=True) @ self.items.weight[:count].T

    plain = Plain().train()
    optimizers = build_optimizer(model, trainer), torch.optim.AdamW(plain.parameters(), trainer.lr, fused=True)

    def ours(step: int) -> Tensor:
        batch = loader.batch(step)
        outputs = run_objectives(model.tasks(), model.encoders, batch, torch.Generator().manual_seed(step))
        return next(iter(outputs.values()))["loss"]

    def theirs(step: int) -> Tensor:
        batch = loader.batch(step)
        history = torch.full((trainer.batch_size, MAX_LENGTH + 1), count)
        history[:, : batch["history"].shape[1]] = batch["history"].masked_fill(~batch["history_mask"], count)
        targets = history[:, 1:].masked_fill(history[:, 1:] == count, -100)
        return nn.functional.cross_entropy(plain(history[:, :-1]).flatten(0, 1), targets.flatten())

    def timed(loss_of: Callable[[int], Tensor], optimizer: torch.optim.Optimizer, step: int) -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss_of(step).backward()
        optimizer.step()
        return time.perf_counter() - start

    seconds: dict[str, list[float]] = {"catalign": [], "plain": []}
    for step in range(options.steps + 2):
        for name, loss_of, optimizer in zip(seconds, (ours, theirs), optimizers, strict=True):
            seconds[name].append(timed(loss_of, optimizer, step))
    medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    steps = loader.batches_per_epoch
    found = {
        "what": "next-item training, seconds per epoch by the median step; ratio of medians",
        "data": f"{catalogue.name}, {len(loader.rows)} users, {steps} steps of {trainer.batch_size} histories",
        "seconds_per_epoch": {name: round(median * steps, 2) for name, median in medians.items()},
        "ratio": round(medians["plain"] / medians["catalign"], 2),
        "steps": {name: [round(value, 4) for value in values[2:]] for name, values in seconds.items()},
        "threads": torch.get_num_threads(),
        "hardware": describe_hardware(),
        "versions": describe_versions(),
        "git": git_revision(),
    }
    print(f"{found['seconds_per_epoch']} s per epoch: {found['ratio']} times as fast as plain")
    if options.output:
        write_json(options.output, found)


if __name__ == "__main__":
    main()
