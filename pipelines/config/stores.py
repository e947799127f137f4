"""Mistakes in `data.stores`, and in the features that read stores."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .data import store_of
from .errors import nearest

if TYPE_CHECKING:
    from .run import RunConfig


def store_problems(config: "RunConfig", at: Callable[[str, str], str]) -> Iterator[str]:
    """Names that do not meet, and what a store cannot hold."""
    stores, tables = config.data.stores, config.table_configs()
    read = {store_of(feature) for feature in config.features.values()}
    for name in stores:
        if "." in name or "/" in name or not name:
            yield f"data.stores: a store's name may not contain '.' or '/'; given {name!r}"
        if f"row in {name}" in config.features:
            yield f"{at('features', f'row in {name}')}: the cache keeps row numbers of the store under this name; take another"
        if name not in read:
            yield f"data.stores.{name}: no feature reads it; give one `store: {name}`, or leave the store out"
    for name, feature in config.features.items():
        store = store_of(feature)
        if not store:
            continue
        here = at("features", name)
        if store not in stores:
            there = f"; there are: {', '.join(stores)}{nearest(store, stores)}" if stores else "; data.stores names none"
            yield f"{here}.store: given {store!r}; no such store{there}"
            continue
        if feature.kind == "categorical" and feature.max_len > 1:
            yield f"{here}.max_len: given {feature.max_len}; a store holds one id per column: keep lists in the data's own rows"
        if feature.kind != "categorical" or stores[store].unknown == "error":
            continue
        if tables[config.table_of(name)].ids.by == "identity":
            refuse = f"data.stores.{store}.unknown: error"
            yield f"{here}.ids: an identity table has no row for ids that store {store!r} lacks; set {refuse}, or another ids.by"
