"""The garbage collector is paused during startup and re-enabled afterwards."""

import gc

from worker.collection import pause_collection, resume_collection


def test_it_is_paused_and_then_works_without_the_objects_of_the_start() -> None:
    frozen = gc.get_freeze_count()
    try:
        pause_collection()
        assert not gc.isenabled()
        resume_collection()
        assert gc.isenabled() and gc.get_freeze_count() > frozen
        frozen_once = gc.get_freeze_count()
        resume_collection()  # a second call freezes no more objects
        assert gc.get_freeze_count() == frozen_once
    finally:
        gc.enable()
        gc.unfreeze()
