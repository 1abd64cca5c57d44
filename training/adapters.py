"""Low-rank adapters (LoRA) of a base model: what a mesh can train instead of a whole model.

The base's weights stay as they are and never travel: every member that trains has them in a
directory of its own. Which weights they are is part of what the members agree on, as the SHA-256
of each file. peft does the arithmetic; what the mesh does not choose is as peft has it by default.

Source: Hu et al., LoRA (2021).
"""

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from shoal.training.errors import TrainingError
from shoal.training.model import load_model

RANK_MAX = 4096
ALPHA_MAX = 65536
TARGETS_MAX = 64
BASE_FILES_MAX = 256
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_MODULE = re.compile(r"[A-Za-z0-9_.]{1,200}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-/]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Which adapters of which base."""

    rank: int
    # An adapter's product is scaled by alpha / rank.
    alpha: int
    # Modules of the base that get one, by the end of their names.
    target_modules: list[str]
    # What people call the base model.
    base: str
    # The base's files by name: SHA-256 in hex.
    base_files: dict[str, str]

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Check what came as JSON from anywhere; raises TrainingError."""
        names = set(cls.__dataclass_fields__)
        if not isinstance(content, Mapping) or set(content) != names:
            raise TrainingError(f"an adapter has {', '.join(sorted(names))} and nothing else")
        for name, most in (("rank", RANK_MAX), ("alpha", ALPHA_MAX)):
            if type(content[name]) is not int or not 1 <= content[name] <= most:
                raise TrainingError(f"{name} must be a whole number from 1 to {most}")
        targets, base, files = (content[name] for name in ("target_modules", "base", "base_files"))
        if not isinstance(targets, list) or not 1 <= len(targets) <= TARGETS_MAX:
            raise TrainingError("target_modules must be a list like ['q_proj', 'v_proj']")
        if not all(isinstance(each, str) and _MODULE.fullmatch(each) for each in targets):
            raise TrainingError("target_modules must be names of modules")
        if not isinstance(base, str) or not _NAME.fullmatch(base):
            raise TrainingError("base must be the name of a model: letters, digits and _.-/")
        if not isinstance(files, dict) or not 1 <= len(files) <= BASE_FILES_MAX:
            raise TrainingError("base_files must name the files of the base")
        for file, digest in files.items():
            if not _FILE.fullmatch(file) or not isinstance(digest, str):
                raise TrainingError("base_files must be safetensors files of a model")
            if not _SHA256.fullmatch(digest):
                raise TrainingError("base_files must hold a SHA-256 in hex for each file")
        return cls(**content)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)


def base_files(directory: Path) -> dict[str, str]:
    """Return the files in which a model's directory has its weights: SHA-256 in hex, by name.

    Raises TrainingError where there are none or they cannot be read.
    """
    whole = [directory / WHOLE]
    paths = whole if whole[0].is_file() else [*directory.glob(INDEX), *directory.glob(SHARDS)]
    if not paths:
        raise TrainingError(f"{directory}: holds no {WHOLE}; name the directory of a model")
    digests = {}
    try:
        for path in sorted(paths):
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingError(f"{error.filename}: {error.strerror}") from None
    return digests


def require_base(lora: Lora, directory: str | None) -> Path:
    """Return the directory, if its weights are those of the base; raises TrainingError if not."""
    if directory is None:
        raise TrainingError(
            f"adapters of {lora.base} need that model: name its directory as base under [train] "
            "in node.toml, or with --base"
        )
    found = base_files(Path(directory))
    for name in sorted(found.keys() | lora.base_files.keys()):
        here, agreed = (files.get(name, "none") for files in (found, lora.base_files))
        if here != agreed:
            raise TrainingError(
                f"{directory} is not this mesh's base model, {lora.base}: SHA-256 of {name} is "
                f"{here}, the mesh has agreed on {agreed}; get the files that its founders have"
            )
    return Path(directory)


def adapted_model(
    config: Mapping[str, Any], lora: Lora, directory: Path, seed: int
) -> torch.nn.Module:
    """Return the base that lies in `directory`, frozen, with fresh adapters drawn from `seed`.

    Fresh ones change nothing of what it says. The caller's random state is left as it was. Raises
    TrainingError as `load_model`, where the base has no such modules, and where peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise TrainingError("training adapters needs peft; pip install 'shoal[lora]'") from None

    module = load_model(config, directory)
    adapters = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules)
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # It warns of layers that hold their weights transposed, and then does what is right.
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(adapters, module)
        except ValueError as error:
            raise TrainingError(" ".join(str(error).split())[:300]) from None
    return module
