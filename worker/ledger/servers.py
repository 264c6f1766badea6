"""Redis by URL, for every process: one server, one behind Sentinel, or, for weights alone, a cluster. Torch-free.

    redis://[user:password@]host:port/db · rediss://… (TLS) · unix:///path
    redis+sentinel://[user:password@]host:port,host:port/SERVICE[/db]
    redis+cluster://[user:password@]host:port,host:port          CACHE_URL alone: a job's scripts want all of its keys on one server

User and password are the servers'; Sentinels that want one of their own, and TLS to Sentinels or a cluster, are not supported.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import quote, unquote

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import ClusterError, RedisClusterException
from redis.retry import Retry

_SINGLE = r"(redis|rediss|unix)://.+"
_NODE = r"(?:[^,:/@\s]+|\[[0-9a-fA-F:]+\])(?::\d+)?"
_LOGIN = r"(?:(?P<user>[^:@/]*):(?P<password>[^@/]*)@)?"
_SENTINEL = rf"redis\+sentinel://{_LOGIN}(?P<nodes>{_NODE}(?:,{_NODE})*)/(?P<service>[^/?#]+)(?:/(?P<db>\d+))?"
_CLUSTER = rf"redis\+cluster://{_LOGIN}(?P<nodes>{_NODE}(?:,{_NODE})*)/?"
_ASKED = {"socket_timeout": 2.0, "socket_connect_timeout": 1.0}
_PORTS = {"sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True)
class _Many:
    """What a URL of several nodes says."""

    nodes: tuple[tuple[str, int], ...]
    login: dict[str, str]
    service: str
    db: int


def _parsed(kind: Literal["sentinel", "cluster"], url: str) -> _Many | None:
    found = re.fullmatch(_SENTINEL if kind == "sentinel" else _CLUSTER, url)
    if found is None:
        return None
    own = found.groupdict()
    nodes = []
    for node in own["nodes"].split(","):
        host, _, port = node.rpartition(":") if re.search(r":\d+$", node) else (node, "", "")
        nodes.append((host.strip("[]"), int(port or _PORTS[kind])))
    login = {"username": own["user"], "password": own["password"]}
    given = {name: unquote(value) for name, value in login.items() if value}
    return _Many(tuple(nodes), given, own.get("service") or "", int(own.get("db") or 0))


def for_records(url: str) -> bool:
    """Whether queue and records can be there."""
    return bool(re.fullmatch(_SINGLE, url)) or _parsed("sentinel", url) is not None


def for_weights(url: str) -> bool:
    """Whether the cache can be there."""
    return for_records(url) or _parsed("cluster", url) is not None


def records_client(url: str, *, timeout: float = 10, connect_timeout: float = 3) -> "redis.Redis":
    """A client of queue and records; of whichever server is the master now, behind Sentinel. Connects at first use."""
    timeouts = {"socket_timeout": timeout, "socket_connect_timeout": connect_timeout}
    if (many := _parsed("sentinel", url)) is not None:
        return cast(redis.Redis, _master(redis.sentinel.Sentinel, Retry, many, timeouts))
    return redis.Redis.from_url(url, **timeouts)


def subscriber(url: str) -> "redis.asyncio.Redis":
    """An asynchronous client for `pubsub`."""
    if (many := _parsed("sentinel", url)) is not None:
        found = _master(redis.asyncio.sentinel.Sentinel, AsyncRetry, many, {"socket_connect_timeout": 3.0})
        return cast(redis.asyncio.Redis, found)
    return redis.asyncio.Redis.from_url(url)


def _master(sentinel: Any, retry: Any, many: _Many, timeouts: dict[str, float]) -> Any:
    # Once each: redis-py would try a Sentinel that is gone ten times before it asks the next one.
    asked = sentinel(many.nodes, sentinel_kwargs={**_ASKED, "retry": retry(NoBackoff(), 0)})
    return asked.master_for(many.service, db=many.db, **many.login, **timeouts)


def weights_client(url: str, *, timeout: float = 10, connect_timeout: float = 3) -> "redis.Redis":
    """A client of the cache, which may be a cluster. Connects at first use."""
    if (many := _parsed("cluster", url)) is not None:
        return cast(redis.Redis, _Cluster(many, timeout, connect_timeout))
    return records_client(url, timeout=timeout, connect_timeout=connect_timeout)


def broker(url: str) -> tuple[str, dict[str, Any]]:
    """The URL as Celery wants it, and the transport options that belong to it."""
    if (many := _parsed("sentinel", url)) is not None:
        user, password = (quote(many.login.get(name, ""), safe="") for name in ("username", "password"))
        login = f"{user}:{password}@" if password else ""
        hosts = (f"[{host}]" if ":" in host else host for host, _ in many.nodes)
        urls = [f"sentinel://{login}{host}:{port}/{many.db}" for host, (_, port) in zip(hosts, many.nodes, strict=True)]
        return ";".join(urls), {"master_name": many.service, "sentinel_kwargs": {**_ASKED, "retry": Retry(NoBackoff(), 0)}}
    return url.replace("unix://", "redis+socket://", 1), {}


class _Cluster:
    """A cluster's client as `WeightStore` needs it: redis-py's own connects when it is made, and raises what is no RedisError."""

    def __init__(self, many: _Many, timeout: float, connect_timeout: float) -> None:
        node: Any = ClusterNode
        self._nodes = [node(host, port) for host, port in many.nodes]
        self._options: dict[str, Any] = {**many.login, "socket_timeout": timeout, "socket_connect_timeout": connect_timeout}
        self._client: RedisCluster | None = None

    def _reached(self) -> RedisCluster:
        if self._client is None:
            self._client = RedisCluster(startup_nodes=self._nodes, **self._options)
        return self._client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*arguments: Any, **named: Any) -> Any:
            try:
                return getattr(self._reached(), name)(*arguments, **named)
            except (RedisClusterException, ClusterError) as error:  # ClusterError is a refusal to redis-py, and here an outage
                raise redis.ConnectionError(f"the cluster is out of reach: {error}") from error

        return ask
