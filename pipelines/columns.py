"""Columns of an evaluation, numpy arrays of any type, as tensors and codes."""

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def numbers(name: str, column: ArrayLike) -> Tensor:
    """A numeric column as a tensor: floats keep their precision, everything else becomes int64."""
    array = np.asarray(column)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: numbers expected, got dtype {array.dtype}")
    # torch.tensor copies: arrays that come from Arrow or a memory map are read-only, which torch does not know.
    return torch.tensor(array if array.dtype.kind == "f" else array.astype(np.int64))


def optional_numbers(weights: ArrayLike | None) -> Tensor | None:
    return None if weights is None else numbers("weights", weights)


def group_codes(values: ArrayLike | None) -> Tensor | None:
    """[N] int64 that are equal where the groups are; integers stand for themselves.

    A missing group (null, NaN) is a group of that row alone: it has one class, and so lowers gAUC's coverage and nothing else.
    """
    if values is None:
        return None
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        return torch.tensor(array.astype(np.int64))
    code_N, names = encode("groups", array)
    if len(names) and names[-1] is None:
        missing = code_N == len(names) - 1
        code_N[missing] = len(names) + np.arange(missing.sum())
    return torch.from_numpy(code_N)


def encode(name: str, values: ArrayLike) -> tuple[NDArray[np.int64], list]:
    """[N] codes and the value of each code; nulls and NaN come last, as None."""
    try:
        encoded = pa.array(np.asarray(values), from_pandas=True).dictionary_encode()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{name}: values of one type expected: {error}") from None
    names = encoded.dictionary.to_pylist()
    code_N = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False).astype(np.int64)
    return code_N, [*names, None] if encoded.null_count else names
