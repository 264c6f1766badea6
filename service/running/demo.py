"""The demo: start a service, adapt to six intents of a support desk, predict, compare with baselines."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from quickstudy import Adaptation, Adapter, Client, QuickstudyError
from quickstudy.commands.progress import AdaptProgress
from tqdm import tqdm

EXAMPLES = Path(__file__).parents[1] / "examples" / "support_desk.jsonl"
START_SECONDS = 120.0
_OWN_REDIS = ("REDIS_URL", "CACHE_URL", "REDIS_PASSWORD_FILE")  # variables that the embedded server takes the place of
Pairs = list[tuple[str, str]]


def read_examples() -> tuple[Pairs, Pairs]:
    """Return (support set, query set) of the example data in this package, as (text, label) pairs."""
    rows = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    parts = {part: [(r["text"], r["label"]) for r in rows if r["part"] == part] for part in ("support", "query")}
    return parts["support"], parts["query"]


def run() -> int:
    """Run the demo and return its exit status: 0 if every step worked, otherwise 1."""
    support, query = read_examples()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="quickstudy-demo-") as data,
            served(Path(data)) as url,
            Client(url, api_key="") as quickstudy,
        ):
            print(f"\nserving on {url}; POST /adapt with {len(support)} examples of {len({label for _, label in support})} intents")
            began = time.perf_counter()
            adapter = quickstudy.adapt(support, on_progress=AdaptProgress())
            seconds = time.perf_counter() - began
            right = _show(quickstudy, adapter, query)
            _compare(quickstudy, support, query, right, seconds, quickstudy.adapter(adapter))
    except (QuickstudyError, RuntimeError, OSError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    return 0


def _show(quickstudy: Client, adapter: Adaptation, query: Pairs) -> int:
    predictions = quickstudy.predict(adapter, [text for text, _ in query])
    print(f"\nPOST /predict with {len(query)} inputs that it has not seen:\n")
    right = 0
    for (text, label), prediction in zip(query, predictions, strict=True):
        is_right = prediction.label == label
        right += is_right
        note = "right" if is_right else f"WRONG, is {label}"
        print(f"  {text[:72]:<72}  {prediction.label:<16} {prediction.probabilities[prediction.label]:>4.0%}  {note}")
    return right


def _compare(quickstudy: Client, support: Pairs, query: Pairs, right: int, seconds: float, state: Adapter) -> None:
    print(f"\n{'on the same examples':<28} {'accuracy':>9} {'POST to ready':>15}")
    print(f"{'default (meta-learned)':<28} {right / len(query):>9.1%} {seconds:>13.2f} s")
    for name, title, words in (
        ("default", "default, without label words", False),
        ("frozen-prototypes", "frozen prototypes", False),
        ("lora-from-zero", "plain LoRA from zero", False),
    ):
        began = time.perf_counter()
        adapter = quickstudy.adapt(support, initialization=name, label_words=words)
        took = time.perf_counter() - began
        predictions = quickstudy.predict(adapter, [text for text, _ in query])
        hits = sum(p.label == label for p, (_, label) in zip(predictions, query, strict=True))
        print(f"{title:<28} {hits / len(query):>9.1%} {took:>13.2f} s")
    stages = ", ".join(f"{stage.replace('_', ' ')} {ms:.0f}" for stage, ms in state.timings.items())
    print(f"\nof the default's time, in milliseconds: {stages}")


@contextmanager
def served(data_dir: Path, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """Run a service with an embedded Redis server and worker during the `with` block. Yield its URL.

    The service is a child process that listens on a free port. Its environment has `settings` in addition, but neither REDIS_URL
    nor CACHE_URL. Raises RuntimeError if the service does not start or stop in time.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = data_dir / "service.log"
    command = [
        sys.executable,
        "-m",
        "service",
        "serve",
        "--port",
        str(port),
        "--data-dir",
        str(data_dir),
        "--tied",
        str(os.getpid()),
    ]
    environment = {name: value for name, value in os.environ.items() if name not in _OWN_REDIS} | dict(settings)
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        with (
            Client(f"http://127.0.0.1:{port}", api_key="") as quickstudy,
            tqdm(desc="starting the service", bar_format="{desc} {elapsed}", disable=None) as bar,
        ):
            deadline = time.monotonic() + START_SECONDS
            while not quickstudy.ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the service did not start:\n{log.read_text()[-3000:]}")
                bar.update()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError("the service did not stop within 30 s") from None
