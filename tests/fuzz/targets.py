"""The kinds of files that are fuzzed: good files to start from, and the functions that read them."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
import yaml
from quickstudy.commands.rows import open_rows
from quickstudy.tables import hints_about

from metatrain.artifacts.adapter import Adapter, AdapterMetadata, adapter_from_bytes, adapter_metadata, adapter_to_bytes
from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.catalog import load_catalog, report_not_taken
from metatrain.artifacts.initialization import load_initialization, save_initialization
from metatrain.artifacts.stored_initialization import initialization_from_bytes, initialization_to_bytes
from metatrain.models.base import Base
from metatrain.models.loading import describe_base
from metatrain.models.source import Hub
from metatrain.tasks.table import STARTER, read_table
from metatrain.training.recipe import ClassList, read_recipe
from metatrain.training.search import draw_candidates, read_space
from metatrain.training.upgrade import read_upgraded
from tests.fuzz.mutations import Mutation, change_header, change_json

ROOT = Path(__file__).resolve().parents[2]
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """One kind of file.

    `seeds`: good files, {path in the folder: content}. A case mutates one of them. `read`: functions that read the case, each from
    the path of the mutated file. `mutations`: those that the format adds. `share`: the relative number of cases.
    """

    kind: str
    seeds: dict[str, bytes]
    read: tuple[Read, ...]
    mutations: tuple[Mutation, ...] = ()
    share: int = 10


def targets(folder: Path, tiny: Base, base_folder: Path) -> list[Target]:
    """Return all kinds of files.

    `folder`: where their seeds are written. `base_folder`: the files of `tiny`.
    """
    return [*_tables(), *_recipes(), _splits(), _initialization(folder, tiny), _weights(tiny), _base_model(base_folder)]


def _tables() -> list[Target]:
    rows = [json.loads(line) for line in STARTER.read_text(encoding="utf-8").splitlines()[:400:40]]
    rows += [{"text": 'He said "hi"; then,\nbye 👋', "label": "greet"}, {"text": "नमस्ते", "label": "greet"}]
    pairs = [(row["text"], row["label"]) for row in rows]
    by_separator = {separator: _written(pairs, separator) for separator in ",;\t"}
    raw = "\n".join(["text\tlabel", *(f"{text.splitlines()[0]}\t{label}" for text, label in pairs)]).encode()
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    read: tuple[Read, ...] = (_adapt, _predict, read_table)
    return [
        Target("csv", {"a.csv": by_separator[","], "b.CSV": by_separator[";"]}, read, share=30),
        Target("tsv", {"a.tsv": raw, "b.tsv": by_separator["\t"]}, read, share=30),
        Target("jsonl", {"a.jsonl": lines}, read, (change_json,), share=30),
        Target("json", {"a.json": json.dumps(rows, indent=1).encode()}, read, (change_json,), share=30),
    ]


def _written(pairs: list[tuple[str, str]], separator: str) -> bytes:
    """Return a table as pandas writes it, with an index."""
    file = io.StringIO()
    csv.writer(file, delimiter=separator).writerows([("", "text", "label"), *((n, *pair) for n, pair in enumerate(pairs))])
    return file.getvalue().encode()


def _adapt(path: Path) -> None:
    with open_rows(str(path), None) as rows:
        for hint in hints_about(rows.examples(None, None)):
            assert len(hint.message) <= 300 and hint.message.isprintable()


def _predict(path: Path) -> None:
    with open_rows(str(path), None) as rows:
        column = rows.text_column(None)
        for line, row in rows.entries:
            rows.text(line, row, column).encode()
            json.dumps(row, ensure_ascii=False).encode()


def _recipes() -> list[Target]:
    shipped = {path.name: path.read_bytes() for path in sorted((ROOT / "metatrain" / "recipes").glob("*.yaml"))}
    spaces = {path.name: path.read_bytes() for path in sorted((ROOT / "metatrain" / "searches").glob("*.yaml"))}
    old = {"name": "tiny", "algorithm": {"name": "maml", "order": "first"}, "inner": {"steps": 2, "steps_by_shots": {1: 0, 2: 2}}}
    old |= {"data": {"train": [{"path": "a.csv"}], "valid": [{"path": "starter", "labels": ["gym*"]}]}, "episodes": {"rows": 90}}
    return [
        Target("recipe", shipped, (_recipe,), share=20),
        Target("search space", spaces, (lambda path: draw_candidates(read_space(path)),), share=12),
        Target("recipe of version 1", {"old.yaml": yaml.safe_dump(old).encode()}, (read_upgraded,), share=12),
    ]


def _recipe(path: Path) -> str:
    return read_recipe(path).digest


def _splits() -> Target:
    content = json.dumps({"1": {"train": ["a", "b"], "test": ["c"]}}).encode()
    read: Read = lambda path: ClassList(file=path.name, id="1", part="train").labels(path.parent)  # noqa: E731  # typed
    return Target("split file", {"splits.json": content}, (read,), (change_json,), share=6)


def _initialization(folder: Path, tiny: Base) -> Target:
    """Return the target of initialization folders.

    A changed file of weights gets the digest that it should have.
    """
    parent = folder / "initializations"
    save_initialization(replace(lora_from_zero(tiny), name="mine"), parent / "mine", tiny.attach(lora_from_zero(tiny).delta))
    names = ("initialization.json", "adapter_config.json", "adapter_model.safetensors", "inner_lr.safetensors")
    seeds = {f"initializations/mine/{name}": (parent / "mine" / name).read_bytes() for name in names}
    described = json.loads(seeds["initializations/mine/initialization.json"])

    def load(path: Path) -> None:
        if path.suffix == ".safetensors":
            digests = {**described["weights_sha256"], path.name: sha256(path.read_bytes()).hexdigest()}
            (path.parent / "initialization.json").write_text(json.dumps({**described, "weights_sha256": digests}))
        load_initialization(path.parent, tiny)

    def load_all(path: Path) -> None:
        load_catalog(tiny, path.parents[1], others_skipped=True)
        report_not_taken(path.parents[1], [tiny])

    return Target("initialization", seeds, (load, load_all), (change_json, change_header), share=30)


def _weights(tiny: Base) -> Target:
    """Return the target of safetensors files: adapters, and initializations as they are stored."""
    init = lora_from_zero(tiny)
    metadata = AdapterMetadata(
        initialization_digest=init.digest,
        base_weights_sha256=tiny.spec.weights_sha256,
        delta=init.delta,
        scale=16.0,
        labels=("a", "é"),
    )
    head = {"head.weight": torch.ones(2, tiny.hidden_size), "head.bias": torch.zeros(2)}

    def read(path: Path) -> None:
        content = path.read_bytes()
        if path.name == "stored.safetensors":
            initialization_from_bytes(content, tiny, init.digest)
        else:
            adapter_metadata(content)
            adapter_from_bytes(content, tiny)

    seeds = {"adapter.safetensors": adapter_to_bytes(Adapter(metadata, init.theta, head))}
    seeds["stored.safetensors"] = initialization_to_bytes(init)
    return Target("safetensors", seeds, (read,), (change_header, change_header), share=30)


def _base_model(base_folder: Path) -> Target:
    """Return the target of base model folders, with the files of sentence-transformers."""
    files = {path.name: path.read_bytes() for path in sorted(base_folder.iterdir()) if path.is_file()}
    files["1_Pooling/config.json"] = json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}).encode()
    files["sentence_bert_config.json"] = json.dumps({"max_seq_length": 64, "do_lower_case": False}).encode()
    modules = ("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling")
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    files["modules.json"] = json.dumps(listed).encode()

    def describe(path: Path) -> None:
        folder = next(parent for parent in path.parents if parent.name == "base")
        describe_base(str(folder), hub=Hub(reachable=False))

    seeds = {f"base/{name}": content for name, content in files.items()}
    return Target("base model", seeds, (describe,), (change_json, change_json), share=8)
