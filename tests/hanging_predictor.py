"""A real predictor process in which every batch hangs.

It is started with `python -m tests.hanging_predictor --listen URL`.
"""

import sys
import threading

from metatrain.serving.bank import Bank
from service.running.commands.predictor import predictor

if __name__ == "__main__":
    Bank.answers = lambda *_: threading.Event().wait()  # type: ignore[assignment,method-assign]
    predictor(sys.argv[1:])
