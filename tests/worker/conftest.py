import pytest
import redis

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.models.base import Base
from worker.job import JobRunner
from worker.ledger.records import Records
from worker.ledger.weights_cache import WeightStore
from worker.runtime import Resident, Runtime
from worker.settings import WorkerSettings


@pytest.fixture
def runner(tiny: Base, redis_client: "redis.Redis") -> JobRunner:
    runtime = Runtime(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    return JobRunner("w", WorkerSettings(), Records(redis_client), WeightStore(redis_client), runtime)
