"""The names that `quickstudy` exports. Each is imported only when it is first used."""

import importlib
import subprocess
import sys

import pytest
import quickstudy

from tests.end_to_end.conftest import ROOT


@pytest.mark.parametrize("name", quickstudy.__all__)
def test_an_exported_name_is_the_object_of_its_module(name: str) -> None:
    found = getattr(quickstudy, name)
    if isinstance(found, type):
        assert found.__name__ == name and getattr(importlib.import_module(found.__module__), name) is found
    assert name in dir(quickstudy)


def test_modules_are_attributes_and_unknown_names_raise() -> None:
    assert quickstudy.errors.QuickstudyError is quickstudy.QuickstudyError
    with pytest.raises(AttributeError, match="module 'quickstudy' has no attribute 'nowhere'"):
        _ = quickstudy.nowhere  # type: ignore[attr-defined]


def test_importing_quickstudy_does_not_import_httpx() -> None:
    code = "import sys, quickstudy; assert 'httpx' not in sys.modules; quickstudy.Client; assert 'httpx' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_deprecated_name_warns_once() -> None:
    code = "from service.client import Client, AsyncClient, QuickstudyError; import service.client, quickstudy; "
    code += "assert Client is quickstudy.Client and service.client.__all__ == quickstudy.__all__"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (
        done.stderr == "<string>:1: DeprecationWarning: service.client is now quickstudy: write `from quickstudy import Client`\n"
    )
