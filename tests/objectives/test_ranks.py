"""Two processes with half of a batch each give the loss and gradients of one process with all of it."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from catalign.objectives import scores
from catalign.objectives.base import gather, masked_mean, unit
from catalign.objectives.simclr import nt_xent

ROWS, WIDTH = 8, 5


def losses(rows):
    """Losses of some rows of a fixed problem, and the gradients of its shared weight and scale."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, ROWS, WIDTH, generator=generator, dtype=torch.float64)[:, rows]
    group = torch.tensor([0, 1, 2, 0, 3, 4, 4, 5])[rows]
    valid = torch.tensor([1, 1, 1, 0, 1, 0, 1, 0])[rows].bool()  # ranks hold different numbers of valid rows
    weight = torch.eye(WIDTH, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    a, b = unit(first @ weight), unit(second @ weight)
    match = scores.matches(group, valid)
    results = {
        "infonce": 2 * scores.two_way(a, b, scale, key=group, valid=valid)[0],
        "sigmoid": scores.sigmoid(a @ gather(b).T * scale, match, valid),
        "accuracy": scores.top1(a @ gather(b).T * scale, match, valid),
        "nt_xent": nt_xent(torch.cat([a, b]) * scale, valid.repeat(2), 0.3, group.repeat(2))[0],
        "masked_mean": masked_mean((first @ weight).sum(1), valid),
    }
    for name in [name for name, value in results.items() if value.requires_grad]:
        weight_grad, scale_grad = torch.autograd.grad(
            results[name], [weight, scale], retain_graph=True, allow_unused=True
        )
        results |= {
            f"{name} weight": weight_grad,
            f"{name} scale": torch.zeros(()) if scale_grad is None else scale_grad,
        }
    return {name: value.detach().double() for name, value in results.items()}


def run_rank(rank, folder):
    """This rank's share of the batch; results averaged over ranks, as distributed training averages gradients."""
    torch.set_num_threads(1)
    where = {"init_method": f"file://{folder}/store", "rank": rank, "world_size": 2, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", **where)
    try:
        results = losses(slice(rank * ROWS // 2, (rank + 1) * ROWS // 2))
        for value in results.values():
            dist.all_reduce(value)
            value /= 2
        return results
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_ranks_equal_one(tmp_path):
    expected = losses(slice(None))
    other = mp.get_context("spawn").Process(target=run_rank, args=(1, str(tmp_path)))
    other.start()
    actual = run_rank(0, str(tmp_path))  # this process is the other rank: importing torch twice takes longest
    other.join()
    assert other.exitcode == 0
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-10, atol=1e-12, msg=name)
