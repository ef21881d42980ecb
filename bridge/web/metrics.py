"""What ``/metrics`` tells Prometheus: read from the database at each scrape, so all web processes tell the same.

Nothing is counted in memory. Counters are running totals that the store keeps beside the facts they count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge.errors import StoreUnavailable
from bridge.model import BACKFILL, RECONCILE, REGISTRATION, CatchUp, Progress
from bridge.store.looking import Activity, Latency, Queue
from bridge.store.protocol import Health, SourceStatus, Store

Labelled = Iterable[tuple[tuple[str, ...], float]]  # the values of the labels, with the value


class StoreCollector(Collector):
    """All metrics of one database.

    *bursts* says how many calls each target takes at once; *trouble* why nothing can be written, "" when it can.
    """

    def __init__(
        self, store: Store, bursts: Mapping[str, int], clock: Callable[[], datetime], trouble: Callable[[], str]
    ) -> None:
        self._store = store
        self._bursts = bursts
        self._clock = clock
        self._trouble = trouble

    def describe(self) -> list[Metric]:
        """Name nothing in advance: the registry would ask the store at start-up otherwise."""
        return []

    def collect(self) -> Iterator[Metric]:
        now = self._clock()
        try:
            # All that is read first: half an answer would look like a drop to nothing.
            told = [
                *_health(self._store.health(now), now),
                *_catch_ups(self._store.catch_ups(), now),
                *_queues(self._store.queues(now), self._bursts, now),
                *_totals(self._store.totals()),
                _times(
                    "bridge_attempt_duration_seconds",
                    "How long pushes took, from the first call to the last answer, with waits for the quota.",
                    self._store.latencies(),
                ),
                _times(
                    "bridge_delivery_lag_seconds",
                    "For how long contacts were behind: from reading a change until the target held it.",
                    self._store.lags(),
                ),
            ]
        except StoreUnavailable:
            yield _up(False)
            return
        yield _up(not self._trouble())
        yield from told


def seconds_since(moment: datetime, now: datetime) -> float:
    """Return how long ago *moment* was, in seconds; 0 when a clock has it in the future."""
    return round(max(0.0, (now - moment).total_seconds()), 3)


def _up(up: bool) -> Metric:
    text = "1 when the database answers and takes what is written."
    return GaugeMetricFamily("bridge_database_up", text, value=float(up))


def _gauges(name: str, text: str, labels: Sequence[str], values: Labelled) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in sorted(values):
        family.add_metric(key, value)
    return family


def _counters(name: str, text: str, labels: Sequence[str], values: Labelled) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in sorted(values):
        family.add_metric(key, value)
    return family


# --- how it is now -------------------------------------------------------------------------------------------


def _health(seen: Health, now: datetime) -> Iterator[Metric]:
    counts = [((outcome,), count) for outcome, count in seen.inbound.items()]
    yield _gauges("bridge_inbound", "Webhooks by what became of them.", ["outcome"], counts)
    yield from _sources(seen.sources, now)
    yield _gauges(
        "bridge_deliveries",
        "Contacts of a target by the state of their delivery.",
        ["target", "state"],
        seen.deliveries.items(),
    )
    yield _gauges(
        "bridge_target_open",
        "1 when the target takes deliveries, 0 while it is held or paused.",
        ["target"],
        [((one.target,), float(one.mode == "open")) for one in seen.targets],
    )
    ages = (
        ("bridge_oldest_due_seconds", "Age of the oldest delivery that may be sent.", seen.oldest_due_at),
        ("bridge_oldest_unprocessed_seconds", "Age of the oldest waiting webhook.", seen.oldest_unprocessed_at),
    )
    for name, text, since in ages:
        yield GaugeMetricFamily(name, text, value=seconds_since(since, now) if since else 0.0)
    # Without any heartbeat the series is absent rather than zero: absence is what an alarm can see.
    if seen.worker_seen_at is not None:
        text = "Age of the worker's heartbeat; absent when no worker ever ran."
        # One of a moment to come is of a clock that was wrong: the further away, the less it says of a worker now.
        away_s = abs((now - seen.worker_seen_at).total_seconds())
        yield GaugeMetricFamily("bridge_worker_seen_seconds", text, value=round(away_s, 3))


def _sources(sources: Sequence[SourceStatus], now: datetime) -> Iterator[Metric]:
    refused = [((one.source,), one.refused) for one in sources]
    yield _counters("bridge_refused", "Requests that failed verification.", ["source"], refused)
    waiting = [((one.source,), one.unprocessed) for one in sources]
    yield _gauges("bridge_unprocessed", "Webhooks that wait to be processed.", ["source"], waiting)
    yield _gauges(
        "bridge_source_silent_seconds",
        "Time since the source's last genuine webhook; absent when none ever came.",
        ["source"],
        [((one.source,), seconds_since(one.last_inbound_at, now)) for one in sources if one.last_inbound_at],
    )


def _catch_ups(found: Sequence[CatchUp], now: datetime) -> Iterator[Metric]:
    """Yield how it stands with backfills, reconciliations and registrations."""
    asking = [((one.source,), float(one.state is Progress.ASKING)) for one in found if one.kind == BACKFILL]
    yield _gauges(
        "bridge_catch_up_asking",
        "1 while a backfill waits for a person, who is to say whether so much may be changed.",
        ["source"],
        asking,
    )
    yield _gauges(
        "bridge_reconciled_seconds",
        "Time since changes of the source's CRM were last looked for.",
        ["source"],
        [((one.source,), seconds_since(one.started_at, now)) for one in found if one.kind == RECONCILE],
    )
    yield _gauges(
        "bridge_registration_left_seconds",
        "Time until the source's registration at its CRM ends, unless it is renewed before.",
        ["source"],
        [
            ((one.source,), max(0.0, (one.since - now).total_seconds()))
            for one in found
            if one.kind == REGISTRATION and one.since is not None
        ],
    )


def _queues(queues: Sequence[Queue], bursts: Mapping[str, int], now: datetime) -> Iterator[Metric]:
    yield _gauges(
        "bridge_backlog_age_seconds",
        "For how long the target has been behind with its oldest contact, be it due, held, or waiting for the "
        "quota or its next try. 0 when it is behind with none.",
        ["target"],
        [((one.target,), seconds_since(one.oldest_wanted_at or now, now)) for one in queues],
    )
    yield _gauges(
        "bridge_quota_calls",
        "Calls that bridge may make at once now, of those that it allows itself. Below 0 it took some on credit.",
        ["target"],
        [((one.target,), _left(one, bursts)) for one in queues],
    )
    yield _gauges(
        "bridge_quota_burst_calls",
        "The most calls that bridge allows itself at once.",
        ["target"],
        [((target,), burst) for target, burst in bursts.items()],
    )
    yield _gauges(
        "bridge_target_backoff_seconds",
        "For how long from now the target wants no calls, because it said so.",
        ["target"],
        [((one.target,), seconds_since(now, one.closed_until or now)) for one in queues],
    )


def _left(queue: Queue, bursts: Mapping[str, int]) -> float:
    return float(bursts.get(queue.target, 0)) if queue.tokens is None else queue.tokens


# --- how much there was ----------------------------------------------------------------------------------------


def _totals(totals: Iterable[Activity]) -> Iterator[Metric]:
    attempts: Counter[tuple[str, ...]] = Counter()
    failures: Counter[tuple[str, ...]] = Counter()
    calls: Counter[tuple[str, ...]] = Counter()
    changes: Counter[tuple[str, ...]] = Counter()
    pushes: Counter[tuple[str, ...]] = Counter()
    missed: Counter[tuple[str, ...]] = Counter()
    for one in totals:
        target = one.target or ""
        if one.kind == "contact" and one.outcome == "missed":
            missed[one.source or "",] += one.count
        if one.kind == "announced":
            changes[target,] += one.count
        if one.kind != "delivery":
            continue
        attempts[target, one.outcome] += one.count
        calls[target,] += one.calls
        # What was found to be as it should without a call was saved as well.
        pushes[target,] += one.count if one.error else min(one.count, one.calls)
        if one.error:
            failures[target, one.error] += one.count
    yield _counters("bridge_attempts", "Pushes by what they came to.", ["target", "outcome"], attempts.items())
    yield _counters(
        "bridge_attempt_failures", "Pushes that failed, by class.", ["target", "error"], failures.items()
    )
    yield _counters("bridge_calls", "HTTP calls made to the target.", ["target"], calls.items())
    yield _counters(
        "bridge_changes", "Changes in the CRM that were to reach the target.", ["target"], changes.items()
    )
    yield _counters(
        "bridge_missed_changes",
        "Changes that reconciling found and no webhook had told of.",
        ["source"],
        missed.items(),
    )
    yield _gauges(
        "bridge_pushes_saved",
        "Changes that needed no push of their own, ever: a burst is one, and what a target holds is not sent.",
        ["target"],
        [(key, max(0, count - pushes[key])) for key, count in changes.items()],
    )


def _times(name: str, text: str, times: Sequence[Latency]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["target"])
    for one in sorted(times, key=lambda one: one.target):
        family.add_metric([one.target], _buckets(one.counts), sum_value=one.total_ms / 1000)
    return family


def _buckets(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    """Return what stands at or below each bound; the last bound is infinite."""
    so_far, buckets = 0, []
    bounds = sorted(counts)
    for bound in bounds:
        so_far += counts[bound]
        buckets.append(("+Inf" if bound == bounds[-1] else str(bound / 1000), float(so_far)))
    return buckets
