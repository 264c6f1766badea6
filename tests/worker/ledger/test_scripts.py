"""The Lua files are complete, and what is sent to Redis is their code."""

import subprocess
import sys

from worker.ledger import scripts


def test_every_file_is_a_script_or_a_part_of_one() -> None:
    assert {path.stem for path in scripts.FOLDER.glob("*.lua")} == set(scripts.SHARED)
    parts = {part for parts in scripts.SHARED.values() for part in parts}
    assert {path.stem for path in (scripts.FOLDER / "shared").glob("*.lua")} == parts


def test_a_script_is_its_shared_parts_and_its_own_code_without_the_comment_at_its_head() -> None:
    text = scripts.text("annotate")
    assert text.startswith("\nlocal function note(from)\n") and text.endswith("\nnote(1)\nreturn 1\n")
    assert "-- there may be more of them" in scripts.text("accept")  # comments within the code stay


def test_no_script_is_read_at_import() -> None:
    code = "from worker.ledger import aliases, records, scripts, usage; raise SystemExit(scripts.text.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
