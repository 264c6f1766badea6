"""The composition in real containers. It needs Docker or podman, and minutes for the images."""

import pytest

from tests.containers.check import check
from tests.containers.engine import NoEngine


@pytest.mark.long
def test_the_containers_are_hardened_healthy_and_behind_a_proxy_that_refuses_abuse() -> None:
    try:
        table = check(build=True)
    except NoEngine as error:
        pytest.skip(str(error))
    assert table.failed == [] and len(table.rows) > 80
