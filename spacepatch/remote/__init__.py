"""Sources that are not files here: object stores and web servers, read in ranges."""

from spacepatch.remote.listing import reachable
from spacepatch.remote.reading import configure, open_source, size_of, store_variables
from spacepatch.remote.urls import is_url, shown

__all__ = ["configure", "is_url", "open_source", "reachable", "shown", "size_of", "store_variables"]
