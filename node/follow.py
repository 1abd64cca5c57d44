"""The newest certified checkpoint of a directory, verified, then opened: what `shoal serve` serves.

The directory may be a node's, whose checkpoints come and go while it trains, or one that somebody
copies checkpoints into. Nothing that lies there is believed: what is served was verified, by the
implementation that a stranger would use, after which nothing of it had changed until it was read.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from shoal.node.average import mean, prove
from shoal.node.checkpoint_dirs import checkpoint_directories, newest_checkpoint
from shoal.node.errors import DamagedError, UserError
from shoal.node.local_model import open_model, own_base
from shoal.node.verify import Proof, trusted_mesh
from shoal.serving.answers import Origin
from shoal.serving.desk import Served
from shoal.serving.errors import RequestError
from shoal.serving.text_model import TextModel

Template = Callable[[list[dict[str, str]]], str]


class Follower:
    """Opens one checkpoint after the other."""

    def __init__(
        self,
        directory: Path,
        *,
        trust: bytes | None,
        base: Path | None,
        device: torch.device,
        clock: Callable[[], float],
        average: int = 1,
    ) -> None:
        """directory: a node's, or a checkpoint; trust: the mesh id that each must be of, or else
        it is that of the node's genesis, or of the first checkpoint; base: directory of the model
        that adapters are for, or else the node's own; clock: seconds since 1970; average: of how
        many of the newest checkpoints the mean is opened, as `shoal average` makes it; of as many
        as there are while there are fewer.
        """
        genesis = directory / "genesis" / "genesis.json"
        if trust is None and genesis.is_file():
            trust = trusted_mesh(str(genesis))
        self._directory = directory
        self._trust = trust
        self._base = own_base(directory, base)
        self._device = device
        self._clock = clock
        self._average = average
        self._height = 0
        self._seen: object = None

    def look(self) -> Served | None:
        """Open the newest checkpoint if it is newer than what was opened before (blocks).

        Each is judged once, unless its files change. Raises UserError where there is none, and
        where it is not what its certificate says.
        """
        paths = self._newest()
        seen = [_state(path) for path in paths]
        if seen == self._seen:
            return None
        self._seen = seen
        proofs = prove(paths, self._trust)
        newest = proofs[-1]
        if newest.record.height <= self._height:
            return None
        heights = tuple(proof.record.height for proof in proofs)
        served = Served(
            model=self._open(proofs),
            origin=Origin(
                height=newest.record.height,
                root=newest.record.anchor_root.hex(),
                mesh=newest.mesh_id.hex(),
                averaged=heights if len(heights) > 1 else (),
            ),
            created=int(self._clock()),
            template=open_template(newest.directory),
        )
        if [_state(path) for path in paths] != seen:
            self._seen = None
            raise DamagedError(f"{newest.directory} was changed while it was read")
        self._trust, self._height = newest.mesh_id, newest.record.height
        return served

    def _newest(self) -> list[Path]:
        """Ascending; never none."""
        newest = newest_checkpoint(self._directory)
        several = list(checkpoint_directories(self._directory).values())[-self._average :]
        return several if newest in several else [newest]

    def _open(self, proofs: Sequence[Proof]) -> TextModel:
        model, tokenizer = open_model(proofs[-1].directory, self._base)
        if model.mask_token is not None:
            raise UserError("this is a masked model: it fills in hidden tokens, it writes no text")
        if len(proofs) > 1:
            means = mean([proof.directory / proof.weights_name for proof in proofs])
            in_order = [means[name].flatten() for name, _ in model.names_and_shapes()]
            model.flat.copy_(torch.cat(in_order))
        return TextModel(model.module.to(self._device), tokenizer)


def open_template(directory: Path) -> Template | None:
    """How the checkpoint's tokenizer writes a conversation, where it says so.

    The template is a program of whoever made the mesh; transformers runs it in jinja's sandbox.
    Raises DamagedError where it cannot be read. The function raises RequestError for a conversation
    that the template refuses.
    """
    config = directory / "tokenizer_config.json"
    if not (directory / "chat_template.jinja").is_file() and not (
        config.is_file() and b'"chat_template"' in config.read_bytes()
    ):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers does not say what it raises.
        raise DamagedError(f"{directory}: its chat template cannot be used: {error}") from None

    def render(messages: list[dict[str, str]]) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:
            raise RequestError(
                f"the model's chat template refuses this conversation: {error!s:.200}",
                parameter="messages",
            ) from None

    return render


def _state(directory: Path) -> object:
    """What is different after any file of the directory was replaced or written to."""
    with os.scandir(directory) as entries:
        facts = ((entry.name, entry.stat(follow_symlinks=False)) for entry in entries)
        return directory, sorted(
            (name, fact.st_ino, fact.st_size, fact.st_mtime_ns) for name, fact in facts
        )
