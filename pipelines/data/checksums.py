"""What tells whether a file, or a JSON value, is as it was written."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

_READ_BYTES = 1 << 20  # stays in the processor's cache
_XXH3 = "xxh3:"
HEADER_BYTES = 128
HEADER_LAST = "xxh3-header-last:"
"""For arrays that grow: their first `HEADER_BYTES`, which are written last, are hashed last."""


def checksum_of_file(path: Path, *, like: str = _XXH3) -> str:
    """XXH3-128 of a file's bytes, in hex behind `xxh3:`. It tells accidents, not malice, and takes a twentieth of BLAKE2b's time.

    Args:
        like: a checksum whose kind is wanted; without a prefix it is BLAKE2b-128, as in the caches of earlier releases.
    """
    prefix = next((prefix for prefix in (_XXH3, HEADER_LAST) if like.startswith(prefix)), "")
    digest = xxhash.xxh3_128() if prefix else hashlib.blake2b(digest_size=16)
    block = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        header = file.read(HEADER_BYTES) if prefix == HEADER_LAST else b""
        while size := file.readinto(block):
            digest.update(block[:size])
    digest.update(header)
    return f"{prefix}{digest.hexdigest()}"


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

    def is_intact(self, path: Path) -> bool:
        """Whether the file is there, every byte as it was."""
        try:
            self.check(path)
        except ValueError:
            return False
        return True

    def check(self, path: Path) -> None:
        """Raises ValueError if the file is missing or any byte of it differs."""
        self.check_size(path)
        found = checksum_of_file(path, like=self.checksum)
        if found != self.checksum:
            raise ValueError(
                f"{path}: altered after it was prepared (checksum {found}, expected {self.checksum}); prepare again with --force"
            )
