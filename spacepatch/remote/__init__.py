"""Object stores and web servers: sources that are read in ranges, shards that are written whole."""

from spacepatch.remote.listing import reachable
from spacepatch.remote.reading import (
    check_credentials,
    configure,
    open_source,
    size_of,
    store_variables,
)
from spacepatch.remote.urls import is_url, shown

__all__ = [
    "check_credentials",
    "configure",
    "is_url",
    "open_source",
    "reachable",
    "shown",
    "size_of",
    "store_variables",
]
