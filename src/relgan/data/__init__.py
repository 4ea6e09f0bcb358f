"""Data sets: prepared once into a packed store, then sampled from a memory map."""

from relgan.data.pack import prepare
from relgan.data.store import PackedStore

__all__ = ["PackedStore", "prepare"]
