"""Tensors of the Open Inference Protocol, as JSON or as binary data, to plain values by row and back.

Binary: numbers little-endian one after another; BYTES as a 32-bit little-endian length before each value.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .columns import ValueType
from .messages import HttpError, encode_json, parse_json

_DTYPES = {
    "BOOL": "?", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
# Raw numbers are 64-bit in the transforms: a time in seconds does not survive 32 bits.
FORMAT_TYPES: dict[ValueType, str] = {"text": "BYTES", "integer": "INT64", "number": "FP64"}
_PADDING = -(2**63)


@dataclass(frozen=True)
class Tensor:
    """One input: its name and a plain value (or list) per row."""

    name: str
    values: Sequence[Any]

    @property
    def num_rows(self) -> int:
        return len(self.values)


def read_tensor(spec: Any, binary: memoryview, forms: Mapping[str, str]) -> tuple[Tensor, memoryview]:
    """One entry of `inputs`; takes its bytes from `binary` where it says so.

    Args:
        forms: per raw column "one", "list" or "text".

    Returns:
        The tensor, and the rest of `binary`.

    Raises:
        HttpError: 400 or 422 that names the input.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise HttpError(400, 'inputs: each entry must be an object with "name", "shape", "datatype" and "data"')
    name, datatype = spec["name"], spec.get("datatype")
    if name not in forms:
        raise HttpError(422, f"unknown input {name[:100]!r}; the model reads: {', '.join(forms)}")
    if datatype != "BYTES" and datatype not in _DTYPES:
        raise HttpError(400, f"input {name!r}: datatype {str(datatype)[:40]!r} is none of BYTES, {', '.join(_DTYPES)}")
    shape = _shape(spec.get("shape"), name)
    parameters = spec.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(binary):
            raise HttpError(400, f"input {name!r}: binary_data_size {str(size)[:40]} does not fit the {len(binary)} bytes there")
        flat = _from_binary(binary[:size], datatype, name)
        binary = binary[size:]
    else:
        flat = _flat(spec.get("data"), name)
    num_rows, width = shape[0], shape[1] if len(shape) == 2 else 1
    if len(flat) != num_rows * width:
        raise HttpError(400, f"input {name!r}: shape {shape} asks for {num_rows * width} values, and there are {len(flat)}")
    if forms[name] != "list":
        if width != 1:
            raise HttpError(422, f"input {name!r}: one value per row is expected, shape [{num_rows}], not {shape}")
        return Tensor(name, flat), binary
    if len(shape) == 1:
        return Tensor(name, [_list(text, name) for text in flat]), binary
    rows = [flat[i : i + width] for i in range(0, len(flat), width)] if width else [[] for _ in range(num_rows)]
    return Tensor(name, [[v for v in row if not _is_padding(v)] for row in rows]), binary


def _shape(shape: Any, name: str) -> list[int]:
    if not isinstance(shape, list) or not 1 <= len(shape) <= 2 or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise HttpError(400, f"input {name!r}: shape must be [rows] or [rows, values], got {str(shape)[:60]}")
    return shape


def _flat(data: Any, name: str) -> list[Any]:
    """JSON data, flat or nested as its shape."""
    if not isinstance(data, list):
        raise HttpError(400, f'input {name!r}: "data" must be a list (or "binary_data_size" given in its parameters)')
    if data and all(isinstance(one, list) for one in data):
        return [value for one in data for value in one]
    return data


def _from_binary(data: memoryview, datatype: str, name: str) -> list[Any]:
    if datatype != "BYTES":
        dtype = np.dtype(_DTYPES[datatype])
        if len(data) % dtype.itemsize:
            raise HttpError(400, f"input {name!r}: {len(data)} bytes are not a whole number of {datatype} values")
        return np.frombuffer(data, dtype).tolist()
    out = []
    at = 0
    while at < len(data):
        stop = at + 4 + struct.unpack_from("<I", data, at)[0] if at + 4 <= len(data) else len(data) + 1
        if stop > len(data):
            raise HttpError(400, f"input {name!r}: a BYTES value reaches beyond the tensor's {len(data)} bytes")
        try:
            out.append(str(data[at + 4 : stop], "utf-8"))
        except UnicodeDecodeError:
            raise HttpError(400, f"input {name!r}: value {len(out) + 1} is not UTF-8 text") from None
        at = stop
    return out


def _list(text: Any, name: str) -> Any:
    """A list written as JSON text; empty text is a missing list."""
    if text is None or text == "":
        return None
    if not isinstance(text, str):
        raise HttpError(422, f"input {name!r}: lists are expected: JSON texts of shape [rows], or values of shape [rows, values]")
    found = parse_json(text.encode("utf-8", "replace"))
    if not isinstance(found, list):
        raise HttpError(422, f"input {name!r}: {text[:60]!r} is not a JSON list")
    return found


def _is_padding(value: Any) -> bool:
    return value is None or value == "" or value == _PADDING or value != value


def write_outputs(
    answer: dict[str, Any], columns: Mapping[str, Sequence[Any]], wanted: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part if binary tensors follow it.

    Args:
        answer: what else the JSON part says.
        columns: per output N numbers, or N lists of numbers.
        wanted: the outputs to write, and whether as binary data.
    """
    outputs, tails = [], []
    for name, is_binary in wanted.items():
        values = np.asarray(columns[name], np.float32)
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if is_binary:
            tails.append(values.astype("<f4").tobytes())
            output["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            output["data"] = [float(v) for v in values.ravel()]
        outputs.append(output)
    head = encode_json({**answer, "outputs": outputs})
    return (head + b"".join(tails), len(head)) if tails else (head, None)
