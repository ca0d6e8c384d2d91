"""Loaded by ``mitmdump -s addons/clamav_cache.py``: the addon itself is in the package."""

from __future__ import annotations

from clamproxy.proxy.addon import ClamProxy

addons = [ClamProxy()]
