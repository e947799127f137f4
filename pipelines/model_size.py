"""What a model is made of: parameters and bytes by group, multiply-adds and looked-up bytes of one row.

Nothing is trained, and no table takes memory: tables are counted from their sizes, the net runs once on rows of zeros.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchrec_models.embedding import stored_width
from torchrec_models.model import net_class
from torchrec_models.net import Inputs, InputSpec
from torchrec_models.ranking.sequential import SequentialNet
from torchrec_models.schema import Schema
from torchrec_models.towers import TwoTower

from .config import RunConfig
from .data.shards import Cache
from .distributed import table_width_multiple

FLOAT_BYTES = 4
ROWS = 2  # of the forward pass that is counted: a size of one would hide what is multiplied by it


@dataclass(frozen=True)
class Part:
    """One line: a table, or a child module of the net."""

    group: str
    name: str
    num_parameters: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """Attributes:
    parts: in the order of the schema and of the net.
    flops_per_row: of matrix products and attention in one forward pass, a multiply-add counted as two; elementwise
        operations, norms and lookups are no part of it.
    lookup_bytes_per_row: of table rows read for one row whose lists are full.
    """

    model: str
    parts: tuple[Part, ...]
    flops_per_row: int
    lookup_bytes_per_row: int

    @property
    def num_parameters(self) -> int:
        return sum(part.num_parameters for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    def groups(self) -> dict[str, tuple[int, int]]:
        """Group -> (parameters, bytes)."""
        sums: dict[str, tuple[int, int]] = {}
        for part in self.parts:
            parameters, size = sums.get(part.group, (0, 0))
            sums[part.group] = parameters + part.num_parameters, size + part.bytes
        return sums

    def as_dict(self) -> dict[str, Any]:
        groups = {name: {"num_parameters": count, "bytes": size} for name, (count, size) in self.groups().items()}
        return {**asdict(self), "groups": groups, "num_parameters": self.num_parameters, "bytes": self.bytes}

    def render(self) -> str:
        width = max(len(part.name) for part in self.parts) + 2
        lines = [f"{self.model:{width + 2}}{'parameters':>16}{'MB':>12}"]
        for group, (count, size) in self.groups().items():
            lines.append(f"{group:{width + 2}}{count:16,}{size / 1e6:12,.2f}")
            for part in self.parts:
                if part.group == group:
                    lines.append(f"  {part.name:{width}}{part.num_parameters:16,}{part.bytes / 1e6:12,.2f}")
        lines.append(f"{'total':{width + 2}}{self.num_parameters:16,}{self.bytes / 1e6:12,.2f}")
        lines.append(f"one row: {self.flops_per_row:,} FLOPs in matrix products, {self.lookup_bytes_per_row:,} bytes of table rows")
        return "\n".join(lines)


def inspect_config(config: RunConfig) -> Inspection:
    """The model of a config, with prepared data or, where every table's size is in the config, without.

    Raises:
        ValueError: naming the tables whose size only `trm prepare` finds out.
    """
    schema = config.model_schema(_table_rows(config))
    options = {k: v for k, v in config.model.items() if k != "name"}
    return inspect_model(schema, config.model["name"], options, width_multiple=table_width_multiple(config))


def inspect_model(schema: Schema, name: str, options: Mapping[str, Any], *, width_multiple: int = 1) -> Inspection:
    """
    Args:
        schema, name, options: as for `model.build`.
        width_multiple: of the columns that tables are stored with; they count in bytes, not in parameters.
    """
    cls = net_class(name)
    config: Any = cls.Config(**options)
    parts = [
        Part("embedding tables", t.name, t.num_rows * t.dim, t.num_rows * stored_width(t.dim, width_multiple) * FLOAT_BYTES)
        for t in schema.tables
    ]
    first_order = not issubclass(cls, TwoTower) and cls.wants_first_order(config)
    if first_order:
        one = stored_width(1, width_multiple) * FLOAT_BYTES
        parts += [Part("first-order tables", t.name, t.num_rows, t.num_rows * one) for t in schema.tables]
    if issubclass(cls, TwoTower):
        specs = [InputSpec.from_schema(schema, side="query"), InputSpec.from_schema(schema, side="candidate")]
        net: nn.Module = cls(specs[0], specs[1], config)
    else:
        specs = [InputSpec.from_schema(schema)]
        net = cls(specs[0], config)
    net.eval()
    parts += _net_parts(net)
    per_id = {t.name: stored_width(t.dim, width_multiple) + first_order * stored_width(1, width_multiple) for t in schema.tables}
    lookup_bytes = sum(f.max_len * per_id[f.table] * FLOAT_BYTES for f in schema.features if f.table)
    flops = count_flops(net, [_zeros(spec, first_order=first_order) for spec in specs]) // ROWS
    return Inspection(name, tuple(parts), flops, lookup_bytes)


def count_flops(net: nn.Module, inputs: list[Inputs]) -> int:
    """FLOPs of one forward pass. Unfused attention is what the counter knows on a CPU, and what it computes is the same."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        net(*inputs)
    return counter.get_total_flops()


def _net_parts(net: nn.Module) -> list[Part]:
    """Child modules; of a sequence net the head's own children, since the head is its scoring net."""
    if not isinstance(net, SequentialNet):
        return _children("scoring net", net)
    encoders = [
        Part("sequence encoder", f"{history.name}.{part.name}", part.num_parameters, part.bytes)
        for history, encoder in zip(net.histories, net.encoders)
        for part in _children("sequence encoder", encoder)
    ]
    return [*encoders, *_children("scoring net", net.head), *_children("auxiliary nets", net.auxiliary)]


def _children(group: str, module: nn.Module) -> list[Part]:
    sizes = {name: _num_parameters(child.parameters()) for name, child in module.named_children()}
    own = {name: p.numel() for name, p in module.named_parameters(recurse=False)}
    return [Part(group, name, count, count * FLOAT_BYTES) for name, count in (own | sizes).items() if count]


def _num_parameters(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def _zeros(spec: InputSpec, *, first_order: bool) -> Inputs:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(ROWS, *shape)

    return Inputs(
        zeros(spec.num_dense),
        zeros(spec.fields_width),
        zeros(first_order * (len(spec.fields) + len(spec.sequences))),
        {s.name: (zeros(s.max_len, s.width), torch.ones(ROWS, s.max_len, dtype=torch.bool)) for s in spec.sequences},
    )


def _table_rows(config: RunConfig) -> dict[str, int]:
    """Rows of every table: from the config where it says them, else from the prepared data."""
    rows = {name: known for name, table in config.table_configs().items() if (known := _rows_of(table.ids))}
    unknown = [name for name in config.table_configs() if name not in rows]
    if not unknown:
        return rows
    folder = Path(config.data.cache)
    prepared = {t.name: t.num_rows for t in Cache.without_looking_at_files(folder).schema.tables} if folder.exists() else {}
    missing = [name for name in unknown if name not in prepared]
    if missing:
        raise ValueError(
            f"the size of {len(missing)} tables is not known before the data is prepared ({', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}), and {folder} does not hold them; run trm prepare first, or set data.cache"
        )
    return rows | {name: prepared[name] for name in unknown}


def _rows_of(ids: Any) -> int:
    """0 where only the data tells."""
    if ids.by == "hash" and ids.buckets:
        return 1 + ids.buckets
    if ids.by == "bucketize" and ids.boundaries:
        return len(ids.boundaries) + 2 + (ids.null == "token")
    return ids.num_rows if ids.by == "identity" else 0
