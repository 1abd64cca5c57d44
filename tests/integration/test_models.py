"""Four real processes train a model that is not the built-in one: a GPT-2, a BERT that is asked for
hidden tokens, adapters of a Llama. What they certify is proved, opens elsewhere, has learned."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from shoal.node.checkpoint_dirs import newest_checkpoint
from shoal.node.config import load_settings
from shoal.node.genesis import load_genesis
from shoal.node.local_model import open_model
from shoal.node.verify import verify_checkpoint
from shoal.training.data import load
from shoal.training.evaluate import held_out_loss
from shoal.training.model import FlatModel, load_model
from tests.integration.processes import (
    Process,
    command,
    materialised_height,
    root_at,
    run_node,
    wait_until,
)
from tests.node.mesh import found_mesh
from tests.training.base_models import adapters_of, write_base
from tests.training.worker_process import TINY_MODEL

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("processes")]

WINDOW = torch.arange(20)[None]
SMALL = {"vocab_size": 256, "max_position_embeddings": 64}
MODELS: dict[str, dict[str, Any]] = {
    "AutoModelForCausalLM": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **SMALL,
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "AutoModelForMaskedLM": {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        **SMALL,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}


def certified_by_four(tmp_path: Path, **mesh: Any) -> list[Process]:
    """Found a mesh and run it until all have a second checkpoint, the same one; then stop it."""
    quick: dict[str, Any] = {"local_steps": 100, "rounds_per_checkpoint": 2, "learning_rate": 3e-3}
    directories = found_mesh(tmp_path / "mesh", warmup_tokens=0, **quick, **mesh)
    addresses = [load_settings(directory).node.inspect_listen for directory in directories]
    processes = [run_node(directory) for directory in directories]
    try:
        wait_until(lambda: all(materialised_height(a) >= 2 for a in addresses), processes)
        assert len({root_at(address, 2) for address in addresses}) == 1
        assert [process.stop() for process in processes] == [0] * 4
    finally:
        for process in processes:
            if process.alive:
                process.kill()
    return processes


def what_was_learned(node: Path) -> tuple[float, float, FlatModel, Path]:
    """Prove the newest checkpoint; returns the loss at first, its loss, its model, its place."""
    checkpoint = newest_checkpoint(node)
    genesis, first, _ = load_genesis(node / "genesis")
    verify_checkpoint(checkpoint, genesis.mesh_id)
    settings = load_settings(node).train
    model, tokenizer = open_model(checkpoint, Path(settings.base))
    text = load(settings.data, tokenizer).held_out
    before, after = (
        held_out_loss(model, weights, text, batches=8, batch=8, sequence=16)
        for weights in (first.to_weights(), model.flat.clone())
    )
    return before, after, model, checkpoint


@pytest.mark.parametrize("opener", MODELS)
def test_a_mesh_trains_other_models(tmp_path: Path, opener: str) -> None:
    processes = certified_by_four(tmp_path, model=MODELS[opener])
    before, after, model, checkpoint = what_was_learned(processes[3].directory)
    assert after < before - 1.0
    factory: Any = getattr(transformers, opener)
    opened, loading = factory.from_pretrained(checkpoint, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    with model.holding(model.flat):
        torch.testing.assert_close(opened(WINDOW).logits, model.module(WINDOW).logits)


# peft asks transformers in a way that its newest version warns of.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_mesh_trains_adapters_of_a_base_that_each_node_has(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra `lora` is not installed")
    base, other = tmp_path / "base", tmp_path / "other"
    write_base(base)
    write_base(other, seed=6)
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    processes = certified_by_four(
        tmp_path, model=TINY_MODEL, base=base, lora=adapters_of(base, target_modules=targets)
    )
    node = processes[3].directory
    before, after, model, checkpoint = what_was_learned(node)
    assert after < before - 0.05
    sent = [line["bytes"] for line in processes[3].events("round.published")]
    assert sent and 0 < max(sent) < 4 * model.size

    opened = peft.PeftModel.from_pretrained(load_model(TINY_MODEL, base), checkpoint)
    with model.holding(model.flat):
        torch.testing.assert_close(opened(WINDOW).logits, model.module(WINDOW).logits)
    words = ("--prompt", "The shoal", "--tokens", "4", "--temperature", "0")
    done = run_command("generate", node, *words)
    assert done.returncode == 0 and done.stdout.startswith("The shoal")
    refused = run_command("run", node, "--set", f"train.base={other}")
    assert refused.returncode == 2
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(f"error: training cannot start: {other} is not this mesh's base model")


def run_command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=120, check=False)
