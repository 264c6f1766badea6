"""Probe three deltas on the model in a folder, and print after each whether PEFT is imported.

It is started with `python -m tests.probing FOLDER`.


The first delta is the one that tests/metatrain/serving/test_probe_cache.py has probed before.
"""

import sys

import torch

from metatrain.deltas import LoRAConfig
from metatrain.models.loading import load_base
from metatrain.serving.probe_cache import probe_once

if __name__ == "__main__":
    base = load_base(sys.argv[1], precision="float32", device=torch.device("cpu"))
    for rank in (2, 1, 3):
        probe_once(base, base.attach(LoRAConfig(rank=rank, alpha=4, targets=("query",))))
        print("peft" in sys.modules)
