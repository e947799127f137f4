"""The image of the Dockerfile, run as deploy/kubernetes.yaml runs it: read-only, without capabilities, as nobody.

Building takes minutes, so it is done by hand: docker build -t torchrec-models-serve .
"""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from torchrec_models.pipelines.serving.bundle import Bundle

IMAGE = "torchrec-models-serve"
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
READY_SECONDS = 60


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def has_image() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not has_image(), reason=f"there is no image to run: docker build -t {IMAGE} .")


@pytest.fixture(scope="module")
def folder(click_bundles: tuple[Path, Path]) -> Path:
    """A bundle that nobody (65534) can read: pytest's folders are its user's alone."""
    for path in [*click_bundles[0].parents[:2], *click_bundles[0].rglob("*"), click_bundles[0]]:
        path.chmod(path.stat().st_mode | 0o555)
    return click_bundles[0]


@pytest.fixture
def container(folder: Path) -> Iterator[str]:
    name = docker("run", "--detach", *HARDENED, "--publish", "127.0.0.1::8000", "--volume", f"{folder}:/bundle:ro", IMAGE)
    yield name
    docker("rm", "--force", name)


def address_when_ready(container: str) -> str:
    address = f"http://{docker('port', container, '8000/tcp').splitlines()[0]}"
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return address
        except OSError:
            if time.monotonic() > end or docker("inspect", "--format", "{{.State.Running}}", container) != "true":
                raise RuntimeError(docker("logs", container)) from None
            time.sleep(0.1)


def test_the_image_answers_as_the_bundle_and_ends_gracefully(container: str, folder: Path) -> None:
    address = address_when_ready(container)
    example = Bundle(folder).examples["model"]
    body = json.dumps({"rows": example["rows"]}).encode()
    with urllib.request.urlopen(f"{address}/predict", body, timeout=30) as answer:
        found = json.load(answer)
    np.testing.assert_allclose([[p["click"], p["spend"]] for p in found["predictions"]], example["answers"], rtol=0, atol=1e-6)
    docker("stop", "--time", "30", container)
    assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"


def test_there_is_neither_torch_nor_a_compiler_but_our_c() -> None:
    code = "import importlib.util as u, shutil; print([u.find_spec(n) for n in ('torch', 'pip', 'setuptools')], shutil.which('cc'))"
    assert docker("run", "--rm", *HARDENED, "--entrypoint", "python", IMAGE, "-c", code) == "[None, None, None] None"
