"""The adapters that a mesh trains, read a second time for `shoal verify`.

Written from docs/verify.md alone, like verify_formats.py: a genesis names the adapters and their
base, and from that alone follows the adapter_config.json of every checkpoint.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PATH = re.compile(r"[A-Za-z0-9_.\-/]{1,200}")


@dataclass(frozen=True, slots=True)
class Adapters:
    """What the anchor is of, where it is not of a whole model: of adapters to a base."""

    config: bytes
    base: str
    # The base's files by name: their SHA-256.
    base_files: dict[str, bytes]


def parse_adapters(genesis: Mapping[str, Any]) -> Adapters | None:
    """What a genesis says of them, None for a mesh of a whole model.

    Raises ValueError, KeyError, TypeError or AttributeError where it is not sound.
    """
    if "lora" not in genesis:
        return None
    lora = genesis["lora"]
    rank, alpha, targets, base = (
        lora[name] for name in ("rank", "alpha", "target_modules", "base")
    )
    files = {name: bytes.fromhex(digest) for name, digest in lora["base_files"].items()}
    if not all(type(number) is int and number > 0 for number in (rank, alpha)):
        raise ValueError("rank or alpha of its adapters")
    if type(targets) is not list or not all(_PATH.fullmatch(name) for name in (*targets, base)):
        raise ValueError("a name in its adapters")
    if not files or not all(_PATH.fullmatch(name) for name in files):
        raise ValueError("the files of its adapters' base")
    if any(len(digest) != 32 for digest in files.values()):
        raise ValueError("a hash of its adapters' base")
    kinds = genesis["model"].get("architectures")
    masked = type(kinds) is list and any(str(kind).endswith("ForMaskedLM") for kind in kinds)
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": targets,
        "task_type": None if masked else "CAUSAL_LM",
    }
    return Adapters((json.dumps(config, indent=2) + "\n").encode(), base, files)
