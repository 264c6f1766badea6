"""Measure the time of batches in a bank of adapters, with the code that is on the import path.

    python bank_speed.py API THREADS

Each line of standard input has the form `ROWS ADAPTERS` and requests one batch of ROWS rows, which use ADAPTERS adapters in turn,
on the default base model in float32. The output line contains two times in milliseconds: the time of the batch, and the time of
the bare base model's forward pass on the same rows.
"""

import importlib
import sys
import time

import torch

_CLASSES = (2, 5, 20, 77, 150)
_ADAPTERS = 64
_WORDS = "please move my table booking from today to the late train and send a ticket to this account"


def main() -> None:
    api, threads = importlib.import_module(f"api_{sys.argv[1]}"), int(sys.argv[2])
    torch.set_num_threads(threads)
    base = api.load(None, "sdpa")
    answer = api.bank(base, [({"kind": "lora"}, _CLASSES[i % len(_CLASSES)]) for i in range(_ADAPTERS)])
    words = _WORDS.split()
    texts = [" ".join(words[(7 * i + k) % len(words)] for k in range(4 + i % 13)) for i in range(256)]
    for line in sys.stdin:
        rows, adapters = map(int, line.split())
        ids = api.token_ids(base, texts[:rows])
        began = time.perf_counter()
        answer([i % adapters for i in range(rows)], ids)
        batch_ended = time.perf_counter()
        api.bare(base, ids)
        print(1e3 * (batch_ended - began), 1e3 * (time.perf_counter() - batch_ended), flush=True)


if __name__ == "__main__":
    main()
