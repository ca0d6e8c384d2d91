"""The mitmproxy addon: starts, reloads and stops the gateway. Its parts have the hooks for clients."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mitmproxy import ctx, dns
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.script import Script

from clamproxy.access.limits import provide_descriptors, require_descriptors
from clamproxy.authority import Authority, AuthorityError, CurrentAuthority
from clamproxy.config.conflicts import find_conflict
from clamproxy.config.differences import changes
from clamproxy.config.labels import require_labels
from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.config.settings import Settings
from clamproxy.control import Control, Marks, ReloadOutcome, marks
from clamproxy.formats.signatures import CLAMAV_KEYS, TrustedKeys
from clamproxy.front import Front
from clamproxy.proxy import dispatch, dns_queries, framing, stream, takeover
from clamproxy.proxy.client_tls import Certificates
from clamproxy.proxy.clients import Clients
from clamproxy.proxy.door import Threshold
from clamproxy.proxy.exhaustion import Exhaustion
from clamproxy.proxy.lane import Lane
from clamproxy.proxy.listening import Listening
from clamproxy.proxy.log_format import add_filter, use_format
from clamproxy.proxy.membership import Membership
from clamproxy.proxy.options import OwnOptions, find_having_a_say, find_unseeing, require_no_stray
from clamproxy.proxy.patience import OpenConnections
from clamproxy.proxy.requests import Requests
from clamproxy.proxy.takeover import Takeover
from clamproxy.proxy.translation import Callers
from clamproxy.readable import shown_error
from clamproxy.releases.holds import HoldsError
from clamproxy.reloads import Reloads
from clamproxy.service import Service
from clamproxy.setup.confdir import sync_authority
from clamproxy.setup.place import explained, refusal
from clamproxy.sharing.site import require_usable
from clamproxy.supervision import Supervisor
from clamproxy.surroundings import Surroundings
from clamproxy.workers.worker import WorkerSupervisor, current

logger = logging.getLogger(__name__)

STOP_GRACE = 8.0
"""How many seconds after SIGTERM responses under way may take to end; freshclam can't resume them."""
CLOSING_LIMIT = 2.0
"""Seconds for connections to close after that; those that asyncio cancels at its end leave tracebacks."""
LONGEST_DRAIN = 3600.0
"""For how many seconds after a reload transfers that began before it may go on."""


class ClamProxy:
    """Serves ClamAV hosts from the cache, forwards what is passed through, and refuses everything else.

    Args:
        keys: public keys that objects must be signed with. Tests and benchmarks use their own; there is
            no setting for it.
    """

    def __init__(self, keys: TrustedKeys = CLAMAV_KEYS) -> None:
        self._keys = keys
        self._front = Front()
        self._names: dns_queries.Names | None = None
        self._options = OwnOptions()
        self._having_a_say: str | None = None
        """See `find_having_a_say`. Each look at mitmproxy's options makes copies of them."""
        self._membership = Membership(worker) if (worker := current()) is not None else None
        self._supervisor = Supervisor(os.environ) if worker is None else WorkerSupervisor(worker)
        self._config: Path | None = None
        self._own_authority: CurrentAuthority | None = None
        self._reloads = Reloads(self._reload)
        self._control = Control(self._marks, self._reloads.ask)
        self._is_early_hang_up = False
        self._retiring: set[asyncio.Task[None]] = set()
        self._surroundings = Surroundings(certificates=self._certificates, port=self._own_port)
        if self._membership is not None:
            self._surroundings = self._membership.surround(self._surroundings)
            self._membership.limit(self._front.limits)
        self._has_terminal = os.isatty(0)
        callers, certificates = Callers(), Certificates(self._authority, self._client_ca)
        self._threshold = Threshold(self._admits, self._front.limits, self._front.balancers)
        self._connections = OpenConnections(self._front)
        self._lane = Lane(self._front, certificates.context_for, self._connections)
        self._takeover: Takeover | None = None
        self.addons = [
            Clients(self._front, callers, lambda: self._names),
            certificates,
            Requests(self._front, callers),
        ]
        """mitmproxy calls the hooks of these as well."""

    # Life of the process

    def load(self, loader: Loader) -> None:
        """Declare the option, and set mitmproxy's own options for a gateway."""
        loader.add_option("clamproxy_config", str, "", "Configuration file; default: ./proxy.yaml")
        use_format("text")  # until the configuration is known
        add_filter(Exhaustion())
        # A core dump would hold passwords and keys. Whoever wants one can raise the limit, with prlimit.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if self._membership is not None:
            self._membership.hush()
        self._options.set_defaults(ctx.options)
        framing.install()
        if not self._has_terminal:
            # The ports open before the rest is set up. A SIGHUP that early must not end the process.
            signal.signal(signal.SIGHUP, self._note_early_hang_up)

    def configure(self, updated: set[str]) -> None:
        """Read the configuration and open the cache. An error stops mitmproxy's start."""
        self._having_a_say = find_having_a_say(ctx.options)
        if self._front.service is not None or "clamproxy_config" not in updated:
            return
        try:
            stream.check_internals()
            takeover.check_internals()
            dispatch.install(ctx.master.addons)
            require_no_stray(ctx.options)
            self._config = find_config(ctx.options.clamproxy_config or None)
            settings = load_settings(self._config, os.environ)
            require_labels(settings)
            use_format(settings.log.format)
            self._check_place(settings)
            require_descriptors(settings.access.max_connections)
            self._options.place_authority(ctx.options, settings)
            authority = CurrentAuthority(settings.tls.directory)
            service = Service(settings, self._keys, self._surroundings)
        except (ConfigurationError, AuthorityError, HoldsError, OSError, RuntimeError) as error:
            _stop_start(error)
            self._listening.hold_back()
        else:
            self._install(service, authority)
            self._takeover = Takeover(_proxyserver(), self._threshold, self._connections, self._current_lane)
            self._takeover.take()
            logger.info("Configuration: %s; cache: %s", self._config or "defaults", settings.cache.directory)

    async def running(self) -> None:
        """Begin to serve, now that mitmproxy is set up."""
        _stay_loaded()
        if self._front.service is None or self._takeover is None or not await self._listening.begin():
            return
        self._takeover.take()
        self._connections.start()
        if self._having_a_say is not None:
            logger.info("With mitmproxy's option %s, all requests go through mitmproxy.", self._having_a_say)
        elif self._front.service.settings.serving.express and (unseeing := find_unseeing(ctx.master)):
            logger.warning(
                "%s will not see most requests; with serving.express: false, they all go through mitmproxy.",
                unseeing,
            )
        self._front.service.start()
        home = Path(ctx.options.confdir)
        self._front.service.writer.submit(lambda: sync_authority(home.expanduser()))
        self._note_place(self._front.service)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
        if self._is_early_hang_up:
            self._hang_up()
        self._declare()
        if self._membership is not None:
            self._membership.begin(self._reloads.ask, ctx.master.shutdown, self._figures)
        else:
            await self._let_commands_in()
        self._supervisor.start()
        self._supervisor.ready("Serving")

    async def _let_commands_in(self) -> None:
        try:
            await self._control.start()
        except OSError as error:
            logger.warning("`clamproxy reload` won't find this process: %s.", error.strerror or error)

    async def done(self) -> None:
        """Let responses end, stop everything, and keep what has arrived."""
        service = self._front.service
        if service is None:
            return
        self._supervisor.stopping()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: None)
        self._control.stop()
        if self._membership is not None:
            self._membership.stop()
        self._reloads.stop()
        self._threshold.close()
        self._lane.is_stopping = True
        self._connections.end_silent_since(time.monotonic())
        await self._front.answered(STOP_GRACE)
        await asyncio.gather(self._connections.end_all(CLOSING_LIMIT), stream.all_gone(CLOSING_LIMIT))
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        self._front.remove()
        service.stop()
        self._supervisor.stop()

    # Reload

    def _note_early_hang_up(self, *_: object) -> None:
        self._is_early_hang_up = True

    def _hang_up(self) -> None:
        if self._has_terminal and not os.isatty(0):
            ctx.master.shutdown()  # type: ignore[no-untyped-call]  # the terminal was closed
            return
        self._reloads.begin()

    async def _reload(self) -> ReloadOutcome:
        """Read the configuration again: either all of it takes effect, or nothing."""
        service = self._front.service
        if service is None:
            return ReloadOutcome(error="the proxy is stopping")
        self._supervisor.reloading()
        try:
            return await self._read_anew(service)
        except (ConfigurationError, AuthorityError, HoldsError, OSError) as error:
            logger.error("The configuration stays as it was: %s", error)  # noqa: TRY400
            return ReloadOutcome(error=str(error))
        except Exception as error:
            logger.exception("The configuration stays as it was.")
            return ReloadOutcome(error=f"{type(error).__name__}; see the log")
        finally:
            self._declare()  # ports that were only tried are closed
            self._supervisor.ready("Serving")

    async def _read_anew(self, old: Service) -> ReloadOutcome:
        settings = load_settings(self._config, os.environ)
        require_labels(settings)
        if settings == old.settings:
            logger.info("The configuration has not changed.")
            return ReloadOutcome()
        self._check_place(settings)
        require_descriptors(settings.access.max_connections)
        if settings.fleet_store is not None and settings.fleet_store != old.settings.fleet_store:
            await require_usable(settings.fleet_store)
        outcome = ReloadOutcome(
            tuple(changes(old.settings, settings)), tuple(self._remarks(old.settings, settings))
        )
        await old.flush()  # the new service starts with what this one knows
        authority = CurrentAuthority(settings.tls.directory)
        new = Service(settings, self._keys, self._surroundings, old.holds)
        try:
            new.succeed(old)
        except OSError as error:
            new.stop()
            where = f"status.listen, {settings.status.listen}"
            raise ConfigurationError(f"{where}: {explained(error)}") from error
        self._replace(old, new, authority)
        shown = "; ".join(map(str, outcome.changes))
        logger.info("The configuration was reloaded: %s.", shown)
        for remark in outcome.remarks:
            logger.warning("%s.", remark)
        return outcome

    def _remarks(self, old: Settings, new: Settings) -> Iterator[str]:
        """What has no effect for now, although it has changed."""
        if new.listen != old.listen and self._listening.is_given:
            yield "The section listen has changed, but the command line still overrides it"
        home = Path(ctx.options.confdir).parent
        if home in _homes(old) and home not in _homes(new):
            yield f"mitmproxy's own certificate authority stays in {home} until the next start"

    def _marks(self) -> Marks:
        """What identifies this process for commands."""
        settings = self._front.settings
        return marks(self._config, settings.cache.directory) if settings is not None else {}

    def _figures(self) -> Mapping[str, Any]:
        """What only this process knows."""
        service = self._front.service
        return service.own_figures() if service is not None else {}

    def _authority(self) -> Authority | None:
        """The gateway's own authority, if `clamproxy ca init` has made one."""
        return self._own_authority() if self._own_authority is not None else None

    def _client_ca(self) -> Path | None:
        """Whose certificates clients must present for https."""
        settings = self._front.settings
        return settings.access.client_ca if settings is not None else None

    def _certificates(self) -> bytes | None:
        """The certificates that clients must trust for https, in PEM."""
        authority = self._authority()
        if authority is not None:
            return authority.bundle()
        try:
            return (Path(ctx.options.confdir).expanduser() / "mitmproxy-ca-cert.pem").read_bytes()
        except OSError:
            return None

    def _replace(self, old: Service, new: Service, authority: CurrentAuthority) -> None:
        use_format(new.settings.log.format)
        self._install(new, authority)
        old.retire()
        new.start()
        self._note_place(new)
        task = asyncio.create_task(self._drain(old), name="end the earlier service")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _drain(self, service: Service) -> None:
        """Let everything that began under an earlier configuration end."""
        try:
            await service.idle(LONGEST_DRAIN)
        finally:
            service.stop()

    def _install(self, service: Service, authority: CurrentAuthority) -> None:
        settings = service.settings
        self._front.install(service)
        self._names = dns_queries.of_settings(settings)
        self._own_authority = authority
        self._options.follow(ctx.options, settings)
        self._listening.follow(settings.listen)
        self._front.limits.room = _room_for_connections(settings)
        self._threshold.reopen()

    # Ports

    @property
    def _listening(self) -> Listening:
        refuses = refusal if self._membership is None else self._membership.refusal
        return Listening(ctx.options, self._options.given, _proxyserver(), refuses)

    def _admits(self, address: str) -> bool:
        settings = self._front.settings
        return settings is not None and settings.serving.admits(address)

    def _current_lane(self) -> Lane | None:
        """Where new connections start; None for mitmproxy."""
        settings = self._front.settings
        is_express = settings is not None and settings.serving.express
        return self._lane if is_express and self._having_a_say is None else None

    def _check_place(self, settings: Settings) -> None:
        """Raise unless the proxy can and may listen where it should."""
        conflict = find_conflict(settings, self._listening.proxies(settings.listen))
        if conflict is not None:
            raise ConfigurationError(f"{self._config or 'defaults'}: {conflict}")
        self._listening.check(settings.listen)

    def _note_place(self, service: Service) -> None:
        """Note the ports for commands, which know the configuration but not the command line."""
        listening = self._listening
        service.note_proxies(listening.served_at() if listening.is_given else None)

    def _declare(self) -> None:
        """Tell the parent, if there is one, what this process needs and how commands find it."""
        settings = self._front.settings
        if self._membership is not None and settings is not None:
            self._membership.declare(self._marks(), self._listening.ports(settings.listen), settings)

    def _own_port(self) -> int | None:
        """The port where clients reach the proxy; the first one if it has several."""
        return next((endpoint.port for endpoint in self._listening.served_at()), None)

    # Names

    async def dns_request(self, flow: dns.DNSFlow) -> None:
        """Answer a query, or leave it to mitmproxy to forward."""
        service = self._front.service
        await dns_queries.respond(flow, self._names, service.announcer if service else None)


def _homes(settings: Settings) -> tuple[Path, Path]:
    """Where mitmproxy's own authority is if it has no home directory; see `find_confdir`."""
    return settings.tls.directory, settings.cache.directory


def _proxyserver() -> Proxyserver:
    proxy: Proxyserver = ctx.master.addons.get("proxyserver")  # type: ignore[no-untyped-call]
    return proxy


def _room_for_connections(settings: Settings) -> int:
    wanted = settings.access.max_connections
    room = provide_descriptors(wanted)
    if room < wanted:
        logger.warning(
            "The limit of open files leaves room for %d connections%s, and further ones wait; "
            "access.max_connections is %d.",
            room,
            " to each worker" if current() is not None else "",
            wanted,
        )
    return room


def _stop_start(error: Exception) -> None:
    """Log the error, upon which mitmproxy stops its start."""
    logger.error("%s", f"cache directory: {shown_error(error)}" if isinstance(error, OSError) else error)


def _stay_loaded() -> None:
    """Keep mitmproxy from checking each second whether the script that loaded this has changed.

    An upgrade replaces the script. But mitmproxy can't unload an addon that takes time to end: it logs a
    traceback.
    """
    for task in asyncio.all_tasks():
        if getattr(task.get_coro(), "cr_code", None) is Script.watcher.__code__:
            task.cancel()
