"""All Lua files are registered, and Redis gets their code."""

import subprocess
import sys

from worker.ledger import scripts


def test_every_lua_file_is_registered_as_a_script_or_a_shared_part() -> None:
    assert {path.stem for path in scripts.FOLDER.glob("*.lua")} == set(scripts.SHARED)
    parts = {part for parts in scripts.SHARED.values() for part in parts}
    assert {path.stem for path in (scripts.FOLDER / "shared").glob("*.lua")} == parts


def test_a_script_is_its_shared_parts_and_its_own_code_without_the_comments_at_the_top() -> None:
    text = scripts.text("annotate")
    assert text.startswith("\nlocal function note(first)\n") and text.endswith("\nnote(1)\nreturn 1\n")
    assert "-- the next call can then free" in scripts.text("accept")  # comments within the code stay


def test_no_script_is_read_at_import() -> None:
    code = "from worker.ledger import aliases, records, scripts, usage; raise SystemExit(scripts.text.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
