"""Which files a list of paths, globs and folders means."""

import difflib
import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Format = Literal["parquet", "csv", "tsv"]
_FORMATS: dict[str, Format] = {".parquet": "parquet", ".parq": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv"}
_COMPRESSIONS = (".gz", ".bz2", ".zst")


@dataclass(frozen=True)
class FileInfo:
    """One file, and what tells whether it changed."""

    path: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of one file: what is dealt out to machines, and what statistics are taken of. Cut by the file alone, never
    by memory, so that sums and samples do not depend on it.

    Attributes:
        file: its number among the files.
        first_row: 0-based, in the file.
        num_rows: None where only reading tells.
        size: rows or bytes; comparable within one list of files.
        groups: numbers of the row groups, of a Parquet file.
    """

    file: int
    first_row: int
    num_rows: int | None
    size: int
    groups: range = range(0)


def find_files(paths: list[str], format: Literal["auto", "parquet", "csv", "tsv"]) -> tuple[list[FileInfo], Format]:
    """Files in the order of `paths`, sorted within each glob and folder, and their one format.

    Raises:
        ValueError: where a path matches nothing, a file is given twice, is empty, or formats cannot be told or differ.
    """
    found: dict[str, str] = {}
    for given in paths:
        for path in _expand(given, format):
            if path in found:
                raise ValueError(f"{path}: given twice, by {found[path]!r} and by {given!r}; its rows would count double")
            found[path] = given
    formats = {path: _format_of(path) if format == "auto" else format for path in found}
    first = next(iter(found))
    for path, one in formats.items():
        if one != formats[first]:
            raise ValueError(f"{path} is {one} and {first} is {formats[first]}; give files of one format")
    return [_info(path) for path in found], formats[first]


def _expand(given: str, format: str) -> list[str]:
    path = Path(given)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        readable = [str(p) for p in inside if format != "auto" or _suffix(str(p)) in _FORMATS]
        if not readable:
            names = ", ".join(p.name for p in inside[:5]) or "it is empty"
            raise ValueError(f"{given}: the folder holds no .parquet, .csv or .tsv file ({names}); set data.format")
        return readable
    if path.is_file():
        return [str(path)]
    matches = sorted(p for p in glob.glob(given, recursive=True) if Path(p).is_file())
    if matches:
        return matches
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, 1)
    hint = f"; did you mean {path.parent / close[0]}?" if close else "" if siblings else f"; there is no folder {path.parent}"
    raise ValueError(f"{given}: no file matches{hint}")


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _suffix(path: str) -> str:
    suffixes = [s.lower() for s in Path(path).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _format_of(path: str) -> Format:
    suffix = _suffix(path)
    if suffix not in _FORMATS:
        raise ValueError(f"{path}: the suffix {suffix!r} tells no format; set data.format: parquet, csv or tsv")
    return _FORMATS[suffix]


def _info(path: str) -> FileInfo:
    stat = Path(path).stat()
    if stat.st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    return FileInfo(path, stat.st_size, stat.st_mtime_ns)


def no_rows(files: list[FileInfo]) -> ValueError:
    more = f", nor in {len(files) - 1} more files" if files[1:] else ""
    return ValueError(f"{files[0].path}: no rows{more}")
