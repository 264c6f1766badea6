"""Running the cases of the fuzzer: mutate one file, read it, and judge what comes of it.

A case may be read, or refused by an exception with an exit code, whose message is one short line without control characters. All
else is a fault.
"""

import contextlib
import io
import logging
import random
import signal
import time
import traceback
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from tests.fuzz.mutations import mutated
from tests.fuzz.targets import Target

MOST_CHARACTERS, MOST_SECONDS = 300, 20.0
_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
_BIDIRECTIONAL = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one case.

    `seed`: the seed and the number of the case. `message`: the message of a refusal, or what is wrong with a fault.
    """

    kind: str
    seed: str
    file: str
    outcome: Literal["accepted", "refused", "fault"]
    message: str
    seconds: float


def run_cases(targets: Sequence[Target], folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """Yield the outcomes of `count` cases. Case number n depends only on (seed, n).

    `folder`: holds the files of the current case; after a fault, `folder`/faults has the mutated file.
    """
    by_share = [target for target in targets for _ in range(target.share)]
    for number in range(count):
        case = f"{seed}:{number}"
        rng = random.Random(case)
        yield _run(rng.choice(by_share), rng, folder, case)


def _run(target: Target, rng: random.Random, folder: Path, case: str) -> Outcome:
    for name, content in target.seeds.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    name = rng.choice(sorted(target.seeds))
    content = mutated(rng, target.seeds[name], sorted(target.seeds.values()), target.mutations)
    (folder / name).write_bytes(content)
    messages, wrong = [], ""
    began = time.monotonic()
    for read in target.read:
        try:
            with _quiet(), _limited():
                read(folder / name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also what tokenizers raise if Rust panics
            if not isinstance(getattr(error, "exit_code", None), int):
                wrong = "".join(traceback.format_exception(error))
                break
            messages.append(str(error))
            wrong = wrong or _wrong_with(str(error))
    seconds = time.monotonic() - began
    if wrong:
        kept = folder / "faults" / f"{case.replace(':', '-')}-{Path(name).name}"
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(content)
        return Outcome(target.kind, case, name, "fault", wrong, seconds)
    message = max(messages, key=len, default="")
    return Outcome(target.kind, case, name, "refused" if messages else "accepted", message, seconds)


def _wrong_with(message: str) -> str:
    """Return what is wrong with an error message, or an empty text."""
    if len(message) > MOST_CHARACTERS:
        return f"a message of {len(message)} characters: {message}"
    if any(unicodedata.category(letter) in _UNSAFE or letter in _BIDIRECTIONAL for letter in message):
        return f"a control character in {message!r}"
    return "" if message.strip() else "an empty message"


class _TooSlow(BaseException):
    """Ends a case. Nothing that is read may catch it as its own error."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise _TooSlow if the block takes longer than MOST_SECONDS."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooSlow(f"took more than {MOST_SECONDS:.0f} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard logs, warnings and output: thousands of broken files make many of them."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
