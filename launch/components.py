"""torchx components: the same six jobs on this machine, Slurm, Kubernetes or wherever torchx runs.

    torchx run -s local_cwd launch/components.py:train --config configs/ml100k/deepfm.yaml --nproc 2 -- train.epochs=2

Everything after `--` goes to the command line of `trm` as it is. Written against `torchx.specs` alone, for torchx 0.7 and later.
torchx executes this file without importing its package, so it imports nothing of ours and names the command line as text.
"""

import shlex

import torchx.specs as specs

CLI = "torchrec_models.pipelines.cli"
RENDEZVOUS_PORT = 29500


def prepare(
    *arguments: str,
    config: str,
    nnodes: int = 1,
    nproc: int = 1,
    max_restarts: int = 0,
    image: str = "",
    python: str = "python",
    cpu: int = 2,
    memMB: int = 8192,
) -> specs.AppDef:
    """Fit the transforms and write the shards: in one process, or in nnodes x nproc that share the work and a file system.

    Args:
        arguments: key=value overrides and options of `trm prepare`
        config: config file, as the job sees it
        nnodes: nodes; all see the data and the folder of the cache under the same paths
        nproc: processes per node; one, with a thread per core, is enough
        max_restarts: restarts of all processes before the job fails; finished shards are kept
        image: container image; not used by local_cwd
        python: the Python that has torchrec-models installed, as the job sees it
        cpu: cores per node
        memMB: memory per node in MB
    """
    start = [python] if nnodes == nproc == 1 else _torchrun(python, nproc, nnodes, max_restarts)
    command = [*start, "-m", CLI, "prepare", config, *arguments]
    return _app("prepare", command, image, specs.resource(cpu=cpu, gpu=0, memMB=memMB), nnodes)


def train(
    *arguments: str,
    config: str,
    nproc: int = 1,
    nnodes: int = 1,
    max_restarts: int = 3,
    image: str = "",
    python: str = "python",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
) -> specs.AppDef:
    """Train with sharded tables on nnodes x nproc processes. A process that dies restarts all of them from the last checkpoint.

    Args:
        arguments: key=value overrides and options of `trm train`
        config: config file, as the job sees it
        nproc: processes per node; on GPUs, one per GPU
        nnodes: nodes
        max_restarts: restarts of all processes before the job fails
        image: container image; not used by local_cwd
        python: the Python that has torchrec-models installed, as the job sees it
        cpu: cores per node
        gpu: GPUs per node
        memMB: memory per node in MB
    """
    command = [*_torchrun(python, nproc, nnodes, max_restarts), "-m", CLI, "train", config, *arguments]
    return _app("train", command, image, specs.resource(cpu=cpu, gpu=gpu, memMB=memMB), nnodes)


def evaluate(
    *arguments: str,
    run: str,
    nproc: int = 1,
    nnodes: int = 1,
    image: str = "",
    python: str = "python",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
) -> specs.AppDef:
    """Evaluate a run's best checkpoint exactly.

    Args:
        arguments: options of `trm evaluate`
        run: folder of the run, as the job sees it
        nproc: processes per node; need not be what the run was trained with
        nnodes: nodes
        image: container image; not used by local_cwd
        python: the Python that has torchrec-models installed, as the job sees it
        cpu: cores per node
        gpu: GPUs per node
        memMB: memory per node in MB
    """
    command = [*_torchrun(python, nproc, nnodes, 0), "-m", CLI, "evaluate", run, *arguments]
    return _app("evaluate", command, image, specs.resource(cpu=cpu, gpu=gpu, memMB=memMB), nnodes)


def predict(
    *arguments: str,
    run: str,
    nproc: int = 1,
    nnodes: int = 1,
    image: str = "",
    python: str = "python",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
) -> specs.AppDef:
    """Write a prediction for every row of new files.

    Args:
        arguments: input, output and options of `trm predict`
        run: folder of the run, as the job sees it
        nproc: processes per node; need not be what the run was trained with
        nnodes: nodes
        image: container image; not used by local_cwd
        python: the Python that has torchrec-models installed, as the job sees it
        cpu: cores per node
        gpu: GPUs per node
        memMB: memory per node in MB
    """
    command = [*_torchrun(python, nproc, nnodes, 0), "-m", CLI, "predict", run, *arguments]
    return _app("predict", command, image, specs.resource(cpu=cpu, gpu=gpu, memMB=memMB), nnodes)


def export(*arguments: str, run: str, image: str = "", python: str = "python", cpu: int = 2, memMB: int = 8192) -> specs.AppDef:
    """Turn a run's best checkpoint into a bundle for serving, in one process.

    Args:
        arguments: options of `trm export`
        run: folder of the run, as the job sees it
        image: container image; not used by local_cwd
        python: the Python that has torchrec-models installed, as the job sees it
        cpu: cores
        memMB: memory in MB
    """
    return _app("export", [python, "-m", CLI, "export", run, *arguments], image, specs.resource(cpu=cpu, gpu=0, memMB=memMB))


def serve(
    *arguments: str,
    bundle: str,
    port: int = 8000,
    workers: int = 1,
    replicas: int = 1,
    image: str = "",
    python: str = "python",
    cpu: int = 1,
    memMB: int = 2048,
) -> specs.AppDef:
    """Answer requests with a bundle over HTTP until it is stopped. Needs no torch: the image of the Dockerfile does.

    Args:
        arguments: options of `trm serve`, more bundles among them
        bundle: folder of the bundle, or NAME=folder, as the job sees it
        port: where each replica listens, on every address
        workers: processes per replica, each with the model in memory; one per core
        replicas: servers, each on a host or container of its own, behind a balancer of yours
        image: container image; not used by local_cwd
        python: the Python that has torchrec-models installed, as the job sees it
        cpu: cores per replica
        memMB: memory per replica in MB
    """
    place = ("--host", "0.0.0.0", "--port", str(port), "--workers", str(workers))
    command = [python, "-m", CLI, "serve", bundle, *place, *arguments]
    return _app("serve", command, image, specs.resource(cpu=cpu, gpu=0, memMB=memMB), replicas, port_map={"http": port})


class _Shell(str):
    """Text for the shell to expand; anything else is quoted."""


def _torchrun(python: str, nproc: int, nnodes: int, max_restarts: int) -> list[str]:
    """The start of a torchrun command. Several nodes meet at the node of replica 0, whose host name the scheduler tells."""
    if nproc < 1 or nnodes < 1 or max_restarts < 0:
        given = f"{nproc}, {nnodes} and {max_restarts}"
        raise ValueError(f"nproc and nnodes must be at least 1 and max_restarts at least 0, given {given}")
    endpoint = "localhost:0" if nnodes == 1 else _Shell(f'"$${{{specs.macros.rank0_env}:=localhost}}:{RENDEZVOUS_PORT}"')
    return [
        *(python, "-m", "torch.distributed.run"),
        *("--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint, "--rdzv_id", _Shell(specs.macros.app_id)),
        *("--nnodes", str(nnodes), "--nproc_per_node", str(nproc), "--max_restarts", str(max_restarts)),
    ]


def _app(
    verb: str,
    command: list[str],
    image: str,
    resource: specs.Resource,
    nnodes: int = 1,
    *,
    port_map: dict[str, int] | None = None,
) -> specs.AppDef:
    """One role that runs the command under bash: schedulers differ in how they quote arguments, not in this.

    torchx fills in its macros as `string.Template` does, so a dollar sign of the user's is written twice.
    """
    words = [word if isinstance(word, _Shell) else shlex.quote(word).replace("$", "$$") for word in command]
    role = specs.Role(
        name=verb,
        image=image,
        entrypoint="bash",
        args=["-c", f"exec {' '.join(words)}"],
        num_replicas=nnodes,
        resource=resource,
        port_map=port_map or ({"c10d": RENDEZVOUS_PORT} if nnodes > 1 else {}),
    )
    return specs.AppDef(name=f"trm-{verb}", roles=[role])
