"""`make bench-predict`: measure batches for many adapters against other ways to run the model.

The model is MiniLM with LoRA (r=8 on query and value, PEFT's default). The rows are texts of the shipped task set and, where
`--data` has it, of BANKING77; both are of mixed length. They belong to 1 to 64 adapters in turn. Every system gets the same token
ids:

- transformers: the hidden states of the bare model, as transformers runs it, padded to the longest row;
- ONNX Runtime and torch.compile (with freezing): the same, with as many threads;
- sentence-transformers: `encode` of the texts, with its tokenization and pooling;
- matrix products alone: the linear layers of the model for the real tokens, and nothing else, which is the floor;
- bare packed: our features of the bare model, without delta and head;
- quickstudy: probabilities as lists, from the bank with the delta and the head of the row's adapter; heads have 2 to 150 classes;
- PEFT adapter_names: only features, in PEFT's own mixed batches;
- PEFT set_adapter: only features, one adapter at a time, each with all of its rows.

The systems take turns in every round, so that a busy moment of the machine affects all of them. A reported ratio is the median of
the ratios of the rounds. ONNX Runtime runs in float32 only.
"""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.record import Row, write
from benchmarks.runtimes import Call, Runtimes
from metatrain.artifacts.adapter import Adapter, AdapterMetadata
from metatrain.deltas import LoRA, LoRAConfig
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.models.precision import Precision
from metatrain.serving.bank import Bank, pack
from metatrain.tasks.table import STARTER, read_table

PADDED, BARE, OURS = "transformers, padded", "bare packed", "quickstudy"
ROWS, ADAPTERS, CLASSES = (32, 64, 256), (1, 4, 16, 64), (2, 5, 20, 77, 150)
PEFT_ADAPTERS = (1, 16)
REFERENCES = (PADDED, "ONNX Runtime, padded", "torch.compile, padded", "matrix products alone")
BANKING = "banking77/full.jsonl.gz"


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--precision", "precisions", type=click.Choice(["float32", "bfloat16"]), multiple=True)
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--rows", "row_counts", type=int, multiple=True, help="Rows of a batch.")
@click.option("--without", type=click.Choice(["ONNX Runtime", "torch.compile", "sentence-transformers", "PEFT"]), multiple=True)
def main(rounds: int, precisions: tuple[Precision, ...], data: Path, row_counts: tuple[int, ...], without: tuple[str, ...]) -> None:
    rows: list[Row] = []
    for precision in precisions or ("float32", "bfloat16"):
        base = load_base(precision=precision, attention="auto")
        adapters = [_adapter(base, seed) for seed in range(max(ADAPTERS))]
        bank = Bank(base, [base.attach(LoRAConfig())], 2**28)
        for seed, adapter in enumerate(adapters):
            bank.put(str(seed), pack(adapter, base))
        runtimes = Runtimes(base, without=without)
        peft = None if "PEFT" in without else _peft(base, precision, adapters)
        for name, texts in _texts(data).items():
            for count in row_counts or ROWS:
                ids = base.inputs.encode([texts[(17 * i) % len(texts)] for i in range(count)])
                systems = {system: prepare(ids) for system, prepare in runtimes.systems.items()}
                systems |= _ours(base, bank, ids)
                if peft is not None:
                    systems |= _peft_systems(base, peft, ids)
                places = count * max(map(len, ids))
                case = f"{count} rows of {name}, {precision}"
                rows += _measured(f"{case} ({sum(map(len, ids))} tokens, {places} padded)", systems, rounds)
    print(f"\nwrote {write('predict', rows, rounds=rounds)}")


def _texts(data: Path) -> dict[str, list[str]]:
    """Return the texts of the rows by the name of their source."""
    found = {"the shipped tasks": read_table(STARTER)}
    if (data / BANKING).is_file():
        found["BANKING77"] = read_table(data / BANKING)
    else:
        print(f"no rows of BANKING77, because {data / BANKING} is absent")
    return {name: [text for texts in table.texts.values() for text in texts] for name, table in found.items()}


def _adapter(base: Base, seed: int) -> Adapter:
    classes, generator = CLASSES[seed % len(CLASSES)], torch.Generator().manual_seed(seed)
    labels = tuple(str(c) for c in range(classes))
    metadata = AdapterMetadata(
        initialization_digest="", base_weights_sha256=base.spec.weights_sha256, delta=LoRAConfig(), scale=16.0, labels=labels
    )
    theta = base.attach(LoRAConfig()).initial(generator, b_std=0.05)
    head = torch.nn.functional.normalize(torch.randn(classes, base.feature_size, generator=generator), dim=-1)
    return Adapter(metadata, theta, {"head.weight": head, "head.bias": torch.zeros(classes)})


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


def _ours(base: Base, bank: Bank, ids: Sequence[Any]) -> dict[str, Call]:
    def answers(count: int) -> Call:
        keys = [str(i % count) for i in range(len(ids))]
        return lambda: bank.answers(keys, ids)

    found: dict[str, Call] = {BARE: lambda: base.features(None, base.collate(ids))}
    return found | {f"{OURS}, {count} adapters": answers(count) for count in ADAPTERS if count <= len(ids)}


def _peft_systems(base: Base, peft: Any, ids: Sequence[Any]) -> dict[str, Call]:
    found: dict[str, Call] = {}
    for count in PEFT_ADAPTERS:
        keys = [str(i % count) for i in range(len(ids))]
        found[f"PEFT adapter_names, {count} adapters"] = partial(_peft_features, base, peft, ids, keys)
        found[f"PEFT set_adapter, {count} adapters"] = partial(_peft_one_by_one, base, peft, ids, keys)
    return found


def _peft_features(base: Base, peft: Any, ids: Sequence[Any], names: Sequence[str] | None) -> Tensor:
    """Compute PEFT's features of rows, in our buckets of similar length.

    `names`: the adapter of each row; None for the one that is set.
    """
    batch = base.inputs.collate(ids)
    parts = []
    for bucket in batch.parts:
        which = {} if names is None else {"adapter_names": [names[i] for i in bucket.rows.tolist()]}
        hidden = peft(**bucket.arguments(0), **which).last_hidden_state
        parts.append(bucket.pooled(hidden.to(torch.promote_types(hidden.dtype, torch.float32)), batch.pooler))
    return torch.cat(parts)


def _peft_one_by_one(base: Base, peft: Any, ids: Sequence[Any], names: Sequence[str]) -> None:
    for name in dict.fromkeys(names):
        peft.set_adapter(name)
        _peft_features(base, peft, [row for row, own in zip(ids, names, strict=True) if own == name], None)


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
        median = statistics.median(values)
        rows.append(Row(case, name, "median", median, "ms"))
        shown.append([name, f"{median:.1f} ms"])
        for other in (name for name in REFERENCES if name in times):
            ratio = statistics.median(a / b for a, b in zip(times[other], values, strict=True))
            rows.append(Row(case, name, f"speed over {other}", ratio, ""))
            shown[-1].append(f"{ratio:.2f}")
    print("\n" + case + "   median and speed over: " + " · ".join(name for name in REFERENCES if name in times))
    for line in shown:
        print(f"  {line[0]:<34} {line[1]:>10}   " + "  ".join(line[2:]))
    assert all(math.isfinite(row.value) for row in rows)
    return rows


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
