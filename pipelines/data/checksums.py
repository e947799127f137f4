"""What tells whether a file, or a JSON value, is as it was written."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_READ_BYTES = 1 << 24


def checksum_of_file(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, in hex."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def checksum_of_json(value: Any) -> str:
    """BLAKE2b-128 of a JSON value, whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of a file."""

    bytes: int
    checksum: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        return cls(path.stat().st_size, checksum_of_file(path))

    def check_size(self, path: Path) -> None:
        """Raises ValueError if the file is missing or has another size."""
        if not path.is_file():
            raise ValueError(f"{path}: missing from the cache; prepare again with --force")
        size = path.stat().st_size
        if size != self.bytes:
            raise ValueError(
                f"{path}: altered after it was prepared ({size} bytes, expected {self.bytes}); prepare again with --force"
            )

    def check(self, path: Path) -> None:
        """Raises ValueError if the file is missing or any byte of it differs."""
        self.check_size(path)
        found = checksum_of_file(path)
        if found != self.checksum:
            raise ValueError(
                f"{path}: altered after it was prepared (checksum {found}, expected {self.checksum}); prepare again with --force"
            )
