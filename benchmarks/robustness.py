"""Loss against how much goes wrong: lost messages, churn, stragglers, attackers.

    python -m benchmarks.robustness drop --peers 8 --rounds 20 --seeds 1     two minutes
    python -m benchmarks.robustness ipm --attackers 3 --rounds 20 --seeds 1  the same
    python -m benchmarks.robustness all --out runs/robustness.jsonl --plots  everything, 3 seeds

JSON lines; with --plots pictures in benchmarks/plots/. Real strategies, codec and anchors
(node/simulate.py). Attackers speak through the honest code: they lie about what they trained. What
counts beside an attacked run is the honest peers alone, with the same texts ("honest only").
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.simulated import PLOTS, mean_over_seeds, run_all
from shoal.node.simulate_plan import ABSENT, CUT_ROUNDS, MIXING, Plan
from shoal.node.simulate_plots import plot_lines

RATES = (0.0, 0.1, 0.2, 0.3, 0.5)
STRATEGIES = ("delta-log", "choco", "gasloc", "noloco", "diloco", "dpsgd")
ATTACKED = (0, 1, 2, 3, 4)
# (strategy, robust rule) pairs that are attacked.
DEFENCES = (
    ("delta-log", "none"),
    ("delta-log", "clip"),
    ("delta-log", "aligned"),
    ("delta-log", "trust"),
    ("gasloc", "none"),
    ("gasloc", "cs+"),
    ("gasloc", "clipped-gossip"),
    ("choco", "none"),
    ("choco", "cs+"),
)
ATTACKS = ("sign-flip", "noise", "ipm", "alie", "dissensus")
# Robust rules need somebody to trust in every neighbourhood.
ATTACKED_DEGREE = 8
TROUBLES: dict[str, Callable[[Plan, float], Plan]] = {
    "drop": lambda plan, rate: replace(plan, drop=rate),
    # As often for everybody, however rarely a strategy's members agree on a model.
    "churn": lambda plan, rate: replace(plan, churn=rate, epoch_rounds=CUT_ROUNDS),
    "stragglers": lambda plan, rate: replace(plan, stragglers=rate),
}


def trouble_plans(trouble: str, base: Plan, seeds: int, rates: Sequence[float]) -> list[Plan]:
    """Every strategy at every rate."""
    return [
        replace(TROUBLES[trouble](base, rate), strategy=strategy, seed=seed)
        for seed in range(seeds)
        for strategy in STRATEGIES
        for rate in rates
    ]


def attack_plans(
    attack: str,
    base: Plan,
    seeds: int,
    counts: Sequence[int],
    defences: Sequence[tuple[str, str]] = DEFENCES,
) -> list[Plan]:
    """Every defence against so many attackers, and each strategy with the honest alone."""
    base = replace(base, degree=ATTACKED_DEGREE)
    fitting = [pair for pair in defences if attack != "dissensus" or pair[0] in MIXING]
    runs = [(attack, *pair) for pair in fitting]
    runs += [(ABSENT, strategy, "auto") for strategy in dict.fromkeys(pair[0] for pair in fitting)]
    return [
        replace(
            base,
            attack=what if liars else "none",
            strategy=strategy,
            robust=robust,
            attackers=liars,
            seed=seed,
        )
        for seed in range(seeds)
        for what, strategy, robust in runs
        for liars in counts
    ]


def draw(what: str, results: Sequence[dict[str, Any]]) -> None:
    """Loss against rate, a line for each strategy and defence."""
    attacked = what not in TROUBLES
    named = [
        {
            **result,
            "line": _line(result) if attacked else result["strategy"],
            # What diverged leaves the picture at the top instead of squeezing the rest.
            "loss": min(result["loss_individual"], 6.0),
        }
        for result in results
    ]
    plot_lines(
        PLOTS / f"robustness_{what}.png",
        mean_over_seeds(named, "line", "attackers" if attacked else what, "loss"),
        title=f"{what}: loss of the honest peers' own models",
        x="attackers" if attacked else f"{what}, share",
        y="held-out loss, nats per character (cut at 6)",
        markers=True,
    )


def _line(result: dict[str, Any]) -> str:
    defence = "honest only" if result["robust"] == "auto" else result["robust"]
    return f"{result['strategy']}, {defence}"


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("all", *TROUBLES, *ATTACKS))
    parser.add_argument("--peers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--attackers", type=int, nargs="+", default=ATTACKED)
    parser.add_argument(
        "--defences",
        type=lambda text: tuple(text.split(":", 1)),
        nargs="+",
        default=DEFENCES,
        help="STRATEGY:RULE of `shoal simulate`, for attacks",
    )
    parser.add_argument("--out", type=Path, help="collect and continue here")
    parser.add_argument("--plots", action="store_true")
    options = parser.parse_args()
    base = Plan(peers=options.peers, rounds=options.rounds)
    for what in (*TROUBLES, *ATTACKS) if options.what == "all" else (options.what,):
        if what in TROUBLES:
            plans = trouble_plans(what, base, options.seeds, options.rates)
        else:
            plans = attack_plans(what, base, options.seeds, options.attackers, options.defences)
        results = list(run_all(plans, options.out))
        if options.plots:
            draw(what, results)


if __name__ == "__main__":
    main()
