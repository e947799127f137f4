"""Our plain C (gather.c, pieces.c, dense.c), compiled on first use by the machine's C compiler and kept for the next process.

Plain C through ctypes: it compiles in half a second and needs no headers of torch (torch.utils.cpp_extension: 40 s, and ninja).
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_COMPILERS = ("cc", "gcc", "clang")
# -march=native: for this processor (ids widen to int64 a quarter faster, measured); -ffp-contract=off: numpy's bits, no fused steps
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")
_COMPILE_SECONDS = 60

Gather = Callable[[int, int], None]


class NoNativeCode(Exception):
    """Why our C cannot be used here."""


@cache
def native_gather() -> Gather | None:
    """The `gather` of gather.c: (address of the jobs, number of jobs); it runs without the GIL.

    Returns:
        None where it cannot be had; the reason is logged, once.
    """
    return _gather_of(library) if (library := native_library("gather", "the loader gathers rows with stock operators")) else None


def native_library(name: str, instead: str, *, sources: Path = _FOLDER) -> ctypes.CDLL | None:
    """`<name>.c`, compiled and loaded. Its functions run without the GIL; the caller declares their types.

    Args:
        instead: what is done without it, for the log.
        sources: the folder of `<name>.c`.

    Returns:
        None where it cannot be had; the reason is logged.
    """
    try:
        return load_library(Path.home() / ".cache" / "torchrec-models", name, sources=sources)
    except NoNativeCode as reason:
        logger.info("%s, which is slower: %s", instead, reason)
        return None


def load(folder: Path) -> Gather:
    """`gather` of gather.c, compiled into `folder`.

    Raises:
        NoNativeCode: saying why not.
    """
    return _gather_of(load_library(folder, "gather"))


def _gather_of(library: ctypes.CDLL) -> Gather:
    function = library.gather
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int64), None
    return function


def load_library(folder: Path, name: str, *, sources: Path = _FOLDER) -> ctypes.CDLL:
    """Compiles `<name>.c` of `sources` into `folder`, unless it was compiled there before, and loads it.

    Raises:
        NoNativeCode: saying why not.
    """
    source = sources / f"{name}.c"
    compiler = next((path for command in _COMPILERS if (path := shutil.which(command))), None)
    texts = [path.read_text() for path in (source, *sorted(sources.glob("*.h")))]
    identity = "\0".join((*texts, *_FLAGS, platform.system(), _processor()))
    library = folder / f"{name}-{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}.so"
    if not library.exists():
        if compiler is None:
            raise NoNativeCode(f"there is no C compiler (looked for {', '.join(_COMPILERS)})")
        try:
            _compile(compiler, source, library)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoNativeCode(f"{compiler} could not make {library}: {error}") from None
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NoNativeCode(f"{library} cannot be loaded: {error}") from None


def _processor() -> str:
    """What the compiler may count on; a home folder may be shared by machines of different kinds."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _compile(compiler: str, source: Path, library: Path) -> None:
    """Under another name, then renamed: processes that do this at once do not disturb each other."""
    library.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=library.parent, suffix=".so")
    os.close(descriptor)
    try:
        command = [compiler, *_FLAGS, "-o", name, str(source)]
        subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
        os.replace(name, library)
    finally:
        Path(name).unlink(missing_ok=True)
