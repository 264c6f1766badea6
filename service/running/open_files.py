"""The limit on open files, of which each connection is one."""

import logging
import resource

log = logging.getLogger(__name__)
_ENOUGH = 65_536
"""More than a service opens. A higher limit would slow programs that close every possible file when they start."""


def raise_limit() -> None:
    """Raise this process's limit on open files as far as the system allows it, at most to 65,536.

    The usual limit of 1024 is too low for MAX_CONNECTIONS and the connections to Redis.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        log.info("raised the limit on open files from %d to %d", soft, allowed)
