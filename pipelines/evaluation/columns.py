"""Columns of an evaluation, numpy or Arrow arrays of any type, as tensors and codes."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Column = Any  # [N] numpy array, or what becomes one, or an Arrow array; pyarrow has no types to name


def numbers(name: str, column: ArrayLike) -> Tensor:
    """A numeric column as a tensor: floats keep their precision, everything else becomes int64."""
    array = np.asarray(column)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: numbers expected, got dtype {array.dtype}")
    # torch.tensor copies: arrays that come from Arrow or a memory map are read-only, which torch does not know.
    return torch.tensor(array if array.dtype.kind == "f" else array.astype(np.int64))


def optional_numbers(weights: ArrayLike | None) -> Tensor | None:
    return None if weights is None else numbers("weights", weights)


def group_codes(values: Column | None) -> Tensor | None:
    """[N] int64 that are equal where the groups are; integers stand for themselves.

    A missing group (null, NaN) is a group of that row alone: it has one class, and so lowers gAUC's coverage and nothing else.
    """
    if values is None:
        return None
    if _is_arrow(values):
        plain = pa.types.is_integer(values.type) and not values.null_count
    else:
        plain = np.asarray(values).dtype.kind in "iu"
    if plain:
        return torch.tensor(np.asarray(values).astype(np.int64))
    code_N, names = encode("groups", values)
    if len(names) and names[-1] is None:
        missing = code_N == len(names) - 1
        code_N[missing] = len(names) + np.arange(missing.sum())
    return torch.from_numpy(code_N)


def encode(name: str, values: Column) -> tuple[NDArray[np.int64], list]:
    """[N] codes and the value of each code; nulls and NaN come last, as None."""
    try:
        # numpy would turn Arrow's integers with nulls into floats, which merge large ids; NaN is a null only on the way from numpy.
        if not _is_arrow(values) or pa.types.is_floating(values.type):
            values = pa.array(np.asarray(values), from_pandas=True)
        elif isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        encoded = values.dictionary_encode()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{name}: values of one type expected: {error}") from None
    names = encoded.dictionary.to_pylist()
    code_N = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False).astype(np.int64)
    return code_N, [*names, None] if encoded.null_count else names


def _is_arrow(values: Any) -> bool:
    return isinstance(values, pa.Array | pa.ChunkedArray)
