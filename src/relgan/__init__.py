"""relgan: relativistic and standard GANs, composed by Hydra, trained, scored and compared."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("relgan")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
