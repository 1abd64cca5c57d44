"""DDP, FedAvg and DiLoCo as plain torch programs over gloo: one worker of four.

    python -m benchmarks.rivals.torch_loops --method fedavg --local-steps 50 ...

`benchmarks/loss_per_byte.py` starts them. With n workers, x_i worker i's weights, H local steps:

    ddp      every step, torch's DistributedDataParallel averages the gradients before the clip
    fedavg   every H steps, x_i <- mean_j x_j; each keeps the moments of its optimiser
    diloco   every H steps, g = x - mean_j x_j with x the last common weights; then x takes a step
             of SGD with Nesterov momentum, rate 0.7 and momentum 0.9, and x_i <- x
             (Douillard et al. 2023, arXiv:2311.08105, algorithm 1)
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common_work import WORKERS, Recipe, Worker

OUTER_RATE = 0.7
OUTER_MOMENTUM = 0.9
TIMEOUT = timedelta(minutes=30)


def every_step(worker: Worker) -> None:
    """DDP: the model's own backward pass exchanges the gradients."""
    worker.model.module = DistributedDataParallel(worker.model.module)


def mean_of_weights(worker: Worker) -> Callable[[], None]:
    """FedAvg's exchange."""

    def exchange() -> None:
        dist.all_reduce(worker.model.flat)
        worker.model.flat.div_(WORKERS)

    return exchange


def outer_nesterov(worker: Worker) -> Callable[[], None]:
    """DiLoCo's exchange."""
    common = torch.nn.Parameter(worker.model.flat.clone())
    outer = torch.optim.SGD([common], lr=OUTER_RATE, momentum=OUTER_MOMENTUM, nesterov=True)

    def exchange() -> None:
        progress = common.detach() - worker.model.flat
        dist.all_reduce(progress)
        common.grad = progress.div_(WORKERS)
        outer.step()
        worker.model.flat.copy_(common.detach())

    return exchange


def run(worker: Worker, method: str, *, steps: int, local_steps: int) -> None:
    """Train; the weights are kept at the marks, after the exchange where both fall together."""
    exchange: Callable[[], None] = lambda: None  # noqa: E731 - DDP has exchanged in the step.
    if method == "ddp":
        every_step(worker)
    else:
        exchange = {"fedavg": mean_of_weights, "diloco": outer_nesterov}[method](worker)
    while worker.steps < steps:
        worker.step()
        if worker.steps % local_steps == 0:
            exchange()
        worker.keep_at_mark()


def main() -> None:
    """Be one worker; prints a line at the end."""
    parser = argparse.ArgumentParser(description="One worker of a plain torch program.")
    parser.add_argument("--method", choices=["ddp", "fedavg", "diloco"], required=True)
    parser.add_argument("--local-steps", type=int, required=True)
    parser.add_argument("--recipe", type=Recipe.parse, default=Recipe())
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--meet", required=True, help="host:port of worker 0")
    parser.add_argument("--interface", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    os.environ["GLOO_SOCKET_IFNAME"] = options.interface
    worker = Worker(
        options.work,
        index=options.index,
        seed=options.seed,
        out=options.out,
        recipe=options.recipe,
    )
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{options.meet}",
        rank=options.index,
        world_size=WORKERS,
        timeout=TIMEOUT,
    )
    started = time.perf_counter()
    run(worker, options.method, steps=options.steps, local_steps=options.local_steps)
    report = {
        "index": options.index,
        "seconds": time.perf_counter() - started,
        "computing_seconds": worker.computing_seconds,
    }
    dist.destroy_process_group()
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
