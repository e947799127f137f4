"""Other servers around the same graph and transforms, each started from the peers' environment."""

from pathlib import Path

from benchmarks.record import ROOT

from .processes import Server

PEERS = ("fastapi", "litserve", "bentoml")


def peer(name: str, venv: Path | None, bundle: Path, *, core: int, port: int) -> Server:
    """A peer with the bundle, ready.

    Raises:
        FileNotFoundError: where its environment is not there.
    """
    if venv is None:
        raise FileNotFoundError("no --peers was given; benchmarks/peers/setup_serving.sh VENV makes that environment")
    python = venv.absolute() / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{python} is not there; benchmarks/peers/setup_serving.sh {venv} makes it")
    script = ROOT / "benchmarks" / "peers" / f"serving_{name}.py"
    command = [str(python), str(script), str(bundle.absolute()), str(port)]
    return Server(name, command, core=core, port=port, ready_path={"fastapi": "/docs", "litserve": "/health"}.get(name, "/readyz"))
