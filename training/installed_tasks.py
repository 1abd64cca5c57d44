"""The class of the task that a mesh names, on this machine.

A mesh's model configuration names its task with a version. The class comes from what is installed
here, never from a peer: packages offer theirs in the entry point group `shoal.tasks`, by name. A
name like `module:Class` would make this process import whatever a stranger wrote into a genesis, so
it is followed only where this node's own operator has named the same.
"""

import hashlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from shoal.training.errors import TrainingError
from shoal.training.task import Task
from shoal.training.task_name import CONFIG_KEY, TASK_KEY, VERSION, TaskName

GROUP = "shoal.tasks"
# Of the hash of a source file, which stands for a version where none is declared.
HASH_DIGITS = 16


def task_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model configuration of a new mesh that trains the task `name`, installed here.

    Raises TrainingError. This is the founder's own word, so it may be module:Class.
    """
    chosen = TaskName(name, version_of(_find(name, named=name)))
    return {TASK_KEY: asdict(chosen), CONFIG_KEY: dict(config)}


def installed_task(model_config: Mapping[str, Any], named: str | None = None) -> Task:
    """Return the task of a mesh, as it is installed here.

    named: the module:Class that this node's operator has allowed, if any. Raises TrainingError,
    one line, where the task is missing, another version, or does not take its configuration.
    """
    wanted = TaskName.of(model_config)
    assert wanted is not None, "a model of text has no task"
    found = _find(wanted.name, named)
    here = version_of(found)
    if here != wanted.version:
        raise TrainingError(
            f'this mesh trains version {wanted.version} of the task "{wanted.name}", but version '
            f"{here} is installed here; install the one that its founders have"
        )
    with blaming(wanted.name):
        return found(model_config[CONFIG_KEY])


def version_of(task: type[Task]) -> str:
    """Return the version that a task declares, or else what its source file hashes to.

    Raises TrainingError where there is neither.
    """
    version = task.version
    if not version:
        try:
            source = Path(inspect.getfile(task)).read_bytes()
        except (OSError, TypeError):
            raise TrainingError(f"the task {task.__name__} declares no version") from None
        return f"sha256-{hashlib.sha256(source).hexdigest()[:HASH_DIGITS]}"
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        raise TrainingError(f"the version of a task cannot be {version!r:.80}")
    return version


@contextmanager
def blaming(task: str) -> Iterator[None]:
    """Say in one line which task an error comes from; where in it stays with the exception."""
    try:
        yield
    except (TrainingError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        why = " ".join(f"{kind}{error}".split())[:300]
        raise TrainingError(f'the task "{task}": {why}') from error


def _find(name: str, named: str | None) -> type[Task]:
    if ":" in name:
        return _import(name, named)
    offered = {each.value: each for each in entry_points(group=GROUP, name=name)}
    if len(offered) != 1:
        others = ", ".join(sorted({each.name for each in entry_points(group=GROUP)})) or "none"
        why = f"is offered by several packages ({', '.join(sorted(offered))}); remove all but one"
        if not offered:
            why = f"is not installed here; install its package (installed are: {others})"
        raise TrainingError(f'the task "{name}" {why}')
    (entry,) = offered.values()
    with blaming(name):
        return _require_task(name, entry.load())


def _import(name: str, named: str | None) -> type[Task]:
    if named != name:
        raise TrainingError(
            f'this mesh trains the task "{name}"; if you have it and trust it, say so: '
            f'task = "{name}" under [train] in node.toml, or --task {name}'
        )
    module, _, attribute = name.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise TrainingError(
            f'the task "{name}" cannot be imported ({error}); install its package, or put its '
            "directory on PYTHONPATH"
        ) from None
    except Exception as error:
        raise TrainingError(f'the task "{name}": {type(error).__name__}: {error!s:.300}') from error
    return _require_task(name, found)


def _require_task(name: str, found: object) -> type[Task]:
    if not isinstance(found, type) or not issubclass(found, Task):
        raise TrainingError(f'"{name}" is no task: it must be a subclass of shoal.Task')
    return found
