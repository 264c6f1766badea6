"""Create Redis clients from URLs: of one server, of a master behind Sentinel, or of a cluster.

    redis://[user:password@]host:port/db · rediss://… (TLS) · unix:///path
    redis+sentinel://[user:password@]host:port,host:port/SERVICE[/db]
    redis+cluster://[user:password@]host:port,host:port

A cluster is allowed only for the cache of weights (CACHE_URL), because the Lua scripts of a job need all its keys on one server.

User and password are those of the Redis servers. Sentinels with a password of their own, and TLS to Sentinels or to a cluster, are
not supported.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import parse_qs, quote, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import ClusterError, RedisClusterException
from redis.retry import Retry

from worker.ledger.breaker import ANSWER_SECONDS, CircuitBreaker, FailFast

_SINGLE = r"(redis|rediss|unix)://.+"
_NODE = r"(?:[^,:/@\s]+|\[[0-9a-fA-F:]+\])(?::\d+)?"
_LOGIN = r"(?:(?P<user>[^:@/]*):(?P<password>[^@/]*)@)?"
_SENTINEL = rf"redis\+sentinel://{_LOGIN}(?P<nodes>{_NODE}(?:,{_NODE})*)/(?P<service>[^/?#]+)(?:/(?P<db>\d+))?"
_CLUSTER = rf"redis\+cluster://{_LOGIN}(?P<nodes>{_NODE}(?:,{_NODE})*)/?"
_SENTINEL_TIMEOUTS = {"socket_timeout": 2.0, "socket_connect_timeout": 1.0}
_SENTINEL_TIMEOUTS_OF_SERVICES = {"socket_timeout": 0.4, "socket_connect_timeout": 0.4}
"""With three Sentinels that do not answer, a call still fails within two seconds."""
_CLUSTER_SECONDS_OF_SERVICES = 0.75
"""After a time-out, the cluster client asks another node which nodes there are, so a call may wait twice."""
_DEFAULT_PORTS = {"sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True)
class _MultiNodeUrl:
    """The parts of a Sentinel or cluster URL."""

    nodes: tuple[tuple[str, int], ...]
    login: dict[str, str]
    service: str
    db: int


def _parse(kind: Literal["sentinel", "cluster"], url: str) -> _MultiNodeUrl | None:
    match = re.fullmatch(_SENTINEL if kind == "sentinel" else _CLUSTER, url)
    if match is None:
        return None
    parts = match.groupdict()
    nodes = []
    for node in parts["nodes"].split(","):
        host, _, port = node.rpartition(":") if re.search(r":\d+$", node) else (node, "", "")
        nodes.append((host.strip("[]"), int(port or _DEFAULT_PORTS[kind])))
    credentials = {"username": parts["user"], "password": parts["password"]}
    login = {name: unquote(value) for name, value in credentials.items() if value}
    return _MultiNodeUrl(tuple(nodes), login, parts.get("service") or "", int(parts.get("db") or 0))


def is_records_url(url: str) -> bool:
    """Return True if this URL has a form that is allowed for the queue and the records (REDIS_URL)."""
    return bool(re.fullmatch(_SINGLE, url)) or _parse("sentinel", url) is not None


def is_weights_url(url: str) -> bool:
    """Return True if this URL has a form that is allowed for the cache of weights (CACHE_URL)."""
    return is_records_url(url) or _parse("cluster", url) is not None


def with_password(url: str, password: str) -> str:
    """Return the URL with this password, or the URL itself if it has one already.

    A user name in the URL is kept. The URL must have a form that `is_records_url` or `is_weights_url` allows.
    """
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    login, _, nodes = authority.rpartition("@")
    if ":" in login or "password" in parse_qs(urlsplit(url).query):
        return url
    return f"{scheme}://{login}:{quote(password, safe='')}@{nodes}{slash}{path}"


def records_client(url: str, *, timeout: float = 10, connect_timeout: float = 3) -> "redis.Redis":
    """Return a client for the queue and the records, which connects at its first use.

    Behind Sentinel, each new connection is to the current master. Timeouts are in seconds.
    """
    return _client(url, _SENTINEL_TIMEOUTS, socket_timeout=timeout, socket_connect_timeout=connect_timeout)


def service_client(url: str) -> "redis.Redis":
    """Return a client for a service, of the records or the weights.

    Its calls fail within `breaker.ANSWER_SECONDS`. All its calls pass through one circuit breaker, so that they fail at once while
    the server does not answer. A cluster has no breaker, because its other nodes may answer: it has shorter time-outs instead.
    """
    if (cluster := _parse("cluster", url)) is not None:
        seconds = _CLUSTER_SECONDS_OF_SERVICES
        return cast(redis.Redis, _ClusterClient(cluster, seconds, seconds, retry=Retry(NoBackoff(), 0)))
    timeouts = {"socket_timeout": ANSWER_SECONDS, "socket_connect_timeout": ANSWER_SECONDS}
    probe = _client(url, _SENTINEL_TIMEOUTS_OF_SERVICES, **timeouts)
    return _client(url, _SENTINEL_TIMEOUTS_OF_SERVICES, **timeouts, retry=FailFast(CircuitBreaker(probe.ping)))


def _client(url: str, sentinel_timeouts: Mapping[str, float], **options: Any) -> "redis.Redis":
    if (sentinel := _parse("sentinel", url)) is not None:
        return cast(redis.Redis, _master_client(redis.sentinel.Sentinel, Retry, sentinel, sentinel_timeouts, options))
    return redis.Redis.from_url(url, **options)


def subscriber(url: str) -> "redis.asyncio.Redis":
    """Return an asyncio client of the records server, for subscriptions to channels (`pubsub`)."""
    if (sentinel := _parse("sentinel", url)) is not None:
        timeouts = {"socket_connect_timeout": 3.0}
        client = _master_client(redis.asyncio.sentinel.Sentinel, AsyncRetry, sentinel, _SENTINEL_TIMEOUTS, timeouts)
        return cast(redis.asyncio.Redis, client)
    return redis.asyncio.Redis.from_url(url)


def _master_client(
    sentinel_class: Any, retry: Any, url: _MultiNodeUrl, sentinel_timeouts: Mapping[str, float], options: dict[str, Any]
) -> Any:
    # No retries: by default redis-py tries a Sentinel that is gone ten times before it asks the next one.
    sentinel = sentinel_class(url.nodes, sentinel_kwargs={**sentinel_timeouts, "retry": retry(NoBackoff(), 0)})
    return sentinel.master_for(url.service, db=url.db, **url.login, **options)


def weights_client(url: str, *, timeout: float = 10, connect_timeout: float = 3) -> "redis.Redis":
    """Return a client for the cache of weights, which connects at its first use. Timeouts are in seconds.

    Calls to a cluster are not repeated, so that one call takes no longer than with a single server: workers repeat them
    themselves, within the time of their watchdog.
    """
    if (cluster := _parse("cluster", url)) is not None:
        return cast(redis.Redis, _ClusterClient(cluster, timeout, connect_timeout, retry=Retry(NoBackoff(), 0)))
    return records_client(url, timeout=timeout, connect_timeout=connect_timeout)


def broker(url: str) -> tuple[str, dict[str, Any]]:
    """Convert a Redis URL for Celery. Return (broker URL, Celery's transport options)."""
    if (sentinel := _parse("sentinel", url)) is not None:
        user, password = (quote(sentinel.login.get(name, ""), safe="") for name in ("username", "password"))
        login = f"{user}:{password}@" if password else ""
        hosts = (f"[{host}]" if ":" in host else host for host, _ in sentinel.nodes)
        urls = [f"sentinel://{login}{host}:{port}/{sentinel.db}" for host, (_, port) in zip(hosts, sentinel.nodes, strict=True)]
        options = {
            "master_name": sentinel.service,
            "sentinel_kwargs": {**_SENTINEL_TIMEOUTS, "retry": Retry(NoBackoff(), 0)},
        }
        return ";".join(urls), options
    if url.startswith("unix://"):  # kombu has another name for the number of the database there
        return re.sub(r"([?&])db=", r"\1virtual_host=", url.replace("unix://", "redis+socket://", 1)), {}
    return url, {}


class _ClusterClient:
    """A cluster client for `WeightStore`: it connects at its first use and raises only RedisError.

    The cluster client of redis-py, which it wraps, connects when it is created and also raises other errors.
    """

    def __init__(self, url: _MultiNodeUrl, timeout: float, connect_timeout: float, **options: Any) -> None:
        node: Any = ClusterNode
        self._nodes = [node(host, port) for host, port in url.nodes]
        self._options: dict[str, Any] = {**url.login, "socket_timeout": timeout, "socket_connect_timeout": connect_timeout}
        self._options |= options
        self._client: RedisCluster | None = None

    def _connected(self) -> RedisCluster:
        if self._client is None:
            self._client = RedisCluster(startup_nodes=self._nodes, **self._options)
        return self._client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return getattr(self._connected(), name)(*arguments, **named)
            except (RedisClusterException, ClusterError) as error:  # some are a ResponseError, but all mean an outage
                raise redis.ConnectionError(f"the cluster is out of reach: {error}") from error

        return call
