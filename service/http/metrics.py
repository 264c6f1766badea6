"""The Prometheus metrics for `GET /metrics`.

They count the jobs of the whole deployment, and the requests and predictions of this process.

Job counts are stored with the records in Redis. So every replica reports the same job counts, and a restart does not reset them.
While the records cannot be reached, `quickstudy_records_up` is 0 and the metrics that come from the records are missing.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import redis
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from service.predicting.interface import BATCH_AGE, STAGES, Predictor
from worker.ledger.counts import JOB_STAGES, RECOVERY_BOUNDS_MS, STAGE_BOUNDS_MS
from worker.ledger.queue_load import QueueLoad
from worker.ledger.records import Records

_COUNTERS = {
    "accepted": "Jobs accepted with a 202",
    "attempts": "Claims of a job by a worker",
    "handed_back": "Attempts that ended with the job queued again",
    "lost_workers": "Workers that lost their job because their lease expired",
    "overtaken": "Workers that noticed, while adapting, that they had lost their job",
    "refused_commits": "Results refused because the worker had lost its job",
    "recomputed": "Adapters adapted again because their weights were evicted or corrupt",
    "evicted": "Weights that were needed and that the cache had evicted",
    "corrupt": "Weights whose digest was not the one on record",
    "dead": "Jobs that failed after all their attempts",
    "revived": "Dead jobs that were queued again by `quickstudy jobs retry`",
    "deleted": "Adapters deleted by request",
    "retired": "Records removed a week after their adapters expired",
}

_GAUGES = {
    BATCH_AGE: "Seconds since the last batch ended while calls wait, of the base model with the oldest one; 0 if none wait",
    "waiting_inputs": "Inputs received and not answered yet",
    "bank_adapters": "Adapters on the device",
    "bank_slots": "Number of adapters that fit on the device",
    "bank_bytes": "Bytes of the adapters on the device",
    "shelf_adapters": "Adapters in host memory that are not on the device",
    "shelf_bytes": "Bytes of the adapters in host memory",
}
_STAGE_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The metrics of one application.

    They have their own Prometheus registry, so that several applications can run in one process.
    """

    def __init__(self, records: Records, predictors: Sequence[Predictor]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_RecordsCollector(records))
        self.registry.register(_PredictorsCollector(predictors))
        self.requests = Counter(
            "quickstudy_http_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram("quickstudy_http_request_seconds", "Time to answer", ["method", "route"], registry=self.registry)
        self.stages = Histogram(
            "quickstudy_predict_stage_seconds",
            f"Time of a prediction in each stage: {', '.join(STAGES)}",
            ["stage"],
            buckets=_STAGE_BOUNDS,
            registry=self.registry,
        )

    def observe_prediction(self, seconds: Mapping[str, float]) -> None:
        """Record the seconds that one prediction call spent in each stage, such as `queue`."""
        for stage, spent in seconds.items():
            self.stages.labels(stage).observe(spent)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)


class _PredictorsCollector(Collector):
    """The gauges of the predictors, summed over all base models, except for the age of the last batch."""

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self._predictors = predictors

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        sums: defaultdict[str, float] = defaultdict(float)
        for predictor in self._predictors:
            gauges = predictor.gauges()
            oldest = max(sums[BATCH_AGE], gauges.get(BATCH_AGE, 0.0))
            for name, value in gauges.items():
                sums[name] += value
            sums[BATCH_AGE] = oldest
        for name, value in sums.items():
            if name in _GAUGES:  # a predictor process of another version may send gauges that are unknown here
                yield GaugeMetricFamily(f"quickstudy_predictor_{name}", _GAUGES[name], value=value)


class _RecordsCollector(Collector):
    def __init__(self, records: Records) -> None:
        self._records = records

    def describe(self) -> Iterator[Metric]:
        return iter(())  # no names are declared, so that registering this collector never calls `collect`, which reads from Redis

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("quickstudy_records_up", "1 if the queue and the records can be reached, else 0")
        try:
            counts, workers = self._records.counts.read(), self._records.workers.by_queue()
            lacking = self._records.initializations.lacking()
            loads = self._records.queue_loads.read()
        except redis.RedisError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _queues(loads, workers)
        without = GaugeMetricFamily(
            "quickstudy_jobs_without_initialization",
            "Unfinished jobs that only a worker with this initialization can run, because it is not stored",
            labels=["digest"],
        )
        for digest, number in lacking.items():
            without.add_metric([digest], number)
        yield without
        alive = GaugeMetricFamily("quickstudy_workers", "Workers with a recent sign of life", labels=["queue"])
        for queue, count in workers.items():
            alive.add_metric([queue], count)
        yield alive
        ended = CounterMetricFamily("quickstudy_jobs_ended", "Jobs that ended", labels=["outcome"])
        for outcome in ("ready", "failed"):
            ended.add_metric([outcome], counts.get(outcome, 0))
        yield ended
        for name, meaning in _COUNTERS.items():
            yield CounterMetricFamily(f"quickstudy_jobs_{name}", meaning, value=counts.get(name, 0))
        yield _stages(counts)
        total = counts.get("recoveries", 0)
        buckets = [(str(bound / 1000), counts.get(f"recovery_le_{bound}", 0)) for bound in RECOVERY_BOUNDS_MS]
        yield HistogramMetricFamily(
            "quickstudy_recovery_seconds",
            "Time from a lost worker's last sign of life to the end of its job",
            buckets=[*buckets, ("+Inf", total)],
            sum_value=counts.get("recovery_ms", 0) / 1000,
        )


def _queues(loads: Mapping[str, QueueLoad], workers: Mapping[str, int]) -> Iterator[Metric]:
    """Return the metrics of each queue, from which an autoscaler computes a number of workers."""
    jobs = GaugeMetricFamily("quickstudy_jobs", "Unfinished jobs", labels=["queue", "status"])
    oldest = GaugeMetricFamily(
        "quickstudy_oldest_waiting_job_seconds", "Age of the oldest queued job, 0 if there is none", labels=["queue"]
    )
    wait = GaugeMetricFamily(
        "quickstudy_estimated_wait_seconds",
        "Time until a job that is accepted now begins, at the measured speed of the live workers",
        labels=["queue"],
    )
    for queue in sorted(loads.keys() | workers.keys()):
        load = loads.get(queue, QueueLoad())
        jobs.add_metric([queue, "queued"], load.queued)
        jobs.add_metric([queue, "running"], load.running)
        oldest.add_metric([queue], load.oldest_seconds)
        estimated = load.estimated_wait(workers.get(queue, 0))
        if estimated is not None:
            wait.add_metric([queue], estimated)
    yield from (jobs, oldest, wait)


def _stages(counts: Mapping[str, int]) -> HistogramMetricFamily:
    """Return the histograms of how long adaptations spend in each stage, over the jobs of all workers."""
    family = HistogramMetricFamily(
        "quickstudy_adapt_stage_seconds", f"Time of an adaptation in each stage: {', '.join(JOB_STAGES)}", labels=["stage"]
    )
    for stage in JOB_STAGES:
        total = counts.get(f"stage_{stage}_count", 0)
        buckets = [(str(bound / 1000), counts.get(f"stage_{stage}_le_{bound}", 0)) for bound in STAGE_BOUNDS_MS]
        family.add_metric([stage], buckets=[*buckets, ("+Inf", total)], sum_value=counts.get(f"stage_{stage}_us", 0) / 1e6)
    return family
