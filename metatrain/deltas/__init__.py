"""Deltas: the small sets of parameters that adaptation moves, one file for each kind.

`kind.py` has the interface of a kind, `sites.py` the layers that a kind can act on, and `scope.py` the way a delta is passed to the
modules of one call.
"""

from metatrain.deltas.bottleneck import BottleneckConfig
from metatrain.deltas.head import HeadConfig
from metatrain.deltas.ia3 import IA3Config
from metatrain.deltas.kind import DeltaConfig, DeltaKind, build
from metatrain.deltas.lora import LoRA, LoRAConfig
from metatrain.deltas.prefix import PrefixConfig
from metatrain.deltas.prompt import PromptConfig
from metatrain.deltas.scope import Delta, delta_scope

__all__ = [
    "BottleneckConfig",
    "Delta",
    "DeltaConfig",
    "DeltaKind",
    "HeadConfig",
    "IA3Config",
    "LoRA",
    "LoRAConfig",
    "PrefixConfig",
    "PromptConfig",
    "build",
    "delta_scope",
]
