"""What mitmdump loads in tests with big objects: the addon with the test keys for its trust."""

from __future__ import annotations

import os
from pathlib import Path

from clamproxy.proxy.addon import ClamProxy
from tests.support.forge import ForgeKeys

addons = [ClamProxy(keys=ForgeKeys.load(Path(os.environ["CLAMPROXY_TEST_KEYS"])).trusted)]
