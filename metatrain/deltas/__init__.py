"""The small sets of parameters that adaptation moves, one file a kind.

`kind.py` says what every kind has, `sites.py` where in a model it can act, and `scope.py` how it reaches the modules of one call.
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
