"""What the demo's model is worth: its loss beside that of each shard trained alone.

Everything is measured by one program, `python -m shoal.training.solo`, in processes of its own:
the mesh's checkpoint and the first weights with no step at all, and each shard from the first
weights with as many steps, the same text in the same order and the same learning rates as its
node had. The only difference left is the mesh.
"""

import asyncio
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.node.config import Settings, load_settings
from shoal.node.demo_processes import clean_environment
from shoal.node.errors import UserError
from shoal.node.report import Losses

if TYPE_CHECKING:
    from shoal.node.genesis import Genesis

# Batches of each shard's held-out text: enough that the shards' differences show.
EVAL_BATCHES = 8
PROMPT = "The import statement "
SAMPLE_TOKENS = 240
_SECONDS_MAX = 600.0
_LINE_BYTES_MAX = 1 << 20


async def evaluate(
    *, nodes: list[Path], checkpoint: Path, scratch: Path, rounds: int
) -> tuple[Losses, str]:
    """The losses on the held-out text of all shards, and a sample of the mesh's model.

    nodes: the nodes' directories, in the order of their shards. checkpoint: the certified one.
    scratch: where the first weights and the programs' messages go.
    Raises UserError with the program's own line when one fails.
    """
    genesis, start = await asyncio.to_thread(_prepare, nodes[0], scratch)
    settings = [load_settings(node) for node in nodes]
    common = _common_settings(genesis, checkpoint, [each.train.data for each in settings])
    weights = str(checkpoint / "model.safetensors")
    runs: dict[str, dict[str, Any]] = {
        "mesh": {**_of_node(settings[0]), "weights": weights},
        "start": {**_of_node(settings[0]), "weights": str(start)},
        "sample": {
            **_of_node(settings[0]),
            "weights": weights,
            "prompt": PROMPT,
            "new_tokens": SAMPLE_TOKENS,
        },
    }
    steps = rounds * genesis.parameters.local_steps
    for index, each in enumerate(settings):
        # The mesh's schedule moves by everybody's tokens; so does the one of a shard alone.
        step_tokens = sum(other.train.batch * other.train.sequence for other in settings)
        alone = {"weights": str(start), "steps": steps, "tokens_per_step": step_tokens}
        runs[f"solo{index}"] = {**_of_node(each), **alone}
    results = await _run_all({name: {**common, **run} for name, run in runs.items()}, scratch)
    losses = Losses(
        mesh=float(results["mesh"]["loss"]),
        start=float(results["start"]["loss"]),
        solo=tuple(float(results[f"solo{index}"]["loss"]) for index in range(len(nodes))),
    )
    return losses, PROMPT + str(results["sample"]["text"])


def evaluation_progress(scratch: Path) -> str:
    """How far each shard alone has come, as its program last said: "steps 64 72 64 64 of 256"."""
    steps, total = [], ""
    for path in sorted(scratch.glob("solo*.log")):
        said = re.findall(r"^step (\d+)/(\d+) ", path.read_text(errors="replace"), re.MULTILINE)
        step, total = said[-1] if said else ("0", total)
        steps.append(step)
    return f"steps {' '.join(steps)} of {total}" if total else "starting"


def _prepare(node: Path, scratch: Path) -> tuple["Genesis", Path]:
    """The genesis, and its weights in a file that the program reads."""
    # Loads torch, which `shoal demo --stop` has no use for.
    from shoal.node.genesis import load_genesis

    genesis, anchor, _ = load_genesis(node / "genesis")
    scratch.mkdir(exist_ok=True)
    weights = scratch / "weights.f32"
    anchor.to_weights().numpy().astype("<f4").tofile(weights)
    return genesis, weights


def _common_settings(genesis: "Genesis", checkpoint: Path, sources: list[str]) -> dict[str, Any]:
    return {
        "model": genesis.model_config,
        "tokenizer": str(checkpoint),
        "learning_rate": genesis.parameters.learning_rate,
        "muon_scale": genesis.parameters.muon_scale,
        "warmup_tokens": genesis.parameters.warmup_tokens,
        "schedule_tokens": genesis.parameters.schedule_tokens,
        "local_steps": genesis.parameters.local_steps,
        "evaluate": sources,
        "eval_batches": EVAL_BATCHES,
    }


def _of_node(settings: Settings) -> dict[str, Any]:
    train = settings.train
    return {
        "data": train.data,
        "device": train.device,
        "threads": train.threads,
        "nice": train.nice,
        "seed": train.seed,
        "batch": train.batch,
        "sequence": train.sequence,
    }


async def _run_all(
    runs: Mapping[str, Mapping[str, Any]], scratch: Path
) -> dict[str, dict[str, Any]]:
    """Run them all at the same time; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {
                name: group.create_task(_run(name, settings, scratch))
                for name, settings in runs.items()
            }
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return {name: task.result() for name, task in tasks.items()}


async def _run(name: str, settings: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "shoal.training.solo"]
    if name == "sample":
        command.append("--sample")
    with (scratch / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=clean_environment(),
            limit=_LINE_BYTES_MAX,
            # Ctrl-C on a terminal reaches the demo alone, which then ends this process.
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            output, _ = await process.communicate(json.dumps(dict(settings)).encode())
    except TimeoutError:
        raise UserError(f"{name} took longer than {_SECONDS_MAX:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        result = json.loads(output)
    except ValueError:
        code = process.returncode
        raise UserError(f"{name} ended with exit code {code}; see {log.name}") from None
    if "error" in result:
        raise UserError(f"{name}: {result['error']}")
    assert isinstance(result, dict)
    return result
