"""The order of test files for `make test`: the slowest start first."""

from collections import Counter
from collections.abc import Sequence

import pytest

SLOWEST = (
    "tests/end_to_end/test_faults.py",
    "tests/faults/test_storm.py",
    "tests/end_to_end/test_contract.py",
    "tests/end_to_end/test_demo.py",
    "tests/metatrain/training/test_run.py",
    "tests/oracles/test_metagrad.py",
    "tests/end_to_end/test_door.py",
    "tests/metatrain/deltas/test_deltas.py",
    "tests/end_to_end/test_service.py",
    "tests/faults/test_life.py",
    "tests/metatrain/deltas/test_delta_architectures.py",
    "tests/test_layering.py",
    "tests/metatrain/training/test_processes.py",
    "tests/end_to_end/test_tenancy.py",
    "tests/end_to_end/client/test_client.py",
    "tests/worker/test_hanging.py",
    "tests/end_to_end/test_plugin.py",
    "tests/metatrain/training/test_learning.py",
    "tests/service/test_remote_predictor.py",
    "tests/service/test_tenant_limits.py",
)
"""The slowest test files, the slowest first. `make test TEST_FLAGS=--durations=100` shows the times to update the list."""


def slowest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Sort tests by file: the files in `SLOWEST`, then all others, by falling number of tests.

    Tests of one file keep their order.
    """
    files = [item.nodeid.split("::")[0] for item in items]
    ranks = {file: rank for rank, file in enumerate(SLOWEST)}
    sizes, first_seen = Counter(files), {file: number for number, file in reversed(list(enumerate(files)))}

    def place(numbered: tuple[int, pytest.Item]) -> tuple[int, int, int]:
        file = files[numbered[0]]
        return ranks.get(file, len(SLOWEST)), -sizes[file], first_seen[file]

    return [item for _, item in sorted(enumerate(items), key=place)]
