"""`/readyz`: what it says is missing."""

import asyncio

import redis

from metatrain.models.base import Base
from tests.conftest import RedisServer
from tests.service.test_shared_threads import client_of
from worker.ledger.encryption import Cipher, new_key
from worker.ledger.ids import id_key


def test_a_service_without_the_encryption_key_of_the_records_is_not_ready(
    tiny: Base, redis_server: RedisServer, redis_client: "redis.Redis"
) -> None:
    id_key(redis_client, Cipher([new_key()]))

    async def scenario() -> None:
        async with client_of(tiny, redis_server) as http:
            answer = await http.get("/readyz")
            assert answer.status_code == 503 and answer.json()["missing"] == ["worker", "encryption_key"]
            assert (await http.get("/adapters")).status_code == 200  # there are none, so no value has to be read

    asyncio.run(scenario())
