"""4 to 1,024 simulated peers: loss, bytes a peer sent, exchanges until news has reached all.

    python -m benchmarks.scale --sizes 4 8 16 --rounds 20 --seeds 1          a minute or two
    python -m benchmarks.scale --out runs/scale.jsonl --plots                all sizes, 3 seeds

JSON lines; with --plots pictures in benchmarks/plots/. Every size trains the same rounds on the
same text, so a peer of a larger mesh has less of it: what a mesh learns grows with its peers only
as far as its strategy spreads it. Real strategies, codec and anchors (node/simulate.py); in
delta-log every cut's anchors are compared, bit for bit. Losses are those of single peers' models.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.simulated import PLOTS, mean_over_seeds, run_all
from shoal.gossip.topology import DEGREE, FULL_MESH_MAX, Graph, graph
from shoal.node.simulate import peer_id
from shoal.node.simulate_delivery import spread_rounds
from shoal.node.simulate_plan import Plan
from shoal.node.simulate_plots import plot_lines

SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
STRATEGIES = ("delta-log", "choco", "gasloc", "noloco", "dpsgd", "isolated")
DROPS = (0.0, 0.1, 0.3)


def plans(sizes: Sequence[int], strategies: Sequence[str], rounds: int, seeds: int) -> list[Plan]:
    """Every run, small ones first."""
    return [
        Plan(strategy=strategy, peers=size, rounds=rounds, seed=seed)
        for size in sizes
        for seed in range(seeds)
        for strategy in strategies
    ]


def spreading(sizes: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """Exchanges until one peer's news is everywhere: on the links of a real mesh, and on a ring."""
    results = []
    for size in sizes:
        ids = [peer_id(index) for index in range(size)]
        for drop in DROPS:
            for kind in ("mesh", "ring"):
                counts = []
                for seed in range(seeds):
                    links = _links(kind, ids, bytes([seed]))
                    counts.append(spread_rounds(links, drop, random.Random(seed).random))
                mean = sum(counts) / len(counts)
                results.append({"what": "spread", "links": kind, "peers": size, "drop": drop,
                                "exchanges": mean, "seeds": seeds})  # fmt: skip
    return results


def _links(kind: str, ids: Sequence[bytes], seed: bytes) -> Graph:
    if kind == "ring":
        return graph("ring", ids)
    # What topology.neighbours gives each member, all at once.
    return graph("complete" if len(ids) <= FULL_MESH_MAX else "random-regular", ids, seed, DEGREE)


def draw(results: Sequence[dict[str, Any]], spread: Sequence[dict[str, Any]]) -> None:
    """The three pictures."""
    plot_lines(
        PLOTS / "scale_loss.png",
        mean_over_seeds(results, "strategy", "peers", "loss_individual"),
        title="Loss of single peers' models, same rounds for every size",
        x="peers",
        y="held-out loss, nats per character",
        log_x=True,
        markers=True,
    )
    talking = [
        {**result, "megabytes": result["bytes_per_peer"] / 1e6}
        for result in results
        if result["bytes_per_peer"] > 0
    ]
    plot_lines(
        PLOTS / "scale_bytes.png",
        mean_over_seeds(talking, "strategy", "peers", "megabytes"),
        title="Sent by each peer in the whole run",
        x="peers",
        y="MB, with headers and signatures",
        log_x=True,
        log_y=True,
        markers=True,
    )
    named = [
        {**each, "name": f"{each['links']}, {each['drop']:.0%} lost"}
        for each in spread
        if each["links"] == "mesh"
    ]
    plot_lines(
        PLOTS / "scale_spread.png",
        mean_over_seeds(named, "name", "peers", "exchanges"),
        title=f"Exchanges until one peer's news is everywhere ({DEGREE} links above 16 peers)",
        x="peers",
        y="exchanges",
        log_x=True,
        markers=True,
    )


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="collect and continue here")
    parser.add_argument("--plots", action="store_true")
    options = parser.parse_args()
    spread = spreading(SIZES, options.seeds)
    for each in spread:
        print(json.dumps(each), flush=True)
    wanted = plans(options.sizes, options.strategies, options.rounds, options.seeds)
    results = list(run_all(wanted, options.out))
    if options.plots:
        draw(results, spread)


if __name__ == "__main__":
    main()
