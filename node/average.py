"""`shoal average`: the mean of certified checkpoints as a model of its own.

At a level learning rate an anchor carries the noise of the last steps. The mean of two or three
that lie some way apart has less of it, for no byte on the wire: latest weight averaging (Kaddour
2022, arXiv:2209.14981; Izmailov et al. 2018 say why). What comes out is no certified checkpoint,
for nobody signed it; but each part of it is proved first, and the same parts give the same file,
byte for byte, on every machine.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shoal.node.checkpoint_dirs import checkpoint_directories
from shoal.node.checkpoints import ADAPTER_CONFIG
from shoal.node.errors import UserError
from shoal.node.genesis import Genesis, parse_document
from shoal.node.progress import Tell
from shoal.node.verify import Proof, verify_checkpoint

AVERAGE = "average.json"


def average(
    directory: Path,
    target: Path,
    *,
    last: int,
    trust: bytes | None = None,
    tell: Tell = lambda what, done, of: None,
) -> list[Proof]:
    """Write the mean of the `last` newest checkpoints that lie whole in a node's directory.

    target: a directory that does not exist yet. trust: the mesh id that they must be of.
    Returns the proofs of the parts, oldest first; there may be fewer than `last`. Raises UserError
    where there are not two, or the target is there already; Refused where a part is not proved.
    """
    require_new(target)
    parts = list(checkpoint_directories(directory).values())[-last:]
    if len(parts) < 2:
        raise UserError(
            f"{directory} holds {len(parts)} whole checkpoints, and a mean needs two; wait for the "
            "next one, or name a node's directory"
        )
    proofs = prove(parts, trust, tell)
    with appearing_whole(target) as made:
        copy_what_is_no_weights(parts[-1], made)
        weights = proofs[-1].weights_name
        tell("averaging", 0, 0)
        save_file(mean([part / weights for part in parts]), made / weights, {"format": "pt"})
        (made / AVERAGE).write_text(json.dumps(facts_of(proofs), indent=2) + "\n")
    return proofs


def prove(
    parts: Sequence[Path], trust: bytes | None, tell: Tell = lambda what, done, of: None
) -> list[Proof]:
    """Verify checkpoints, all of one mesh: of `trust`, or else of the first one's."""
    proofs: list[Proof] = []
    for part in parts:
        mesh_id = proofs[0].mesh_id if proofs else trust
        proofs.append(verify_checkpoint(part, mesh_id, deltas=False, tell=tell))
    return proofs


def require_new(target: Path) -> None:
    """Raises UserError where `target` is there already."""
    if target.exists():
        raise UserError(f"{target} is there already; name a directory that is not")


@contextmanager
def appearing_whole(target: Path) -> Iterator[Path]:
    """Give a directory to fill, which is `target` once all is in it, and is gone after an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        yield made
        made.rename(target)


def mean(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of safetensors files with the same tensors: summed as float64, in this order."""
    opened = [safe_open(file, framework="pt") for file in files]
    means = {}
    # One tensor at a time: all of them at once need not fit into memory.
    for name in opened[0].keys():  # type: ignore[no-untyped-call]  # noqa: SIM118
        total = opened[0].get_tensor(name).double()  # type: ignore[no-untyped-call]
        for other in opened[1:]:
            total += other.get_tensor(name)  # type: ignore[no-untyped-call]
        means[name] = (total / len(files)).float()
    return means


def copy_what_is_no_weights(checkpoint: Path, made: Path) -> Genesis:
    """What a directory needs besides weights to open like this checkpoint; returns its genesis."""
    genesis = parse_document((checkpoint / "genesis.json").read_bytes())
    names = ["genesis.json", "config.json", *genesis.tokenizer_hashes]
    if genesis.lora is not None:
        names.append(ADAPTER_CONFIG)
    for name in names:
        shutil.copyfile(checkpoint / name, made / name)
    return genesis


def facts_of(proofs: Sequence[Proof]) -> dict[str, object]:
    """What average.json says: the mesh, and the parts in the order of `proofs`."""
    return {
        "mesh": proofs[-1].mesh_id.hex(),
        "parts": [
            {
                "height": proof.record.height,
                "record": proof.record.digest.hex(),
                "root": proof.record.anchor_root.hex(),
            }
            for proof in proofs
        ],
    }
