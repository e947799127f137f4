"""The wheel: what is in it, and that it works in a folder that has nothing to do with the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("torchrec_models", "pipelines", "launch", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once from a copy, since a build leaves folders behind."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in CODE:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "tests"):
        if (ROOT / file).is_file():
            shutil.copy(ROOT / file, copy)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_stray.py").touch()
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(site: Path, where: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, *command], cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_our_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"torchrec_models"}
    assert [name for name in names if "test" in Path(name).name] == []


def test_the_wheel_holds_every_module_config_and_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for folder in CODE:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".j2", ".c", ".h"):
                inside = path.relative_to(ROOT).as_posix()
                expected.add(inside if folder == "torchrec_models" else f"torchrec_models/{inside}")
    assert len(expected) > 50
    assert expected - names == set()


def test_trm_works_from_any_folder(site: Path, tmp_path: Path) -> None:
    where = run(site, tmp_path, "-c", "import torchrec_models.pipelines.cli as cli; print(cli.__file__)").strip()
    assert Path(where) == site / "torchrec_models" / "pipelines" / "cli" / "__init__.py"
    assert "usage: trm" in run(site, tmp_path, str(site / "bin" / "trm"), "--help")
    config = site / "torchrec_models" / "configs" / "ml100k" / "deepfm.yaml"
    assert "no mistakes" in run(site, tmp_path, str(site / "bin" / "trm"), "check", "--no-data", str(config))


@pytest.mark.parametrize("name", ["pipelines", "launch"])
def test_a_second_copy_under_another_name_is_refused(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: import torchrec_models.{name}, not {name}" in done.stderr
