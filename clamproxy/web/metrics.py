"""The status as Prometheus metrics: conventional names, and labels with few values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from clamproxy.fleet.machine import MachineState
from clamproxy.messages import Result
from clamproxy.site_files import State
from clamproxy.statistics import COUNTER_OF_RESULT

type Labels = tuple[str, ...]
type Samples = Iterable[tuple[Labels, float | None]]
type Values = Mapping[str, Any]

OPENMETRICS = "application/openmetrics-text"
COOLDOWN_KINDS = ("file", "client", "origin")
VERSIONS = ("advertised", "cached", "reached")


def exposition(values: Values, accept: str) -> tuple[bytes, str]:
    """All metrics as text.

    Args:
        values: the status, as in status.json.
        accept: the Accept field of the request.

    Returns:
        The text and its Content-Type: OpenMetrics if the client asks for it, else the older format.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(values))
    registry.register(ProcessesCollector(values["gateway"]["processes"]))
    if any(media_type.partition(";")[0].strip().lower() == OPENMETRICS for media_type in accept.split(",")):
        text: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class ProcessesCollector(Collector):
    """The usual metrics of a process, summed over all processes of the gateway.

    Args:
        pids: of the processes.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids

    def collect(self) -> Iterator[Metric]:
        """Sums, and the earliest start. What a process had that has died is no longer counted."""
        found: dict[str, Metric] = {}
        for pid in self._pids:
            collector = ProcessCollector(pid=lambda pid=pid: pid, registry=None)  # type: ignore[misc]
            for metric in collector.collect():
                before = found.get(metric.name)
                if before is None:
                    found[metric.name] = metric
                    continue
                combine = min if metric.name.endswith("start_time_seconds") else sum
                before.samples = [
                    one._replace(value=combine((one.value, other.value)))
                    for one, other in zip(before.samples, metric.samples, strict=True)
                ]
        yield from found.values()


class StatusCollector(Collector):
    """Turns a status into metrics.

    The counters are the ones kept in the cache: they continue after a restart, and count for all
    processes that share the cache.
    """

    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        """Every metric with its samples; an unknown value gives no sample."""
        for family in (
            _about,
            _traffic,
            _cache,
            _releases,
            _origin,
            _fleet,
            _peers,
            _fleet_store,
            _feeds,
            _files,
        ):
            yield from family(self._values)


def _about(values: Values) -> Iterator[Metric]:
    gateway = values["gateway"]
    yield _gauge("build_info", "The version of clamproxy.", ("version",), [((gateway["version"],), 1)])
    yield _gauge(
        "start_time_seconds", "When the gateway was started, in Unix time.", value=gateway["started_at"]
    )
    yield _gauge("ready", "Whether the gateway can serve clients; see /readyz.", value=values["ready"])
    yield _gauge(
        "offline",
        "Whether the gateway is offline by configuration (upstream.offline).",
        value=gateway["offline"],
    )


def _traffic(values: Values) -> Iterator[Metric]:
    stats = values["stats"]
    results = [((str(result),), stats[COUNTER_OF_RESULT[result]]) for result in _counted_results()]
    yield _counter("requests", "Requests from clients, by result.", ("result",), results)
    yield _counter("served_bytes", "Bytes of content sent to clients.", value=stats["bytes_served"])
    yield _counter("upstream_requests", "Requests sent to the origin.", value=stats["upstream_requests"])
    yield _counter(
        "upstream_bytes", "Bytes of content received from the origin.", value=stats["upstream_bytes"]
    )
    rates = values["rates"]
    if rates:
        yield _gauge(
            "upstream_rate_bytes_per_second",
            "Bytes per second of content from the origin and feeds, over the last 10 seconds.",
            value=rates["upstream"]["rate"],
        )
        yield _gauge(
            "rate_limit_bytes_per_second",
            "The limit in force now; without a sample if there is none.",
            ("setting",),
            [
                (("upstream.rate_limit",), rates["upstream"]["limit"]),
                (("serving.rate_limit_per_client",), rates["clients"]["limit"]),
            ],
        )
        yield _gauge(
            "clients_waiting", "Clients that have used up their rate now.", value=rates["clients"]["waiting"]
        )
    yield _gauge("transfers", "Transfers from the origin that are under way.", value=len(values["transfers"]))


def _counted_results() -> list[Result]:
    return [result for result in Result if result in COUNTER_OF_RESULT]


def _cache(values: Values) -> Iterator[Metric]:
    stats, databases = values["stats"], values["databases"]
    yield _gauge(
        "storage_trouble",
        "Whether the directory of the cache, or of the records, can't be written to; see /readyz.",
        ("directory",),
        [((name,), stats["storage"][name] is not None) for name in ("cache", "records")],
    )
    yield _gauge("cache_objects", "Objects in the cache.", value=stats["objects"])
    yield _gauge("cache_bytes", "Bytes of the objects in the cache.", value=stats["cache_bytes"])
    yield _gauge(
        "quarantined_objects",
        "Files that failed verification and are kept for inspection.",
        value=stats["quarantined"],
    )
    yield _gauge(
        "database_version",
        "A database's versions: advertised, the newest cached CVD, and reached from there with patches.",
        ("database", "state"),
        [((database["name"], state), database[state]) for database in databases for state in VERSIONS],
    )
    yield _gauge(
        "database_build_timestamp_seconds",
        "When the newest cached CVD of a database was built, in Unix time.",
        ("database",),
        [((database["name"],), database["built_at"]) for database in databases],
    )
    yield _gauge(
        "database_size_bytes",
        "Size of the newest cached CVD of a database.",
        ("database",),
        [((database["name"],), database["size"]) for database in databases],
    )


def _releases(values: Values) -> Iterator[Metric]:
    now, limits = values["gateway"]["now"], values["releases"]
    held = [limit for limit in limits if limit["since"] is not None]
    yield _gauge(
        "shown_version",
        "The highest version that machines are shown, of databases that are held or delayed.",
        ("database", "kind"),
        [((limit["database"], limit["cause"]), limit["version"]) for limit in limits],
    )
    yield _gauge(
        "held_version",
        "The version at which a database is held by `clamproxy hold`.",
        ("database",),
        [((limit["database"],), limit["version"]) for limit in held],
    )
    yield _gauge(
        "held_seconds",
        "For how many seconds a database has been held.",
        ("database",),
        [((limit["database"],), max(0.0, now - limit["since"])) for limit in held],
    )
    yield _gauge(
        "hold_forgotten",
        "Whether a database has been held for longer than releases.longest_hold.",
        ("database",),
        [((limit["database"],), limit["forgotten"]) for limit in held],
    )


def _origin(values: Values) -> Iterator[Metric]:
    now = values["gateway"]["now"]
    left: dict[str, list[float]] = {kind: [] for kind in COOLDOWN_KINDS}
    for cooldown in values["cooldowns"]:
        left[_kind_of(cooldown["what"])].append(max(0.0, cooldown["until"] - now))
    yield _gauge(
        "cooldowns",
        "Cool-downs in force: what the gateway isn't asking the origin for at the moment.",
        ("kind",),
        [((kind,), len(seconds)) for kind, seconds in left.items()],
    )
    yield _gauge(
        "cooldown_seconds",
        "Seconds until the last cool-down in force ends; 0 if there is none.",
        ("kind",),
        [((kind,), max(seconds, default=0.0)) for kind, seconds in left.items()],
    )


def _kind_of(what: str) -> str:
    # Clients choose the files and versions, so as labels they could grow without limit.
    if what.startswith("/"):
        return "file"
    return "client" if what.startswith("client ") else "origin"


def _fleet(values: Values) -> Iterator[Metric]:
    fleet = values["fleet"]
    if fleet["enabled"]:
        states = [((str(state),), fleet[state]) for state in MachineState]
        yield _gauge(
            "fleet_machines", "Machines, by whether they have the newest databases.", ("state",), states
        )
        yield _gauge(
            "fleet_overdue_machines",
            "Machines that have been behind for longer than fleet.behind_for.",
            value=fleet["overdue"],
        )
        yield _gauge(
            "fleet_end_of_life_machines",
            "Machines whose freshclam is past its end of life: the CDN refuses it, or will.",
            value=fleet["end_of_life"],
        )
        yield _gauge(
            "fleet_cloned_machines", "Machines whose UUID several machines have.", value=fleet["cloned"]
        )
        if groups := [group for group in fleet["groups"] if group["group"] is not None]:
            yield from _groups(groups)


def _groups(groups: Sequence[Values]) -> Iterator[Metric]:
    """The administrator chooses the groups, and `count_groups` limits their number."""
    yield _gauge(
        "fleet_group_machines",
        "Machines of a group, by whether they have the newest databases.",
        ("group", "state"),
        [((one["group"], str(state)), one[state]) for one in groups for state in MachineState],
    )
    yield _gauge(
        "fleet_group_overdue_machines",
        "Machines of a group that have been behind for longer than fleet.behind_for.",
        ("group",),
        [((one["group"],), one["overdue"]) for one in groups],
    )


def _peers(values: Values) -> Iterator[Metric]:
    if values["fleet_store"] is not None:
        site = [peer["up"] is not False for peer in values["peers"] if peer["site"]]
        text = "Other gateways of the site that were heard of within the last minutes."
        yield _gauge("site_gateways", text, value=sum(site))
    peers = [peer for peer in values["peers"] if not peer["site"]]
    if peers:
        samples = [((peer["name"],), peer["up"]) for peer in peers]
        yield _gauge("peer_up", "Whether the gateway in fleet.peers answers.", ("peer",), samples)


def _fleet_store(values: Values) -> Iterator[Metric]:
    store = values["fleet_store"]
    if store is not None:
        yield _gauge(
            "fleet_store_up", "Whether the object store can be used.", value=store["failure"] is None
        )
        for name, text in _STORE_COUNTERS.items():
            samples = [((kind,), count) for kind, count in store[name].items()]
            yield _counter(f"fleet_store_{name}", text, ("kind",), samples)


_STORE_COUNTERS = {
    "requests": "Calls to the object store, by kind.",
    "failures": "Calls to the object store that failed, by kind.",
}
"""Also the keys in status.json."""


def _feeds(values: Values) -> Iterator[Metric]:
    """Totals only: clients find any number of hosts below the configured domains."""
    feeds, stats = values["feeds"], values["stats"]
    yield _gauge("feed_objects", "Cached files of other feeds.", value=feeds["objects"])
    yield _gauge("feed_bytes", "Bytes of the cached files of other feeds.", value=feeds["bytes"])
    for name, (counter, text) in _FEED_COUNTERS.items():
        yield _counter(name, text, value=stats[counter])


def _files(values: Values) -> Iterator[Metric]:
    """The site's own files, by state: their names are for the status page."""
    files, stats = values["files"], values["stats"]
    if files["enabled"]:
        counts = Counter(file["state"] for file in files["files"])
        yield _gauge(
            "site_files",
            "Files in files.directory, by state; refused: ClamAV can't load it, and machines keep the last "
            "good version.",
            ("state",),
            [((str(state),), counts[state]) for state in State],
        )
        yield _gauge(
            "site_files_trouble",
            "Whether files.directory can't be read.",
            value=bool(files["trouble"]),
        )
    for name, (counter, text) in _FILE_COUNTERS.items():
        yield _counter(name, text, value=stats[counter])


_FILE_COUNTERS = {
    "site_file_requests": ("file_requests", "Requests from clients for the site's own files."),
    "site_file_downloads": ("file_downloads", "Requests for the site's own files answered with content."),
    "site_file_served_bytes": ("file_bytes_served", "Bytes of the site's own files sent to clients."),
}
"""Name of the metric: its counter in the statistics, and its help text."""
_FEED_COUNTERS = {
    "feed_requests": ("feed_requests", "Requests from clients for files of other feeds."),
    "feed_hits": ("feed_hits", "Requests for files of other feeds that were answered from the cache."),
    "feed_errors": ("feed_errors", "Requests for files of other feeds that could not be answered."),
    "feed_served_bytes": ("feed_bytes_served", "Bytes of feeds' files sent to clients."),
    "feed_upstream_requests": ("feed_upstream_requests", "Requests sent to feeds."),
    "feed_upstream_bytes": ("feed_upstream_bytes", "Bytes received from feeds."),
}
"""Name of the metric: its counter in the statistics, and its help text."""


def _gauge(
    name: str, text: str, labels: Labels = (), samples: Samples = (), *, value: float | None = None
) -> Metric:
    return _family(GaugeMetricFamily, name, text, labels, samples, value)


def _counter(
    name: str, text: str, labels: Labels = (), samples: Samples = (), *, value: float | None = None
) -> Metric:
    return _family(CounterMetricFamily, name, text, labels, samples, value)


def _family(
    make: Callable[..., GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    labels: Labels,
    samples: Samples,
    value: float | None,
) -> Metric:
    family = make(f"clamproxy_{name}", text, labels=labels)
    for row, amount in samples if labels else [((), value)]:
        if amount is not None:
            family.add_metric(row, float(amount))
    return family
