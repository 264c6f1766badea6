"""The small sets of parameters that adaptation moves, one file a kind."""

from metatrain.deltas.lora import LoRA, LoRAConfig
from metatrain.deltas.scope import Delta, delta_scope

__all__ = ["Delta", "LoRA", "LoRAConfig", "delta_scope"]
