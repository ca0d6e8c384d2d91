"""Loaded by mitmdump in tests that have patience: the addon, trusting the test keys if there are any."""

from __future__ import annotations

import os

from clamproxy.proxy.addon import ClamProxy
from tests.support.patience import be_patient

be_patient()
if "CLAMPROXY_TEST_KEYS" in os.environ:
    from tests.support.forged_addon import addons
else:
    addons = [ClamProxy()]

__all__ = ["addons"]
