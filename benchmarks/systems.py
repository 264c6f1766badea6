"""The systems that accuracy is compared between, each as: a support set and query texts in, predicted labels and seconds out."""

import contextlib
import importlib.metadata
import io
import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from metatrain.inner.encoded import Encoded
from metatrain.models import source
from metatrain.tasks.episodes import Episode
from metatrain.tasks.labels import label_words

Pairs = Sequence[tuple[str, int]]
SETFIT_VERSION = importlib.metadata.version("setfit")


@dataclass(frozen=True)
class Answer:
    """Predicted class indices of the queries, and seconds from the support set to a model that can answer."""

    predicted: list[int]
    seconds: float


def linear_probe(encoded: Encoded, support: Pairs, queries: Sequence[str]) -> Answer:
    """Logistic regression (scikit-learn's defaults) on frozen features."""
    from sklearn.linear_model import LogisticRegression

    began = time.perf_counter()
    features = encoded.features([text for text, _ in support]).cpu().numpy()
    model = LogisticRegression(max_iter=1000).fit(features, [c for _, c in support])
    seconds = time.perf_counter() - began
    return Answer([int(c) for c in model.predict(encoded.features(queries).cpu().numpy())], seconds)


def setfit(support: Pairs, queries: Sequence[str], *, iterations: int | None = None) -> Answer:
    """SetFit with its own defaults (one epoch over all pairs, batches of 16; or over `iterations` pairings an example) from the
    same base model, which it loads for each task; loading is not counted. Matrix products are in bfloat16, as ours: its losses
    agree to four digits and it takes two thirds of the time."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    precision = torch.get_float32_matmul_precision()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import datasets
        import setfit as peer

        datasets.disable_progress_bars()
        model = peer.SetFitModel.from_pretrained(str(source.locate(source.DEFAULT_MODEL)))
        data = datasets.Dataset.from_dict({"text": [t for t, _ in support], "label": [c for _, c in support]})
        quiet: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "show_progress_bar": False}
        if iterations is not None:
            quiet["num_iterations"] = iterations
        arguments = peer.TrainingArguments(output_dir="runs/setfit", batch_size=16, num_epochs=1, **quiet)
        trainer = peer.Trainer(model=model, args=arguments, train_dataset=data)
        torch.set_float32_matmul_precision("medium")
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        torch.set_float32_matmul_precision(precision)
        return Answer([int(c) for c in model.predict(list(queries))], seconds)


def with_label_words(episode: Episode) -> Episode:
    """As `options.label_words` of a request."""
    words = tuple((label_words(label), c) for c, label in enumerate(episode.labels))
    return replace(episode, support=episode.support + words)


def accuracy(answer: Answer, episode: Episode) -> float:
    return float(np.mean([p == c for p, (_, c) in zip(answer.predicted, episode.query, strict=True)]))
