"""clamproxy: a caching forward HTTP proxy for ClamAV signature databases."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("clamproxy")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"
