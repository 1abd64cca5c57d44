"""Models by the name that Hugging Face's hub has for them: hub:NAME, or hub:ORG/NAME@REVISION.

The library downloads them once into its own cache. Only an operator who writes `hub:` makes a
command ask another host for anything: a path that is mistyped never does. Weights are safetensors
or nothing, because whatever else lies there could run code.
"""

import re
from pathlib import Path

from shoal.node.errors import UnreachableError, UserError
from shoal.node.progress import tell

PREFIX = "hub:"
# Weights, configuration and tokenizer; no pickles and no code.
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_NAME = re.compile(r"hub:([\w.-]{1,96}(?:/[\w.-]{1,96})?)(?:@([\w./-]{1,128}))?")


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
    tell(f"asking the hub for {found[1]}")
    directory = _download(found[1], found[2], cache)
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{model}: it has no weights in safetensors, and Shoal opens no others")
    return directory


def _download(name: str, revision: str | None, cache: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = snapshot_download(
            name, revision=revision, cache_dir=cache, allow_patterns=list(PATTERNS)
        )
    except GatedRepoError:
        raise UserError(
            f"{name} is only for those whom its owners let in; `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        at = f" at {revision}" if revision else ""
        raise UserError(f"the hub has no model {name}{at}; look for its name there") from None
    except (LocalEntryNotFoundError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise UnreachableError(f"the hub did not deliver {name}: {why}") from None
    return Path(path)
