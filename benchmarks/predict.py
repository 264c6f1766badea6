"""`make bench-predict`: measure batches for many adapters against the bare base model and PEFT.

The model is MiniLM with LoRA (r=8 on query and value, PEFT's default). The batches are texts of the shipped task set. Their rows
belong to 1 to 64 adapters in turn. Every system gets the same token ids and computes for each row:

- bare base forward: pooled features, without delta and head;
- quickstudy: probabilities as lists, from the bank with the delta and the head of the row's adapter; heads have 2 to 150 classes;
- PEFT adapter_names: only features, in PEFT's own mixed batches;
- PEFT set_adapter: only features, one adapter at a time, each with all of its rows.

The systems take turns in every round, so that a busy moment of the machine affects all of them. A reported ratio is the median of
the ratios of the rounds.
"""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import click
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.record import Row, write
from metatrain.artifacts.adapter import Adapter, AdapterMetadata
from metatrain.deltas import LoRA, LoRAConfig
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.models.precision import Precision
from metatrain.serving.bank import Bank, pack
from metatrain.tasks.table import STARTER, read_table

BARE, OURS, NAMES, SET = "bare base forward", "quickstudy", "PEFT adapter_names", "PEFT set_adapter"
ROWS, ADAPTERS, CLASSES = (32, 64), (1, 4, 16, 32, 64), (2, 5, 20, 77, 150)


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--precision", "precisions", type=click.Choice(["float32", "bfloat16"]), multiple=True)
def main(rounds: int, precisions: tuple[Precision, ...]) -> None:
    rows: list[Row] = []
    for precision in precisions or ("float32", "bfloat16"):
        base = load_base(precision=precision, attention="auto")
        adapters = [_adapter(base, seed) for seed in range(max(ADAPTERS))]
        bank = Bank(base, [base.attach(LoRAConfig())], 2**28)
        for seed, adapter in enumerate(adapters):
            bank.put(str(seed), pack(adapter, base))
        peft = _peft(base, precision, adapters)
        for batch in ROWS:
            for count in (n for n in ADAPTERS if n <= batch):
                case = f"{batch} rows, {count} adapters, {precision}"
                rows += _measured(case, _systems(base, bank, peft, _ids(base, batch), count), rounds)
    print(f"\nwrote {write('predict', rows, rounds=rounds)}")


def _adapter(base: Base, seed: int) -> Adapter:
    classes, generator = CLASSES[seed % len(CLASSES)], torch.Generator().manual_seed(seed)
    labels = tuple(str(c) for c in range(classes))
    metadata = AdapterMetadata(
        initialization_digest="", base_weights_sha256=base.spec.weights_sha256, delta=LoRAConfig(), scale=16.0, labels=labels
    )
    theta = base.attach(LoRAConfig()).initial(generator, b_std=0.05)
    head = torch.nn.functional.normalize(torch.randn(classes, base.feature_size, generator=generator), dim=-1)
    return Adapter(metadata, theta, {"head.weight": head, "head.bias": torch.zeros(classes)})


def _ids(base: Base, count: int) -> Sequence[Any]:
    texts = [text for class_texts in read_table(STARTER).texts.values() for text in class_texts]
    return base.inputs.encode([texts[(17 * i) % len(texts)] for i in range(count)])


def _peft(base: Base, precision: Precision, adapters: list[Adapter]) -> Any:
    """Return PEFT's model with all adapters loaded. The index of an adapter in `adapters` is its name."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    plain: Any = load_base(precision=precision, attention="auto", device=base.device).model
    config, kind = LoRAConfig(), base.attach(LoRAConfig())
    peft_config = LoraConfig(r=config.rank, lora_alpha=int(config.alpha), target_modules=list(config.targets))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = get_peft_model(plain, peft_config, adapter_name="0")
        for seed, adapter in enumerate(adapters):
            if seed:
                model.add_adapter(str(seed), peft_config)
            set_peft_model_state_dict(model, cast(LoRA, kind).peft.to_peft(adapter.delta), adapter_name=str(seed))
    return model.to(base.dtype).eval()


def _systems(base: Base, bank: Bank, peft: Any, ids: Sequence[Any], count: int) -> dict[str, Callable[[], object]]:
    keys = [str(i % count) for i in range(len(ids))]

    def features(rows: list[int], **which: Any) -> Tensor:
        """Compute PEFT's features of the rows with these indices, in our buckets of similar length."""
        batch = base.inputs.collate([ids[i] for i in rows])
        parts = []
        for bucket in batch.parts:
            if "adapter_names" in which:
                which = {"adapter_names": [keys[rows[i]] for i in bucket.rows.tolist()]}
            hidden = peft(**bucket.arguments(0), **which).last_hidden_state
            parts.append(bucket.pooled(hidden.to(torch.promote_types(hidden.dtype, torch.float32)), batch.pooler))
        return torch.cat(parts)

    def one_by_one() -> None:
        for key in dict.fromkeys(keys):
            peft.set_adapter(key)
            features([i for i, row_key in enumerate(keys) if row_key == key])

    return {
        BARE: lambda: base.features(None, base.inputs.collate(ids)),
        OURS: lambda: bank.answers(keys, ids),
        NAMES: lambda: features(list(range(len(ids))), adapter_names=keys),
        SET: one_by_one,
    }


@torch.no_grad()
def _measured(case: str, systems: dict[str, Callable[[], object]], rounds: int) -> list[Row]:
    times: dict[str, list[float]] = {name: [] for name in systems}
    for call in systems.values():
        call()
    for _ in tqdm(range(rounds), desc=case, leave=False, disable=None):
        for name, call in systems.items():
            began = time.perf_counter()
            call()
            _synchronize()
            times[name].append(1e3 * (time.perf_counter() - began))
    rows, shown = [], []
    for name, values in times.items():
        ratio, median = statistics.median(a / b for a, b in zip(times[BARE], values, strict=True)), statistics.median(values)
        rows += [Row(case, name, "median", median, "ms"), Row(case, name, "speed over the bare base", ratio, "")]
        shown.append(f"{name} {median:.1f} ms ({ratio:.2f})")
    print(f"{case:<34} " + "   ".join(shown))
    assert all(math.isfinite(row.value) for row in rows)
    return rows


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
