"""gather.c, compiled on first use by the machine's C compiler and kept for the next process.

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

_SOURCE = Path(__file__).with_name("gather.c")
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")  # for this processor: ids widen to int64 a quarter faster (measured)
_COMPILE_SECONDS = 60

Gather = Callable[[int, int], None]


class NoNativeCode(Exception):
    """Why gather.c cannot be used here."""


@cache
def native_gather() -> Gather | None:
    """The `gather` of gather.c: (address of the jobs, number of jobs); it runs without the GIL.

    Returns:
        None where it cannot be had; the reason is logged, once.
    """
    try:
        return load(Path.home() / ".cache" / "torchrec-models")
    except NoNativeCode as reason:
        logger.info("the loader gathers rows with stock operators, which is slower: %s", reason)
        return None


def load(folder: Path) -> Gather:
    """Compiles gather.c into `folder`, unless it was compiled there before, and loads it.

    Raises:
        NoNativeCode: saying why not.
    """
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    identity = "\0".join((_SOURCE.read_text(), *_FLAGS, platform.system(), _processor()))
    library = folder / f"gather-{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}.so"
    if not library.exists():
        if compiler is None:
            raise NoNativeCode(f"there is no C compiler (looked for {', '.join(_COMPILERS)})")
        try:
            _compile(compiler, library)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoNativeCode(f"{compiler} could not make {library}: {error}") from None
    try:
        function = ctypes.CDLL(str(library)).gather
    except OSError as error:
        raise NoNativeCode(f"{library} cannot be loaded: {error}") from None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int64), None
    return function


def _processor() -> str:
    """What the compiler may count on; a home folder may be shared by machines of different kinds."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _compile(compiler: str, library: Path) -> None:
    """Under another name, then renamed: processes that do this at once do not disturb each other."""
    library.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=library.parent, suffix=".so")
    os.close(descriptor)
    try:
        command = [compiler, *_FLAGS, "-o", name, str(_SOURCE)]
        subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
        os.replace(name, library)
    finally:
        Path(name).unlink(missing_ok=True)
