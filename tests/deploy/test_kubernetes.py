"""deploy/kubernetes: every object by Kubernetes' own schema, and the first start of a pod, played.

No cluster is here and no kustomize, so what it would put together is compared part by part.
"""

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.node.config import load_settings

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
BASE = KUBERNETES / "base"
# The oldest release with everything that is used here.
VERSION = "1.27"


def read(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def kustomization(name: str) -> dict[str, Any]:
    (content,) = read(KUBERNETES / name / "kustomization.yaml")
    return content


def literals(name: str) -> dict[str, str]:
    """The settings that a kustomization writes itself."""
    (settings,) = (
        each
        for each in kustomization(name)["configMapGenerator"]
        if each["name"] == "shoal-settings"
    )
    return dict(each.split("=", 1) for each in settings["literals"])


def objects() -> dict[str, dict[str, Any]]:
    return {
        each["kind"]: each
        for name in kustomization("base")["resources"]
        for each in read(BASE / name)
    }


def test_kubernetes_knows_every_field() -> None:
    validator = pytest.importorskip(
        "kubernetes_validate",
        reason="*** NO kubernetes-validate HERE: nobody has read deploy/kubernetes ***",
    )
    for each in objects().values():
        validator.validate(each, VERSION, strict=True)
    wrong = objects()["NetworkPolicy"]
    wrong["spec"]["podSelektor"] = wrong["spec"].pop("podSelector")
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, VERSION, strict=True)


def test_the_parts_name_each_other() -> None:
    base, mesh = kustomization("base"), kustomization("new-mesh")
    assert mesh["resources"] == ["../base"]
    found = objects()
    nodes = found["StatefulSet"]
    assert nodes["spec"]["serviceName"] == found["Service"]["metadata"]["name"]
    assert [each["name"] for each in mesh["replicas"]] == [nodes["metadata"]["name"]]
    labels = nodes["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        assert found[kind]["spec"][key]["matchLabels"] == labels
    pod = nodes["spec"]["template"]["spec"]
    maps = {each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each}
    maps |= {pod["containers"][0]["envFrom"][0]["configMapRef"]["name"]}
    assert maps == {each["name"] for each in base["configMapGenerator"]}
    volumes = {each["name"] for each in pod["volumes"]} | {"data"}
    for container in pod["initContainers"] + pod["containers"]:
        assert {each["name"] for each in container["volumeMounts"]} <= volumes


@pytest.mark.parametrize("name", ["base", "new-mesh"])
def test_the_settings_are_those_that_a_node_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {**literals("base"), **literals(name)}.items():
        monkeypatch.setenv(key, value)
    settings = load_settings(None)
    assert settings.node.inspect_listen == "127.0.0.1:7600", "where the probes ask"
    assert settings.consensus.validators_wanted == (4 if name == "new-mesh" else 0)


def test_a_pod_has_no_rights_and_its_root_is_read_only() -> None:
    pod = objects()["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    for container in pod["initContainers"] + pod["containers"]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}


# What stands for shoal in a pod that is only played: it says how it was called and makes the files.
STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
case $1 in init) node=$2/node0 ;; join) node=$3 ;; esac
mkdir -p "$node" && touch "$node/node.toml" "$node/identity.key" && chmod 660 "$node/identity.key"
"""


class Pod:
    """start.sh with a volume, as the first container of a pod runs it."""

    def __init__(self, place: Path, name: str, *, found: str) -> None:
        self.data, self.secret = place / "data", place / "secret"
        self._calls = place / "calls"
        for directory in (self.data, self.secret, place / "bin"):
            directory.mkdir()
        shoal = place / "bin" / "shoal"
        shoal.write_text(STAND_IN)
        shoal.chmod(0o755)
        self._environment = {
            "PATH": f"{shoal.parent}:{os.environ['PATH']}",
            "CALLS": str(self._calls),
            "DATA_DIRECTORY": str(self.data),
            "INVITATION": str(self.secret),
            "POD_NAME": name,
            "ADVERTISE": f"{name}.shoal",
            **literals("base"),
            "FOUND": found,
        }

    def start(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(BASE / "start.sh")],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    def key_mode(self) -> int:
        return stat.S_IMODE((self.data / "node" / "identity.key").stat().st_mode)


def test_the_first_pod_of_a_new_mesh_founds_it_once(tmp_path: Path) -> None:
    pod = Pod(tmp_path, "shoal-0", found="yes")
    # A try that was cut off before the node was there.
    (pod.data / "shoal" / "node0").mkdir(parents=True)
    for _ in range(2):
        assert pod.start().returncode == 0
    (call,) = pod.calls()
    assert call == (
        f"init {pod.data}/shoal --nodes 1 --host shoal-0.shoal --port 7400 --data builtin:0/1"
    )
    assert (pod.data / "node" / "node.toml").exists()
    assert pod.key_mode() == 0o600


@pytest.mark.parametrize(("name", "found"), [("shoal-10", "yes"), ("shoal-0", "no")])
def test_every_other_pod_waits_for_an_invitation_and_joins_once(
    tmp_path: Path, name: str, found: str
) -> None:
    pod = Pod(tmp_path, name, found=found)
    waiting = pod.start()
    assert waiting.returncode == 1 and "waiting for an invitation" in waiting.stderr
    assert pod.calls() == []
    (pod.secret / "line").write_text("shoal1.AAAA\n")
    for _ in range(2):
        assert pod.start().returncode == 0
    (call,) = pod.calls()
    assert call.startswith(f"join --dir {pod.data}/node --token shoal1.AAAA --no-start")
    assert call.endswith(f"--listen 0.0.0.0:7400 --advertise {name}.shoal:7400")
    assert pod.key_mode() == 0o600
