"""The health check of a predictor's container: `python -m service.predicting.healthcheck URL`.

It greets the predictor at URL as a service does, for a base model that no predictor has. A predictor that is alive answers with
its own base model and closes the connection. Exits with 0 if it does, and otherwise with 1 and a message of one line. Torch-free,
so that it takes a fraction of a second.
"""

import json
import socket
import sys

from service.settings import predictor_address

SECONDS = 3.0
GREETING = {"about": "healthcheck"}
"""The first line of a connection (`service.predicting.wire`). A predictor does not log this one as a mismatch."""


def problem(url: str) -> str | None:
    """Return what is wrong with the predictor at `url`, or None if it is healthy.

    Raises ValueError if `url` is neither unix:///path nor tcp://host:port.
    """
    address = predictor_address(url)
    try:
        with socket.socket(socket.AF_UNIX) if isinstance(address, str) else socket.socket() as connection:
            connection.settimeout(SECONDS)
            connection.connect(address)
            connection.sendall(json.dumps(GREETING).encode() + b"\n")
            with connection.makefile("rb") as answers:
                answer = json.loads(answers.readline())
    except OSError as error:
        return f"the predictor at {url} cannot be reached: {type(error).__name__}"
    except ValueError:
        return f"the predictor at {url} did not answer"
    return None if "about" in answer else f"the predictor at {url} gave another answer than its base model"


def main() -> None:
    try:
        found = problem(sys.argv[1])
    except (IndexError, ValueError):
        found = "expected one argument, unix:///path or tcp://host:port"
    sys.exit(None if found is None else f"error: {found}")


if __name__ == "__main__":
    main()
