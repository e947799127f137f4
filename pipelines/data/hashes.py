"""Hashes of values, the same on every machine and in every release: a value's row in a hashed table, its split, its fold.

Runs in exported bundles too: numpy and pyarrow only.
"""

import hashlib
import struct

import numpy as np
import pyarrow as pa

from .values import whole

_FRACTION_SALT = np.uint64(0xD6E8FEB86659FD93)
_MOST_64 = 2**64 - 1


def hash_integers(values: np.ndarray, seed: int) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood, OOPSLA 2014, figure 16) of `values` [N] int64, started at `seed`: [N] uint64."""
    start = _mix(np.array([seed], np.uint64))
    return _mix(values.view(np.uint64) ^ start)


def _mix(z: np.ndarray) -> np.ndarray:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_numbers(values: np.ndarray, seed: int) -> np.ndarray:
    """Hash of numbers [N] to [N] uint64. A float that is an integer hashes as that integer."""
    integers, is_whole = whole(values)
    out = hash_integers(integers, seed)
    if not is_whole.all():
        out = np.where(is_whole, out, hash_integers((values.view(np.uint64) ^ _FRACTION_SALT).view(np.int64), seed))
    return out


def hash_number(value: int | float, seed: int) -> int:
    """`hash_numbers` of one value, in Python integers: a tenth of the time that arrays of length one take."""
    if type(value) is float:
        is_whole = value.is_integer() and abs(value) < 2**63
        value = int(value) if is_whole else struct.unpack("<q", struct.pack("<d", value))[0] ^ int(_FRACTION_SALT)
    return _mix_one((int(value) & _MOST_64) ^ mixed_seed(seed))


def mixed_seed(seed: int) -> int:
    """What `hash_integers` XORs values with before it mixes them."""
    return _mix_one(seed & _MOST_64)


def _mix_one(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MOST_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MOST_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MOST_64
    return z ^ (z >> 31)


def hash_strings(values: pa.Array, seed: int) -> np.ndarray:
    """BLAKE2b-64 of each distinct text, keyed with the seed: [N] uint64. Nulls get an arbitrary value."""
    coded = values.dictionary_encode()
    hashes = np.fromiter((hash_bytes(v.encode(), seed) for v in coded.dictionary.to_pylist()), np.uint64, len(coded.dictionary))
    return np.append(hashes, np.uint64(0))[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]


def hash_bytes(text: bytes, seed: int, person: bytes = b"") -> int:
    """BLAKE2b-64, keyed with the seed.

    Args:
        person: keeps hashes for another use apart; up to 16 bytes.
    """
    digest = hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "little"), person=person).digest()
    return int.from_bytes(digest, "little")
