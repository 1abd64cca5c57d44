"""hivemind's Optimizer with local updates: one worker of four.

Every worker takes its own AdamW steps; when all together have seen 4 H batches the swarm enters its
next epoch and averages its parameters, in the background as the library does by default, in 16 bits
as its guide advises.
"""

import argparse
import json
import time
from pathlib import Path

import hivemind
from hivemind.compression import Float16Compression

from benchmarks.common_work import WORKERS, Worker

MATCHMAKING_SECONDS = 5.0
AVERAGING_SECONDS = 60.0
POLL_SECONDS = 0.1


def join_swarm(host: str, port: int, meeting: Path, *, first: bool) -> hivemind.DHT:
    """Start a DHT node; the first writes its address into `meeting`, the others wait for that."""
    peers = [] if first else _wait_for(meeting).split()
    dht = hivemind.DHT(host_maddrs=[f"/ip4/{host}/tcp/{port}"], initial_peers=peers, start=True)
    if first:
        addresses = " ".join(map(str, dht.get_visible_maddrs()))
        partial = meeting.with_suffix(".partial")
        partial.write_text(addresses)
        partial.rename(meeting)
    return dht


def _wait_for(path: Path) -> str:
    while not path.exists():
        time.sleep(POLL_SECONDS)
    return path.read_text()


def main() -> None:
    """Be one worker; prints a line at the end."""
    parser = argparse.ArgumentParser(description="One worker of a hivemind swarm.")
    parser.add_argument("--local-steps", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    worker = Worker(options.work, index=options.index, seed=options.seed, out=options.out)
    meeting = options.out / "swarm"
    dht = join_swarm(options.host, options.port, meeting, first=options.index == 0)
    worker.trainer.optimiser.adamw = optimizer = hivemind.Optimizer(
        dht=dht,
        run_id="common-work",
        batch_size_per_step=worker.batch,
        target_batch_size=WORKERS * options.local_steps * worker.batch,
        optimizer=worker.trainer.optimiser.adamw,
        use_local_updates=True,
        matchmaking_time=MATCHMAKING_SECONDS,
        averaging_timeout=AVERAGING_SECONDS,
        state_averaging_compression=Float16Compression(),
        verbose=True,
    )
    (options.out / f"ready{options.index}").touch()
    for index in range(WORKERS):
        _wait_for(options.out / f"ready{index}")
    started = time.perf_counter()
    while worker.steps < options.steps:
        worker.step()
        worker.keep_at_mark()
    report = {
        "index": options.index,
        "seconds": time.perf_counter() - started,
        "computing_seconds": worker.computing_seconds,
        "epochs": optimizer.local_epoch,
    }
    print(json.dumps(report), flush=True)
    # The others may still average with this one.
    (options.out / f"done{options.index}").touch()
    for index in range(WORKERS):
        _wait_for(options.out / f"done{index}")
    optimizer.shutdown()
    dht.shutdown()


if __name__ == "__main__":
    main()
