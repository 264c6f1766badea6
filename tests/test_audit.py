"""`make lint` fails for a package with a known vulnerability, and says so where that cannot be known."""

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
    """A server that speaks as OSV does, and knows what is vulnerable by name."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = json.dumps(vulnerable.get(asked["package"]["name"], {})).encode()
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


def audited(folder: Path, url: str, *more: str) -> tuple[int, str]:
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
        code, said = audited(tmp_path, url)
    assert code == 1 and "VULNERABLE: unsafe-one 2.0: OSV-7" in said and "audited 2 packages" in said
    with database({}) as url:
        assert audited(tmp_path, url) == (0, "audited 2 packages\n")


def test_out_of_reach_it_says_so_and_fails_only_where_it_is_required(tmp_path: Path) -> None:
    for more, expected in (((), 0), (("--required",), 2)):
        code, said = audited(tmp_path, "http://127.0.0.1:9/v1/query", *more)
        assert code == expected and said.startswith("NOT AUDITED: ") and "VULNERABLE" not in said
    with database({}, status=500) as url:
        code, said = audited(tmp_path, url)
    assert code == 0 and said.startswith("NOT AUDITED: ")


def test_lint_audits_what_is_installed() -> None:
    assert "$(BIN)/python .ci/audit.py" in (ROOT / "Makefile").read_text()
