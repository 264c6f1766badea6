"""Arrows go one way: service → worker → metatrain; and what a light process needs brings no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {"metatrain": {"metatrain"}, "worker": {"worker", "metatrain"}, "service": {"service", "worker", "metatrain"}}
FOREIGN = {
    "metatrain": {"redis", "celery", "kombu", "fastapi", "starlette", "uvicorn", "httpx"},
    "worker": {"fastapi", "starlette", "httpx"},
}
TORCH_FREE = ["worker.messages", "worker.records", "worker.store", "worker.keys", "worker.usage", "service.client"]


def imported_packages(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_arrows(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        packages = imported_packages(path)
        assert packages & MAY_IMPORT.keys() <= MAY_IMPORT[package], path
        assert not packages & FOREIGN.get(package, set()), path


@pytest.mark.parametrize("module", TORCH_FREE)
def test_light_modules_bring_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_nothing_reads_pickles() -> None:
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "pickle" not in imported_packages(path), path
            assert "torch.load(" not in text and "trust_remote_code=True" not in text, path
