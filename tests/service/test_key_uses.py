"""The uses of keys are recorded whatever goes wrong, and are forgotten once they are written."""

import asyncio
from collections.abc import Mapping

import pytest
import redis

from service.http import key_uses
from service.http.key_uses import KeyUseRecorder
from worker.ledger.key_uses import KeyUses


def test_uses_are_written_again_after_any_error_and_then_forgotten(
    redis_client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    class BrokenUses(KeyUses):
        """A `KeyUses` that fails at first, and in a way that is not expected."""

        failures, written = 2, 0

        def record(self, ages_ms: Mapping[str, int]) -> None:
            if self.failures:
                self.failures -= 1
                raise ValueError("unexpected")
            super().record(ages_ms)
            self.written += len(ages_ms)

    monkeypatch.setattr("service.http.periodic.SECONDS", 0.02)
    monkeypatch.setattr(key_uses, "WRITE_SECONDS", 0.2)

    async def scenario() -> None:
        uses = BrokenUses(redis_client)
        recorder = KeyUseRecorder(uses)
        recorder.writes.start()
        for n in range(5):
            recorder.note(f"{n:012x}")
        while uses.written < 5 or recorder._written:
            await asyncio.sleep(0.02)
        uses.failures = 1
        recorder.note("f" * 12)
        await recorder.writes.close()  # only logs the error
        assert uses.written == 5 and not uses.failures

    asyncio.run(asyncio.wait_for(scenario(), 10))
