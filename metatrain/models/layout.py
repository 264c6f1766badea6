"""The reading of a text encoder's folder: how its features are computed, and where its files are.

`modules.json`, which sentence-transformers writes, lists the modules of the model in their order, each with its type and folder. A
function in `MODULES` reads each type of module. What cannot be reproduced exactly is refused, with the name of the module or
setting. A folder without `modules.json` is a transformer; it is pooled as `1_Pooling/config.json` says, or else by the mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from quickstudy.one_line import shown
from quickstudy.tables import repeated

from metatrain.errors import BaseModelError
from metatrain.models.files import is_present, not_loadable, read_json, read_object, read_object_if_present, reason_of
from metatrain.models.modules import ACTIVATIONS, Module, Normalize, Truncate, load_dense, load_layer_norm
from metatrain.models.pooling import PoolingName

_MODULES_FILE = "modules.json"
_MOST_CHARS = 60
_SETTINGS_FILE = "config_sentence_transformers.json"
_POOLING_FOLDER = "1_Pooling"
_TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# The older keys of a pooling, in the order in which sentence-transformers concatenates those that are true.
_OLD_POOLINGS: dict[str, PoolingName] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SENTENCE = "sentence_embedding"


@dataclass(frozen=True)
class Layout:
    """A text encoder as its folder describes it.

    `root`: the folder. `transformer`: the folder of the transformer and its tokenizer. `stated`: True if `modules.json` says all
    this; the features then have to equal those of sentence-transformers. `poolings`: empty if no pooling is stated. `modules` are
    called after the pooling. `max_length`: the maximum number of tokens, None if none is stated. `lower_case`: True if texts are
    converted to lower case. `prompt`: the text before every input. `pool_prompt`: False if its tokens are not pooled.
    """

    root: Path
    transformer: Path
    stated: bool
    poolings: tuple[PoolingName, ...] = ()
    modules: tuple[Module, ...] = ()
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    pool_prompt: bool = True


def read_layout(root: Path) -> Layout:
    """Read how the features of the model in the folder `root` are computed.

    Raises BaseModelError if a file is broken, or if it states something that this package does not reproduce.
    """
    if not is_present(root, _MODULES_FILE):
        implied = _transformer(Layout(root, root, stated=False), "")
        return _pooling(implied, _POOLING_FOLDER) if is_present(root, f"{_POOLING_FOLDER}/config.json") else implied
    layout = Layout(root, root, stated=True)
    for position, (kind, path) in enumerate(_listed(root)):
        if (kind == "Transformer") != (position == 0):
            raise not_loadable(
                root, f"{_MODULES_FILE}: expected one Transformer, as the first module; module {position + 1} is {kind}"
            )
        if kind not in ("Transformer", "Pooling") and not layout.poolings:
            raise not_loadable(root, f"{_MODULES_FILE}: module {kind} ({path}) before the pooling is not supported")
        layout = MODULES[kind](layout, path)
    if not layout.poolings:
        raise not_loadable(root, f"{_MODULES_FILE} lists no Pooling module")
    return _without_final_normalisation(_with_settings(layout))


def _listed(root: Path) -> list[tuple[str, str]]:
    """Return (type, path) of each module that `modules.json` lists.

    Raises BaseModelError if a type is not supported.
    """
    entries = read_json(root, _MODULES_FILE)
    if not isinstance(entries, list) or not entries:
        raise not_loadable(root, f"{_MODULES_FILE}: expected a list of modules")
    found = []
    for position, entry in enumerate(entries, 1):
        fields = entry if isinstance(entry, dict) else {}
        kind, path = fields.get("type"), fields.get("path")
        if not isinstance(kind, str) or not isinstance(path, str):
            raise not_loadable(root, f"{_MODULES_FILE}: module {position} has no type or no path")
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise not_loadable(root, f"{_MODULES_FILE}: module {position}: path {shown(path, _MOST_CHARS)} leaves the folder")
        _check_path(root, position, path)
        if kind not in _TYPES:
            raise not_loadable(root, f"module {kind} ({path}) is not supported; supported: {', '.join(sorted(MODULES))}")
        found.append((_TYPES[kind], path))
    names = [str(entry["name"]) for entry in entries if entry.get("name") is not None]
    if (again := repeated(names)) is not None:  # sentence-transformers keeps only the last module of a name
        raise not_loadable(root, f"{_MODULES_FILE}: expected different names, got {shown(again, _MOST_CHARS)} more than once")
    return found


def _check_path(root: Path, position: int, path: str) -> None:
    """Raise BaseModelError if the system takes no such path.

    It is too long or has a null character, for example. A folder that does not exist is no error here, because a download has no
    empty folders.
    """
    longest_name = "x" * 64  # no shorter than the name of any file that is looked for
    try:
        (root / path / longest_name).stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise not_loadable(
            root, f"{_MODULES_FILE}: module {position}: path {shown(path, _MOST_CHARS)}: {reason_of(error)}"
        ) from error


def _without_final_normalisation(layout: Layout) -> Layout:
    """Leave out normalisations at the end.

    Features are scaled to length 1 in any case (docs/decisions/0019).
    """
    modules = layout.modules
    while modules and isinstance(modules[-1], Normalize):
        modules = modules[:-1]
    return replace(layout, modules=modules)


def _with_settings(layout: Layout) -> Layout:
    """Add the settings of the whole model: the prompt, and the number of features that are kept."""
    settings = read_object_if_present(layout.root, _SETTINGS_FILE)
    found = _Settings(layout.root, _SETTINGS_FILE, settings)
    model_type = settings.get("model_type", "SentenceTransformer")
    if model_type != "SentenceTransformer":
        raise not_loadable(
            layout.root, f"{_SETTINGS_FILE}: model_type {model_type!r} is not supported, expected 'SentenceTransformer'"
        )
    dimensions = found.whole_number("truncate_dim", at_least=1)
    modules = layout.modules if dimensions is None else (*layout.modules, Truncate(dimensions))
    return replace(layout, modules=modules, prompt=_default_prompt(layout.root, settings))


def _default_prompt(root: Path, settings: Mapping[str, Any]) -> str:
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(name, str):
        raise not_loadable(root, f"{_SETTINGS_FILE}: expected prompts by name, and default_prompt_name as one of the names")
    # sentence-transformers has these two names in every model, without a text.
    prompt = {"query": "", "document": "", **prompts}.get(name)
    if name not in {"query", "document", *prompts}:
        raise not_loadable(root, f"{_SETTINGS_FILE}: default_prompt_name {name!r} is not one of the prompts")
    if not isinstance(prompt, str | None):
        raise not_loadable(root, f"{_SETTINGS_FILE}: prompts: expected a text for {name!r}")
    return prompt or ""


@dataclass(frozen=True)
class _Settings:
    """The settings in one JSON file of a model, with checks whose errors name file and key."""

    root: Path
    file: str
    values: Mapping[str, Any]

    def check_keys(self, known: set[str]) -> None:
        for key in sorted(self.values.keys() - known):
            raise not_loadable(self.root, f"{self.file}: unknown setting {key!r}")

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.unexpected(key, "true or false")
        return value

    def whole_number(self, key: str, *, at_least: int) -> int | None:
        value = self.values.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < at_least):
            raise self.unexpected(key, f"a whole number of at least {at_least}")
        return value

    def required_number(self, key: str) -> int:
        value = self.whole_number(key, at_least=1)
        if value is None:
            raise not_loadable(self.root, f"{self.file} lacks the setting {key!r}")
        return value

    def check(self, key: str, allowed: tuple[Any, ...], expected: str) -> None:
        """Raise BaseModelError unless a setting is absent or has one of the allowed values.

        `expected`: these values in words.
        """
        if key in self.values and self.values[key] not in allowed:
            raise self.unexpected(key, expected)

    def unexpected(self, key: str, expected: str) -> BaseModelError:
        return not_loadable(self.root, f"{self.file}: {key}: expected {expected}, got {repr(self.values[key])[:60]}")


def _file_in(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _transformer(layout: Layout, path: str) -> Layout:
    """Read a transformer: its folder, the maximum length, and lower-casing."""
    name = next((name for name in _TRANSFORMER_FILES if is_present(layout.root, _file_in(path, name))), None)
    values = read_object(layout.root, _file_in(path, name)) if name else {}
    found = _Settings(layout.root, _file_in(path, name or ""), values)
    found.check_keys({"max_seq_length", "do_lower_case", *_TRANSFORMER_VALUES, *_TRANSFORMER_OPTIONS, *_UNUSED_SETTINGS})
    for key, (expected, allowed) in _TRANSFORMER_VALUES.items():
        found.check(key, allowed, expected)
    for key in _TRANSFORMER_OPTIONS:
        _check_options(found, key)
    return replace(
        layout,
        transformer=layout.root / path,
        max_length=found.whole_number("max_seq_length", at_least=8),
        lower_case=found.flag("do_lower_case", False),
    )


_TEXT_ALONE = tuple(
    {"text": {"method": "forward", "method_output_name": output}} for output in ("last_hidden_state", ["last_hidden_state"])
)
# The settings of a transformer that decide how its hidden states are computed, and the values that are reproduced, in words and as
# they are. With a modality `message`, texts would pass through a chat template.
_TRANSFORMER_VALUES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "transformer_task": ("'feature-extraction'", ("feature-extraction",)),
    "modality_config": ("text alone, with last_hidden_state and without a chat template", _TEXT_ALONE),
    "module_output_name": ("'token_embeddings'", ("token_embeddings",)),
    "processing_kwargs": ("no options", ({}, None)),
    "tokenizer_name_or_path": ("null", (None,)),
}
# Settings that change no feature of a text which is encoded without a task: how padding is avoided, and what holds only for queries
# or documents of a search.
_UNUSED_SETTINGS = {"unpad_inputs", "query_length", "document_length", "query_expansion"}
_TRANSFORMER_OPTIONS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
# Options of a load that change no feature: precision and attention are settings of this package, padding goes behind every row, and
# no code is run.
_UNUSED_OPTIONS = {
    "attn_implementation",
    "torch_dtype",
    "dtype",
    "padding_side",
    "trust_remote_code",
    "use_cache",
    "add_pooling_layer",
}


def _check_options(found: _Settings, key: str) -> None:
    options = found.values.get(key) or {}
    if not isinstance(options, dict):
        raise found.unexpected(key, "an object")
    for option in sorted(options.keys() - _UNUSED_OPTIONS):
        raise not_loadable(found.root, f"{found.file}: {key}: the option {option!r} is not supported")


def _pooling(layout: Layout, path: str) -> Layout:
    """Read a pooling: its kinds in their order, and whether the prompt is pooled too."""
    if layout.poolings:
        raise not_loadable(layout.root, f"{_MODULES_FILE}: a second Pooling ({path}) is not supported")
    file = _file_in(path, "config.json")
    found = _Settings(layout.root, file, read_object(layout.root, file))
    found.check_keys({"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt", *_OLD_POOLINGS})
    if not found.values:
        raise not_loadable(layout.root, f"{file}: expected pooling_mode, or one of the older pooling_mode_… keys, got no setting")
    if "pooling_mode" in found.values:
        stated = found.values["pooling_mode"]
        names = tuple(stated) if isinstance(stated, list) else (stated,)
    else:
        names = tuple(name for key, name in _OLD_POOLINGS.items() if found.flag(key, False)) or ("mean",)
    known = get_args(PoolingName)
    if not names or any(name not in known for name in names):
        raise found.unexpected("pooling_mode", f"one or several of {', '.join(known)}")
    return replace(layout, poolings=names, pool_prompt=found.flag("include_prompt", True))


def _normalize(layout: Layout, path: str) -> Layout:
    file = _file_in(path, "config.json")  # older versions write none
    found = _Settings(layout.root, file, read_object_if_present(layout.root, file) if path else {})
    _check_names(found)
    return replace(layout, modules=(*layout.modules, Normalize()))


def _dense(layout: Layout, path: str) -> Layout:
    file = _file_in(path, "config.json")
    found = _Settings(layout.root, file, read_object(layout.root, file))
    found.check_keys({"in_features", "out_features", "bias", "activation_function", "use_residual", *_NAME_SETTINGS})
    _check_names(found)
    activation = found.values.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATION_TYPES:
        raise not_loadable(layout.root, f"{file}: activation_function {activation} is not supported")
    dense = load_dense(
        layout.root,
        path,
        in_features=found.required_number("in_features"),
        out_features=found.required_number("out_features"),
        bias=found.flag("bias", True),
        activation=_ACTIVATION_TYPES[activation],
        residual=found.flag("use_residual", False),
    )
    return replace(layout, modules=(*layout.modules, dense))


def _layer_norm(layout: Layout, path: str) -> Layout:
    file = _file_in(path, "config.json")
    found = _Settings(layout.root, file, read_object(layout.root, file))
    found.check_keys({"dimension"})
    norm = load_layer_norm(layout.root, path, features=found.required_number("dimension"))
    return replace(layout, modules=(*layout.modules, norm))


_NAME_SETTINGS = ("module_input_name", "module_output_name")


def _check_names(found: _Settings) -> None:
    """Raise BaseModelError unless a module changes the pooled features, not the hidden states."""
    for key in _NAME_SETTINGS:
        found.check(key, (_SENTENCE, None), f"'{_SENTENCE}'")


def _dropout(layout: Layout, _path: str) -> Layout:
    return layout  # it acts in training only


MODULES: dict[str, Callable[[Layout, str], Layout]] = {
    "Transformer": _transformer,
    "Pooling": _pooling,
    "Normalize": _normalize,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Dropout": _dropout,
}
"""The supported modules by type: functions from the layout so far and the module's path to the layout with the module."""
_HOMES = {
    "Transformer": "base.modules.transformer",
    "Pooling": "sentence_transformer.modules.pooling",
    "Normalize": "base.modules.normalize",
    "Dense": "base.modules.dense",
    "LayerNorm": "sentence_transformer.modules.layer_norm",
    "Dropout": "sentence_transformer.modules.dropout",
}
_TYPES = {
    f"sentence_transformers.{path}.{name}": name
    for name, home in _HOMES.items()
    for path in ("models", f"models.{name}", home, home.rpartition(".")[0], "sentence_transformer.modules")
}
"""The modules by their types in `modules.json`: the paths before and since version 5.4 of sentence-transformers, to a class in its
own file or in the package. A module of the same name in another place, such as a sparse encoder's, computes something else."""
_ACTIVATION_TYPES = {
    name: kind.__name__
    for kind in ACTIVATIONS.values()
    for name in (f"{kind.__module__}.{kind.__name__}", f"torch.nn.{kind.__name__}")
}
