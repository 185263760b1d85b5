"""Manifests for KubeRay, Ray's autoscaler and Docker: the fields that exist, pinned images, no root, no secrets."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import prdp
from prdp.configuration.compose import Composer

ROOT = Path(__file__).parents[2]
KUBERAY = sorted((ROOT / "launch" / "kuberay").glob("*.yaml"))
CLOUDS = [ROOT / "launch" / "aws.yaml", ROOT / "launch" / "gcp.yaml"]
COMPOSE = ROOT / "docker" / "compose.yaml"
EVERYTHING = [*KUBERAY, *CLOUDS, COMPOSE]
SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())


def constraint(package: str) -> str:
    """The version of a package that was tested."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def load(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def found(document: Any, key: str) -> Iterator[Any]:
    """Every value of a key, at any depth."""
    if isinstance(document, dict):
        for name, value in document.items():
            if name == key:
                yield value
            yield from found(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from found(value, key)


@pytest.mark.parametrize("file", KUBERAY, ids=lambda file: file.stem)
def test_kuberay_manifests_match_the_schema(file: Path) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(load(file))


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda spec: spec.update(backofLimit=3), "backofLimit"),
        (lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="disabled"), "'token' was expected"),
        (lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "0 is not of"),
        (
            lambda spec: spec["submitterPodTemplate"]["spec"]["containers"][0].update(image="prdp:latest"),
            "'prdp:latest' does not match",
        ),
        (
            lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].pop("securityContext"),
            "'securityContext' is a required property",
        ),
    ],
)
def test_the_schema_finds_mistakes(change: Any, complaint: str) -> None:
    [file] = [file for file in KUBERAY if file.stem == "rayjob"]
    document = load(file)
    change(document["spec"])
    job = {"$ref": "#/$defs/rayJob", "$defs": SCHEMA["$defs"]}
    errors = [error.message for error in jsonschema.Draft202012Validator(job).iter_errors(document)]
    assert any(complaint in error for error in errors), errors


@pytest.mark.parametrize("file", [file for file in KUBERAY if file.stem != "storage"], ids=lambda file: file.stem)
def test_kuberay_manifests_fit_together(file: Path) -> None:
    document = load(file)
    assert set(found(document, "rayVersion")) == {constraint("ray")}
    claims = {load(file)["metadata"]["name"] for file in KUBERAY if file.stem == "storage"}
    assert set(found(document, "claimName")) == claims
    for spec in found(document, "template"):
        volumes = {volume["name"] for volume in spec["spec"]["volumes"]}
        [container] = spec["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    for group in next(found(document, "workerGroupSpecs")):
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_job_asks_for_what_its_cluster_has() -> None:
    [document] = [load(file) for file in KUBERAY if file.stem == "rayjob"]
    command, *words = shlex.split(document["spec"]["entrypoint"])
    assert (command, words.pop(0)) == ("prdp", "train")
    with Composer(words) as composer:
        [job] = composer.jobs()
    [group] = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert job.config.cluster.samplers * job.config.cluster.sampler_gpus == group["replicas"] * gpus
    assert job.config.checkpoint.resume == "auto"
    [mount] = set(found(document, "mountPath"))
    assert job.config.output_dir.startswith(f"{mount}/")


@pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.stem)
def test_rays_own_schema_takes_the_autoscaler_configurations(file: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    document = load(file)
    prepared = prepare_config(document)
    validate_config(prepared)
    assert prepared["setup_commands"] == prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []
    for node in document["available_node_types"].values():
        assert node.get("max_workers", 0) <= document["max_workers"]


@pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.stem)
def test_clouds_start_ray_with_its_token_and_a_private_dashboard(file: Path) -> None:
    document = load(file)
    head, worker = document["head_start_ray_commands"][-1], document["worker_start_ray_commands"][-1]
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head
    assert document["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("file", EVERYTHING, ids=lambda file: file.stem)
def test_images_are_of_this_version(file: Path) -> None:
    images = {image for image in found(load(file), "image") if isinstance(image, str)}
    tags = {image.rpartition(":")[2] for image in images}
    assert tags <= {f"{prdp.__version__}-cpu", f"{prdp.__version__}-cuda"}
    assert bool(images) == (file.stem != "storage")


@pytest.mark.parametrize("file", EVERYTHING, ids=lambda file: file.stem)
def test_no_manifest_holds_a_secret(file: Path) -> None:
    for line in file.read_text().splitlines():
        assert not re.search(r"(?i)(token|password|secret|api_?key)\w*\s*[:=]\s*['\"]?[A-Za-z0-9+]{16,}", line), line


def test_compose_gives_no_more_rights_and_ports_than_needed() -> None:
    document = load(COMPOSE)
    assert set(document["services"]) == {"head", "worker", "job"}
    for service in document["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["secrets"] == ["ray_token"]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" not in service["environment"]
        assert not service.get("privileged")
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert document["secrets"] == {"ray_token": {"environment": "RAY_AUTH_TOKEN"}}


def test_compose_runs_a_job_that_prdp_takes() -> None:
    command = load(COMPOSE)["services"]["job"]["command"]
    words = command[command.index("--") + 1 :]
    assert words[:2] == ["prdp", "train"]
    with Composer(words[2:]) as composer:
        [job] = composer.jobs()
    assert job.config.cluster.kind == "ray"
    assert job.config.cluster.address == "auto"
