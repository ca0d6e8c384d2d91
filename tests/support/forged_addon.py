"""Loaded by mitmdump in tests with big objects: the addon, trusting the test keys."""

from __future__ import annotations

import os
from pathlib import Path

from clamproxy.proxy.addon import ClamProxy
from tests.support.forge import ForgeKeys

addons = [ClamProxy(keys=ForgeKeys.load(Path(os.environ["CLAMPROXY_TEST_KEYS"])).trusted)]
