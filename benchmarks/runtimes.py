"""Other ways to run the bare base model, with which the benchmark of predictions compares.

Each is a function that takes encoded rows and returns a call to time. All get the same token ids, in one batch that is padded to
its longest row, unless they say otherwise.
"""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from metatrain.models import source
from metatrain.models.base import Base
from metatrain.models.loading import load_base

Call = Callable[[], object]


def padded(rows: Sequence[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the token ids and the mask of rows, [B, L], padded to the longest row."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row.ids, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


class Runtimes:
    """The bare base model in other runtimes, loaded once for a precision.

    `without`: the names of systems to leave out.
    """

    def __init__(self, base: Base, *, without: Sequence[str] = ()) -> None:
        self.base = base
        plain = load_base(precision=cast(Any, base.precision), attention="auto", device=base.device)
        self.plain: Any = plain.model
        self.systems: dict[str, Callable[[Sequence[Any]], Call]] = {"transformers, padded": self._transformers}
        if "ONNX Runtime" not in without and base.dtype == torch.float32:
            self._session = _onnx_session(plain)
            self.systems["ONNX Runtime, padded"] = self._onnx_runtime
        if "torch.compile" not in without:
            self._compiled = _compiled(plain)
            self.systems["torch.compile, padded"] = self._torch_compile
        if "sentence-transformers" not in without:
            self._sentences = _sentence_transformer(base)
            self.systems["sentence-transformers encode"] = self._sentence_transformers
        self.systems["matrix products alone"] = self._matrix_products

    def _transformers(self, rows: Sequence[Any]) -> Call:
        ids, mask = padded(rows, self.base.device)
        return lambda: self.plain(input_ids=ids, attention_mask=mask).last_hidden_state

    def _onnx_runtime(self, rows: Sequence[Any]) -> Call:
        ids, mask = (tensor.numpy() for tensor in padded(rows, self.base.device))
        return lambda: self._session.run(None, {"input_ids": ids, "attention_mask": mask})

    def _torch_compile(self, rows: Sequence[Any]) -> Call:
        ids, mask = padded(rows, self.base.device)
        return lambda: self._compiled(ids, mask)

    def _sentence_transformers(self, rows: Sequence[Any]) -> Call:
        """Time `encode` of the texts themselves, with tokenization and pooling, in one batch."""
        texts = [cast(Any, self.base.inputs).tokenizer.decode(row.ids, skip_special_tokens=True) for row in rows]
        return lambda: self._sentences.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)

    def _matrix_products(self, rows: Sequence[Any]) -> Call:
        """Time the products of the model's linear layers alone, for the real tokens of the rows."""
        tokens = sum(map(len, rows))
        layers = [module for name, module in self.plain.named_modules() if isinstance(module, nn.Linear) and "pooler" not in name]
        inputs = {
            width: torch.randn(tokens, width, dtype=self.base.dtype, device=self.base.device)
            for width in {layer.in_features for layer in layers}
        }

        def products() -> None:
            for layer in layers:
                layer(inputs[layer.in_features])

        return products


def _onnx_session(plain: Base) -> Any:
    import onnxruntime

    class States(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return cast(Tensor, cast(Any, plain.model)(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)

    ids, mask = padded(plain.inputs.sample(), plain.device)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "model.onnx")
        shapes = ({0: batch, 1: length}, {0: batch, 1: length})
        torch.onnx.export(States().eval(), (ids, mask), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    assert names == ["input_ids", "attention_mask"], names
    found = torch.from_numpy(session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0])
    expected = cast(Any, plain.model)(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-3, atol=1e-4)
    return session


def _compiled(plain: Base) -> Callable[[Tensor, Tensor], Tensor]:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    torch._dynamo.config.cache_size_limit = 64
    compiled: Any = torch.compile
    model = compiled(plain.model, dynamic=False)

    def states(ids: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, model(input_ids=ids, attention_mask=mask).last_hidden_state)

    return states


def _sentence_transformer(base: Base) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(source.locate(base.spec.model)), device=str(base.device))
    return model.to(base.dtype)
