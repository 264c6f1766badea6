"""Deltas: the small sets of parameters that adaptation trains, one file for each kind.

`kind.py` defines the interface of a kind, `sites.py` finds the layers on which a kind can act, and `scope.py` passes a delta to the
modules of a model for the duration of one call.
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
