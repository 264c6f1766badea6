"""Parts of the product that plugin packages add.

The error for an unusable part is one line that names its package.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metatrain.errors import PluginError
from metatrain.plugins import with_installed

GROUP = "quickstudy.tests"


class Part:
    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return `install(source, entry_point)`, which creates a package on the import path.

    The package's one module contains the source code, and its metadata contains the entry point.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    number = len(sys.modules)

    def added(source: str, value: str) -> None:
        module = f"quickstudy_plugin_{number}_{len(list(tmp_path.glob('*.py')))}"
        (tmp_path / f"{module}.py").write_text(f"from {__name__} import Part\n{source}\n")
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nextra = {value.format(module)}\n")

    return added


def registry() -> dict[str, Part]:
    return with_installed({"own": Part("own")}, GROUP, Part, lambda _name, make: (make().name, make()))


def test_parts_of_packages_stand_beside_the_products_own(install: Callable[[str, str], None]) -> None:
    install("X = lambda: Part('theirs')", "{}:X")
    assert list(registry()) == ["own", "theirs"]


@pytest.mark.parametrize(
    ("source", "value", "message"),
    [
        ("import nowhere_to_be_found", "{}:X", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("", "{}:X", "cannot be loaded: AttributeError: "),
        ("", "not a reference!!", "cannot be loaded: "),
        ("X = 3", "{}:X", "cannot be loaded: TypeError: 'int' object is not callable"),
        ("def X():\n    raise RuntimeError('two\\nlines')", "{}:X", "cannot be loaded: RuntimeError: two"),
        ("X = lambda: type('Other', (), {'name': 'theirs'})()", "{}:X", "expected a Part, got Other"),
        ("X = lambda: Part('own')", "{}:X", "expected a name of its own, but there is another 'own'"),
    ],
)
def test_a_part_that_cannot_be_used_is_one_line(install: Callable[[str, str], None], source: str, value: str, message: str) -> None:
    install(source, value)
    with pytest.raises(PluginError) as error:
        registry()
    assert f"in {GROUP} of package quickstudy_plugin_" in str(error.value)
    assert message in str(error.value) and "\n" not in str(error.value)
