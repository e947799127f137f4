"""Our plain C (gather.c, pieces.c, ...), compiled on first use by the machine's C compiler and kept for the next process.

    python -m torchrec_models.pipelines.data.native   compiles it into the installed package, for images without a compiler

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
from typing import NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_COMPILERS = ("cc", "gcc", "clang")
# -march=native: for this processor (ids widen to int64 a quarter faster, measured); -ffp-contract=off: numpy's bits, no fused steps
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")
_FLAGS_FOR_ALL = tuple(flag for flag in _FLAGS if flag != "-march=native")
_COMPILE_SECONDS = 60


class Native(NamedTuple):
    """The functions of gather.c, which says what they take (addresses and counts). They run without the GIL."""

    pack: Callable[[int, int, int, int, int], None]
    ends: Callable[[int, int, int, int], None]
    gather: Callable[[int, int, int, int, int, int, int, int], None]


class NoNativeCode(Exception):
    """Why our C cannot be used here."""


@cache
def native_gather() -> Native | None:
    """The functions of gather.c.

    Returns:
        None where it cannot be had; the reason is logged, once.
    """
    return _functions_of(library) if (library := native_library("gather", "the loader gathers rows with stock operators")) else None


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


def load(folder: Path) -> Native:
    """The functions of gather.c, compiled into `folder`.

    Raises:
        NoNativeCode: saying why not.
    """
    return _functions_of(load_library(folder, "gather"))


def _functions_of(library: ctypes.CDLL) -> Native:
    address, count = ctypes.c_void_p, ctypes.c_int64
    of = {
        "pack": (address, count, count, address, count),
        "ends": (address, address, count, address),
        "gather": (address, count, address, count, address, count, count, address),
    }
    for name, types in of.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, None
    return Native(library.pack, library.ends, library.gather)


def address_of(array: np.ndarray) -> int:
    """Where an array begins. Quicker than `array.ctypes.data`, which matters once per batch."""
    return array.__array_interface__["data"][0]


def load_library(folder: Path, name: str, *, sources: Path = _FOLDER) -> ctypes.CDLL:
    """Compiles `<name>.c` of `sources` into `folder`, unless it was compiled there before, and loads it.

    Raises:
        NoNativeCode: saying why not.
    """
    source = sources / f"{name}.c"
    library = _library_for_all(source)
    if not library.exists():
        library = folder / f"{name}-{_identity(source, _FLAGS, _processor())}.so"
    if not library.exists():
        _compile(source, library, _FLAGS)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NoNativeCode(f"{library} cannot be loaded: {error}") from None


def _processor() -> str:
    """What the compiler may count on; a home folder may be shared by machines of different kinds."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _library_for_all(source: Path) -> Path:
    return source.with_name(f"{source.stem}-{_identity(source, _FLAGS_FOR_ALL, platform.machine())}.so")


def _identity(source: Path, flags: tuple[str, ...], processor: str) -> str:
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    identity = "\0".join((*texts, *flags, platform.system(), processor))
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


def _compile(source: Path, library: Path, flags: tuple[str, ...]) -> None:
    """Under another name, then renamed: processes that do this at once do not disturb each other.

    Raises:
        NoNativeCode: saying why not.
    """
    compiler = next((path for command in _COMPILERS if (path := shutil.which(command))), None)
    if compiler is None:
        raise NoNativeCode(f"there is no C compiler (looked for {', '.join(_COMPILERS)})")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=library.parent, suffix=".so")
        os.close(descriptor)
        try:
            command = [compiler, *flags, "-o", name, str(source)]
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
            os.chmod(name, 0o755)  # in an image, whoever compiles is not who runs
            os.replace(name, library)
        finally:
            Path(name).unlink(missing_ok=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoNativeCode(f"{compiler} could not make {library}: {error}") from None


def compile_for_all(*folders: Path) -> None:
    """Compiles what lies in the folders, beside it, for any processor of this machine's kind: for images that hold no compiler.

    Raises:
        NoNativeCode: saying why not.
    """
    for source in (source for folder in folders for source in sorted(folder.glob("*.c"))):
        _compile(source, _library_for_all(source), _FLAGS_FOR_ALL)


if __name__ == "__main__":
    compile_for_all(_FOLDER, _FOLDER.parent / "serving")
