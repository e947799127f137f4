"""The examples of deployment agree with the server: routes, ports, options, packages."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from torchrec_models.pipelines.cli import _parser
from torchrec_models.pipelines.cli.serving import serve_options
from torchrec_models.pipelines.serving.server import ServeOptions
from torchrec_models.pipelines.serving.status import OPEN_PATHS

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def instructions(name: str) -> list[str]:
    """What follows an instruction, of each of its lines."""
    return re.findall(rf"^{name} (.+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)


def options_of(words: list[str]) -> ServeOptions:
    """What `trm` makes of a command line."""
    assert words[0] == "trm"
    return serve_options(_parser().parse_args(words[1:]))


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    return {document["kind"]: document for document in found}


@pytest.fixture(scope="module")
def entrypoint() -> list[str]:
    return yaml.safe_load(instructions("ENTRYPOINT")[0])


def test_the_image_serves_what_is_mounted_on_every_address(entrypoint: list[str]) -> None:
    options = options_of([*entrypoint, *yaml.safe_load(instructions("CMD")[0])])
    assert [str(b.path) for b in options.bundles] == ["/bundle"]
    assert (options.host, [str(options.port)]) == ("0.0.0.0", instructions("EXPOSE"))


def test_the_image_copies_what_the_package_is_made_of_and_no_torch() -> None:
    ignore = {line.strip("!/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in instructions("COPY"):
        if not line.startswith("--from"):
            for source in shlex.split(line)[:-1]:
                assert (ROOT / source).exists() and source in ignore, source
    assert {"torchrec_models", "pipelines", "launch", "configs"} <= ignore
    names = {line.split("==")[0] for line in (ROOT / "requirements" / "serve.txt").read_text().splitlines() if "==" in line}
    assert {"onnxruntime", "uvicorn", "msgspec"} <= names and not names & {"torch", "torchrec", "fbgemm-gpu-cpu"}


def test_the_containers_command_and_ports_are_the_servers(documents: dict[str, Any], entrypoint: list[str]) -> None:
    (container,) = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    options = options_of([*entrypoint, *container["args"]])
    (mount,) = (m["mountPath"] for m in container["volumeMounts"] if m.get("readOnly"))
    assert all(str(b.path).startswith(mount) for b in options.bundles)
    (port,) = container["ports"]
    assert port["containerPort"] == options.port
    annotations = documents["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert (annotations["prometheus.io/port"], annotations["prometheus.io/path"]) == (str(options.port), "/metrics")
    (outside,) = documents["Service"]["spec"]["ports"]
    assert outside["targetPort"] == port["name"]


def test_probes_ask_open_routes_and_the_drain_outlasts_them(documents: dict[str, Any], entrypoint: list[str]) -> None:
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for name, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert container[name]["httpGet"] == {"path": path, "port": container["ports"][0]["name"]}
        assert path in OPEN_PATHS  # no token is asked for there
    drain = options_of([*entrypoint, *container["args"]]).drain_seconds
    readiness = container["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < drain < pod["terminationGracePeriodSeconds"]


def test_the_service_finds_the_pods(documents: dict[str, Any]) -> None:
    deployment, service = documents["Deployment"], documents["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
