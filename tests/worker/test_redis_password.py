"""The password of Redis from REDIS_PASSWORD_FILE: the URLs that get it, the clients that use it."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.conftest import RedisServer
from tests.end_to_end.conftest import ROOT
from tests.servers import Server
from worker.app import celery_app
from worker.errors import SettingsError
from worker.ledger.messages import ADAPT_TASK, wake_up
from worker.ledger.servers import is_records_url, is_weights_url, records_client, subscriber, with_password
from worker.reaper import oldest_wake_up
from worker.settings import WorkerSettings, read_settings

PASSWORD = "p@ss:w/ord?#%"
QUOTED = "p%40ss%3Aw%2Ford%3F%23%25"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/2", f"redis://:{QUOTED}@h:1/2"),
        ("redis://h", f"redis://:{QUOTED}@h"),
        ("redis://someone@h/0", f"redis://someone:{QUOTED}@h/0"),
        ("rediss://h/0?ssl_cert_reqs=none", f"rediss://:{QUOTED}@h/0?ssl_cert_reqs=none"),
        ("unix:///run/r.sock", f"unix://:{QUOTED}@/run/r.sock"),
        ("redis+sentinel://a:1,b:2/queue/3", f"redis+sentinel://:{QUOTED}@a:1,b:2/queue/3"),
        ("redis+cluster://[::1]:1,b", f"redis+cluster://:{QUOTED}@[::1]:1,b"),
        ("redis://:own@h/0", "redis://:own@h/0"),
        ("redis://someone:own@h/0", "redis://someone:own@h/0"),
        ("unix:///run/r.sock?password=own", "unix:///run/r.sock?password=own"),
    ],
)
def test_a_url_gets_the_password_unless_it_has_one(url: str, expected: str) -> None:
    assert with_password(url, PASSWORD) == expected
    assert is_weights_url(expected) and is_records_url(expected) == is_records_url(url)


def test_the_settings_have_the_password_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("one\n")
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(secret))
    monkeypatch.setenv("REDIS_URL", "redis://broker/0")
    settings = read_settings(WorkerSettings)
    assert settings.redis_url == settings.weights_url == "redis://:one@broker/0" and settings.cache_url is None
    monkeypatch.setenv("CACHE_URL", "redis://:other@cache/0")
    assert read_settings(WorkerSettings).weights_url == "redis://:other@cache/0"
    for content in ("", "two\nlines", "caf\u00e9"):
        secret.write_text(content)
        with pytest.raises(SettingsError, match=r"REDIS_PASSWORD_FILE: expected one line with a password in .*, got other content"):
            read_settings(WorkerSettings)
    secret.unlink()
    with pytest.raises(SettingsError, match="REDIS_PASSWORD_FILE: expected a readable file, got FileNotFoundError"):
        read_settings(WorkerSettings)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_every_client_uses_the_password(transport: str, redis_server: RedisServer, tmp_path: Path) -> None:
    if transport == "tcp":
        server = Server(tmp_path / "redis")
        url, admin = f"redis://127.0.0.1:{server.port}/0", server.client
    else:
        url, admin = redis_server.url, redis.Redis.from_url(redis_server.url)
    admin.config_set("requirepass", PASSWORD)
    try:
        with pytest.raises(redis.AuthenticationError):
            records_client(url).ping()
        url = with_password(url, PASSWORD)
        client = records_client(url)
        assert client.ping()
        app = celery_app(url, "q")
        app.send_task(ADAPT_TASK, kwargs=wake_up("t", "a1"))
        assert oldest_wake_up(client, "q") == ("t", "a1")
        assert asyncio.run(_hears(url, client)) == b"hello"
        app.close()
    finally:
        admin.close()
        if transport == "tcp":
            server.kill()


async def _hears(url: str, client: "redis.Redis") -> bytes:
    """Subscribe to a channel, publish `hello` on it, and return what was heard."""
    async with subscriber(url) as listening, listening.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        while True:
            message = await pubsub.get_message(timeout=5)
            assert message is not None
            if message["type"] == "message":
                return bytes(message["data"])
            client.publish("channel", "hello")


def test_the_embedded_server_takes_no_password(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")],
        env={"PATH": "/usr/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "REDIS_PASSWORD_FILE": str(tmp_path / "password")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "error: REDIS_PASSWORD_FILE: expected REDIS_URL beside it: the embedded server has no password\n"
