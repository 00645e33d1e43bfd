"""Turns videos into packed spacetime-token shards for training video transformers."""

__version__ = "0.1.0"
