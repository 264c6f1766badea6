"""`make lint` fails for a package with a known vulnerability, and says if it could not check."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def database(vulnerable: dict[str, Any], status: int = 200) -> Iterator[str]:
    """Run a server with the OSV API and yield its URL. `vulnerable` maps package names to responses."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = json.dumps(vulnerable.get(query["package"]["name"], {})).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def run_audit(folder: Path, url: str, *more: str) -> tuple[int, str]:
    """Run the audit of two packages and return its exit code and output."""
    requirements = folder / "constraints.txt"
    requirements.write_text("# pinned\nsafe-one==1.0\nunsafe-one==2.0\n")
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), str(requirements), "--osv-url", url, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_known_vulnerability_fails(tmp_path: Path) -> None:
    affected = {"package": {"name": "unsafe-one", "ecosystem": "PyPI"}, "ranges": [], "versions": ["2.0"]}
    known = {
        "unsafe-one": {"vulns": [{"id": "OSV-7", "summary": "bad", "affected": [affected], "modified": "2026-01-01T00:00:00Z"}]}
    }
    with database(known) as url:
        code, output = run_audit(tmp_path, url)
    assert code == 1 and "VULNERABLE: unsafe-one 2.0: OSV-7" in output and "audited 2 packages" in output
    with database({}) as url:
        assert run_audit(tmp_path, url) == (0, "audited 2 packages\n")


def test_an_unreachable_database_is_reported_and_fails_only_if_required(tmp_path: Path) -> None:
    for more, expected in (((), 0), (("--required",), 2)):
        code, output = run_audit(tmp_path, "http://127.0.0.1:9/v1/query", *more)
        assert code == expected and output.startswith("NOT AUDITED: ") and "VULNERABLE" not in output
    with database({}, status=500) as url:
        code, output = run_audit(tmp_path, url)
    assert code == 0 and output.startswith("NOT AUDITED: ")


def test_make_lint_runs_the_audit() -> None:
    assert "$(BIN)/python .ci/audit.py" in (ROOT / "Makefile").read_text()
