"""``python -m clamproxy.cli``."""

from clamproxy.cli import entry

entry()
