"""Loaded by mitmdump: the gateway as it always is, and the world around it."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
from pathlib import Path

from mitmproxy import ctx

from clamproxy.proxy.addon import ClamProxy
from tests.harness.soak.plan import Plan
from tests.harness.soak.soak import Soak
from tests.harness.soak.world import World
from tests.support.disk import Disk
from tests.support.forge import ForgeKeys
from tests.support.simulated_time import timelines

FAILED = 70


class Surround:
    """Starts the world once the gateway serves."""

    def running(self) -> None:
        self._task = asyncio.create_task(self._run(), name="soak")

    async def _run(self) -> None:
        plan, world, disk = _load()
        (timeline,) = timelines
        try:
            await Soak(plan, world, timeline, disk, ctx.master.shutdown).run()
        except Exception:
            logging.getLogger(__name__).exception("The soak failed.")
            os._exit(FAILED)


def _load() -> tuple[Plan, World, Disk | None]:
    plan: Plan = pickle.loads(Path(os.environ["SOAK_PLAN"]).read_bytes())
    world = World.load(plan) if plan.state.exists() else World.begin(plan)
    (plan.gateway / "filler").unlink(missing_ok=True)  # of a disk that was full when the last process died
    return plan, world, Disk(plan.gateway) if plan.gateway.is_mount() else None


addons = [ClamProxy(keys=ForgeKeys.load(Path(os.environ["CLAMPROXY_TEST_KEYS"])).trusted), Surround()]
