"""What a config says about rows that come from a database: `data.train: {uri: ..., query: ...}`."""

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from .masking import MASK, masked

if TYPE_CHECKING:
    from .data import DataConfig

SCHEMES = ("postgresql", "postgres", "sqlite", "duckdb")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class QueryConfig(BaseModel):
    """The rows of one SQL query. The result is read once and kept beside the cache, see `pipelines/data/snapshots.py`.

    `${NAME}` in the URI is the environment variable NAME (the only place where a config reads the environment: passwords do not
    belong in files). Passwords are written to no manifest, checkpoint, log or error text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str = Field(
        repr=False,
        description="postgresql://user:${NAME}@host/db, sqlite:///file, duckdb:///file, duckdb:// (files, through DuckDB)",
    )
    query: str = Field(description="one SELECT")
    version: str = Field("", description="any text; another one reads the query again")
    driver: str = Field("", description="Python module of another ADBC driver, such as adbc_driver_flightsql")

    @field_serializer("uri")
    def _without_password(self, uri: str) -> str:
        return masked(uri)

    @property
    def place(self) -> str:
        """The URI as it may be shown."""
        return masked(self.uri)

    @property
    def scheme(self) -> str:
        return self.uri.partition("://")[0] if "://" in self.uri else ""

    def resolved_uri(self) -> str:
        """The URI with its password, for the driver and nobody else. A URI that is one variable as a whole is taken as it is;
        in any other place the variable's value is percent-encoded.

        Raises:
            ValueError: for a variable that is not set, and for a URI whose password was masked when it was stored.
        """
        shown = masked(self.uri)
        if f":{MASK}@" in self.uri or f"={MASK}" in self.uri:
            raise ValueError(f"the password of {shown} was masked when this config was stored; use the YAML file it came from")
        for name in _VARIABLE.findall(self.uri):
            if not os.environ.get(name):
                raise ValueError(f"the URI {shown} needs the environment variable {name}, which is not set")
        whole = _VARIABLE.fullmatch(self.uri)
        uri = os.environ[whole[1]] if whole else _VARIABLE.sub(lambda match: quote(os.environ[match[1]], safe=""), self.uri)
        host, _, path = uri.partition("://")[2].partition("/")
        if uri.startswith("postgres") and "@" in path.partition("?")[0] and "@" not in host:
            raise ValueError(f"{shown}: a / in user or password must be written %2F, or come from ${{NAME}}")
        return uri


def query_problems(data: "DataConfig") -> Iterator[str]:
    """What is wrong with the queries of a config, and which options have no effect on them."""
    given = {split: value for split in ("train", "valid", "test") if (value := getattr(data, split))}
    queries = {split: value for split, value in given.items() if isinstance(value, QueryConfig)}
    for split, query in queries.items():
        variable = _VARIABLE.fullmatch(query.uri)
        if not query.driver and not variable and query.scheme not in SCHEMES:
            allowed = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            yield f"data.{split}.uri: given {query.place!r}; must begin with one of {allowed}; other databases need `driver`"
        if not query.query.strip().rstrip(";").strip():
            yield f"data.{split}.query: is empty; write a SELECT"
    if queries and len(queries) == len(given):
        for name in ("format", "column_names", "extra_fields", "null_values"):
            if getattr(data, name) != type(data).model_fields[name].get_default():
                yield f"data.{name}: has no effect on queries; leave it out"
