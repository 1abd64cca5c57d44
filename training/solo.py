"""One node on its own, for comparison: `python -m shoal.training.solo < settings.json`.

The same text, local steps, schedule and evaluation as in a mesh (session.py), without the mesh.
It trains `steps` steps and then measures the weights on each source of `evaluate`; with 0 steps
it only measures, so that a mesh's weights, a baseline's and the first weights are all measured by
the same code. One JSON line on stdout:

    {"loss": mean over the sources, "losses": {source: loss}, "train_loss": ..., "steps": ...,
     "tokens": ..., "seconds": ..., "params": ...}

Settings are those of the worker (session.py) and those of SoloConfig below. With `--sample` it
prints {"text": ...} instead: what the weights write after `prompt`.

Errors are {"error": one line} on stdout and exit code 2.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.training.errors import TrainingError
from shoal.training.process import limit_threads

if TYPE_CHECKING:
    import torch

    from shoal.training.model import FlatModel
    from shoal.training.session import SessionConfig, TrainingSession

PROGRESS_ROUNDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SoloConfig:
    """What a run on its own needs besides a SessionConfig."""

    # Where the weights begin: .safetensors, or raw float32 little-endian values (any other
    # ending). None: fresh ones from model_seed.
    weights: str | None = None
    model_seed: int = 0
    # Steps to train, in rounds of local_steps, which decide what text a step reads.
    steps: int = 0
    local_steps: int = 8
    # How far one step moves the schedule; None: as far as its own tokens.
    tokens_per_step: int | None = None
    # Sources whose held-out text is measured; none: that of `data`.
    evaluate: tuple[str, ...] = ()
    # Where to write the weights at the end, in either form.
    save: str | None = None
    # For --sample.
    prompt: str = "def "
    new_tokens: int = 200
    temperature: float = 0.8


def main() -> int:
    """Read settings, run, print one line; returns the exit code."""
    try:
        values = json.load(sys.stdin)
        if not isinstance(values, dict):
            raise TrainingError("the settings are not a JSON object")
        result = run(values, sample="--sample" in sys.argv[1:])
    except (TrainingError, json.JSONDecodeError) as error:
        print(json.dumps({"error": " ".join(str(error).split())}), flush=True)
        return 2
    print(json.dumps(result), flush=True)
    return 0


def run(values: Mapping[str, Any], *, sample: bool) -> dict[str, Any]:
    """Carry out one run and return what to print; raises TrainingError."""
    limit_threads(values.get("threads", 1))
    from shoal.training.session import SessionConfig, TrainingSession

    names = {field.name for field in fields(SoloConfig)}
    solo = _solo_config({name: value for name, value in values.items() if name in names})
    config = SessionConfig.from_json(
        {name: value for name, value in values.items() if name not in names}
    )
    from shoal.training.weights_file import write_weights

    session = TrainingSession(config)
    os.nice(config.nice)
    weights = _first_weights(solo, config, session.model)
    if sample:
        return {"text": _sample(solo, config, session, weights)}
    result = _train(solo, config, session, weights)
    result.update(_measure(solo, session, weights))
    if solo.save is not None:
        write_weights(Path(solo.save), session.model, weights)
    return {**result, "params": session.parameters}


def _solo_config(values: Mapping[str, Any]) -> SoloConfig:
    evaluate = values.get("evaluate", ())
    if not isinstance(evaluate, (list, tuple)) or not all(isinstance(s, str) for s in evaluate):
        raise TrainingError("evaluate must be a list of sources, like builtin:0/4")
    solo = SoloConfig(**{**values, "evaluate": tuple(evaluate)})
    if solo.steps < 0 or solo.local_steps < 1:
        raise TrainingError("steps must be 0 or more and local_steps 1 or more")
    return solo


def _first_weights(solo: SoloConfig, config: "SessionConfig", model: "FlatModel") -> "torch.Tensor":
    if solo.weights is not None:
        from shoal.training.weights_file import read_weights

        return read_weights(Path(solo.weights), model)
    from shoal.training.session import fresh_model

    return fresh_model(config, solo.model_seed).flat


def _train(
    solo: SoloConfig, config: "SessionConfig", session: "TrainingSession", weights: "torch.Tensor"
) -> dict[str, Any]:
    """Train `weights` in place; every round's delta is applied as it is, and nothing is added."""
    import torch

    from shoal.training.session import RoundOrder

    delta = torch.empty_like(weights)
    step_tokens = solo.tokens_per_step or config.batch * config.sequence
    steps, tokens, seconds, loss = 0, 0, 0.0, math.nan
    session.rebase(weights)
    while steps < solo.steps:
        order = RoundOrder(
            round=steps // solo.local_steps + 1,
            steps=min(solo.local_steps, solo.steps - steps),
            tokens_done=steps * step_tokens,
            tokens_per_step=step_tokens,
        )
        report = session.run_round(order, delta, before_step=lambda: None)
        steps, tokens = steps + report.steps, tokens + report.tokens
        seconds, loss = seconds + report.seconds, report.loss
        if order.round % PROGRESS_ROUNDS == 0 or steps == solo.steps:
            print(f"step {steps}/{solo.steps}  loss {loss:.4f}", file=sys.stderr, flush=True)
    weights.copy_(session.model.flat)
    return {
        "train_loss": None if math.isnan(loss) else loss,
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 3),
    }


def _measure(
    solo: SoloConfig, session: "TrainingSession", weights: "torch.Tensor"
) -> dict[str, Any]:
    measured = {
        source: session.evaluate(weights, session.read(source)) for source in solo.evaluate
    } or {"data": session.evaluate(weights)}
    losses = {source: found.pop("loss") for source, found in measured.items()}
    result = {"loss": math.fsum(losses.values()) / len(losses), "losses": losses}
    return {**result, "metrics": measured} if any(measured.values()) else result


def _sample(
    solo: SoloConfig, config: "SessionConfig", session: "TrainingSession", weights: "torch.Tensor"
) -> str:
    from shoal.training.generate import sample

    if session.tokenizer is None:
        raise TrainingError("this model does not make text")
    with session.model.holding(weights):
        return sample(
            session.model,
            session.tokenizer,
            solo.prompt,
            new_tokens=solo.new_tokens,
            temperature=solo.temperature,
            seed=config.seed,
        )


if __name__ == "__main__":
    sys.exit(main())
