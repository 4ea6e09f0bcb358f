"""The data sets that relgan brings along; importing them makes them known by name."""

from relgan.data.sets import cat, celeba, digits, folder, published

__all__ = ["cat", "celeba", "digits", "folder", "published"]
