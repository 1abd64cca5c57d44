"""What a node trains on, as its operator names it: where that lies, and where its tokens go."""

import os
from pathlib import Path

from shoal.node.config import TrainSettings
from shoal.node.hub import PREFIX


def absolute_source(data: str) -> str:
    """The same text wherever it is named from: a path from here, made absolute."""
    return data if data.startswith(("builtin", PREFIX)) else str(Path(data).resolve())


def token_cache(train: TrainSettings, directory: Path) -> Path:
    """Where tokens are kept that memory should not hold.

    By default where all nodes of this user find them; in `directory` where that cannot be written,
    as in a container or a service that may write nothing but its own directory.
    """
    if train.token_cache:
        return Path(train.token_cache)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    place = caches / "shoal" / "tokens"
    existing = next(each for each in (place, *place.parents) if each.exists())
    if caches.is_absolute() and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return place
    return directory / "tokens"
