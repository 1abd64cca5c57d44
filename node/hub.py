"""Models and data sets by the name that Hugging Face's hub has for them: hub:NAME, or
hub:ORG/NAME@REVISION.

The library downloads them once into its own cache. Only an operator who writes `hub:` makes a
command ask another host for anything: a path that is mistyped never does. Weights are safetensors
or nothing and data is files of text or rows, because whatever else lies there could run code.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from shoal.node.errors import UnreachableError, UserError
from shoal.node.progress import tell
from shoal.training.documents import FileDocuments
from shoal.training.errors import TrainingError

PREFIX = "hub:"
# Weights, configuration and tokenizer; no pickles and no code.
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
# Neither a script nor the page that describes the data.
DATA_FILES = ("*.txt", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.parquet")
_NAME = re.compile(r"hub:([\w.-]{1,96}(?:/[\w.-]{1,96})?)(?:@([\w./-]{1,128}))?")
_DATA = re.compile(_NAME.pattern + r"(?:#([^?&=#]{1,256}))?(?:\?(text=[^?&=#]{1,128}))?")


def local_model(model: Path | None, *, cache: Path | None = None) -> Path | None:
    """Where a model lies on this machine: `model` itself, or what hub:NAME stands for.

    cache: instead of the library's own. Raises UserError where there is no such thing, and
    UnreachableError where the hub does not answer and the cache does not have it.
    """
    if model is None or not str(model).startswith(PREFIX):
        return model
    found = _NAME.fullmatch(str(model))
    if found is None:
        raise UserError(f"{model}: write hub:NAME or hub:ORG/NAME, and @REVISION if need be")
    directory = _download("model", found[1], found[2], MODEL_FILES, cache)
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{model}: it has no weights in safetensors, and Shoal opens no others")
    return directory


def local_data(data: str, *, fetch: bool = True) -> str:
    """Where a node's text lies on this machine: `data` itself, or what
    hub:NAME@REVISION#PATTERN?text=COLUMN stands for.

    fetch: false asks nobody, and finds what was fetched before. Raises as `local_model`.
    """
    if not data.startswith(PREFIX):
        return data
    found = _DATA.fullmatch(data)
    if found is None:
        raise UserError(
            f"{data}: write hub:NAME or hub:ORG/NAME, then @REVISION, #FILES (like "
            "#data/train-*.parquet) and ?text=COLUMN if need be"
        )
    patterns = found[3].split(",") if found[3] else DATA_FILES
    if not all(each.endswith(tuple(kind[1:] for kind in DATA_FILES)) for each in patterns):
        kinds = ", ".join(kind[1:] for kind in DATA_FILES)
        raise UserError(f"{data}: of a data set, files are read that end with one of {kinds}")
    directory = _download("dataset", found[1], found[2], patterns, fetch=fetch)
    # Another pattern, or another program, may have left more there.
    local = f"{directory}?files={','.join(patterns)}" + (f"&{found[4]}" if found[4] else "")
    try:
        FileDocuments.of(local).stamps()
    except TrainingError:
        raise UserError(f"{data}: it has no files like {' or '.join(patterns)}") from None
    return local


def _download(
    kind: Literal["model", "dataset"],
    name: str,
    revision: str | None,
    patterns: Sequence[str],
    cache: Path | None = None,
    *,
    fetch: bool = True,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if fetch:
        tell(f"asking the hub for {name}")
    try:
        path = snapshot_download(
            name,
            repo_type=kind,
            revision=revision,
            cache_dir=cache,
            allow_patterns=list(patterns),
            local_files_only=not fetch,
        )
    except GatedRepoError:
        raise UserError(
            f"{name} is only for those whom its owners let in; `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        at = f" at {revision}" if revision else ""
        raise UserError(f"the hub has no {kind} {name}{at}; look for its name there") from None
    except (LocalEntryNotFoundError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise UnreachableError(f"the hub did not deliver {name}: {why}") from None
    return Path(path)
