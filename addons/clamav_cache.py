"""What ``mitmdump -s addons/clamav_cache.py`` loads: the addon is in the package."""

from __future__ import annotations

from clamproxy.proxy.addon import ClamProxy

addons = [ClamProxy()]
