"""Which task a mesh trains, as its model configuration says it; without anything being imported."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from shoal.training.errors import TrainingError

TASK_KEY = "shoal_task"
CONFIG_KEY = "config"
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,100}(:[A-Za-z0-9_.]{1,100})?")
VERSION = re.compile(r"[A-Za-z0-9_.+\-]{1,64}")


@dataclass(frozen=True, slots=True)
class TaskName:
    """What members must have alike. name: of an entry point, or module:Class."""

    name: str
    version: str

    @classmethod
    def of(cls, model_config: Mapping[str, Any]) -> Self | None:
        """Return the task that a model configuration names, None for a model of text.

        Raises TrainingError where it is not sound.
        """
        if TASK_KEY not in model_config:
            return None
        content = model_config[TASK_KEY]
        if not isinstance(content, Mapping) or set(content) != {"name", "version"}:
            raise TrainingError(f"{TASK_KEY} has a name and a version and nothing else")
        for word, rule in (("name", NAME), ("version", VERSION)):
            if not isinstance(content[word], str) or not rule.fullmatch(content[word]):
                raise TrainingError(f"the {word} of a task cannot be {content[word]!r:.80}")
        if not isinstance(model_config.get(CONFIG_KEY), Mapping):
            raise TrainingError(f"a task's model configuration has a {CONFIG_KEY}, a JSON object")
        return cls(content["name"], content["version"])
