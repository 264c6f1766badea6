"""Work of several tenants in shared threads."""

import threading

from service.predicting.turn_executor import TurnExecutor


def test_work_of_tenants_is_taken_in_turn_and_each_tenants_own_in_order() -> None:
    executor, started, done = TurnExecutor(1, "test"), threading.Event(), list[str]()

    def hold_the_only_thread() -> None:
        started.wait(10)

    executor.submit("busy", hold_the_only_thread)  # until everything is submitted
    for name in ("busy 1", "busy 2", "busy 3", "quiet 1", "other 1", "quiet 2"):
        executor.submit(name.split()[0], lambda name=name: done.append(name))  # type: ignore[misc]
    started.set()
    executor.shutdown()
    assert done == ["busy 1", "quiet 1", "other 1", "busy 2", "quiet 2", "busy 3"]
