"""The peers in the accuracy benchmarks: a linear probe and SetFit.

Each is a function that takes a support set and query texts, and returns the predicted classes and the seconds of training.
"""

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
    """Predicted class indices of the queries, and the seconds of training on the support set."""

    predicted: list[int]
    seconds: float


def linear_probe(encoded: Encoded, support: Pairs, queries: Sequence[str]) -> Answer:
    """Train scikit-learn's logistic regression on frozen features, and predict the queries.

    All settings are scikit-learn's defaults, except for a limit of 1,000 iterations.
    """
    from sklearn.linear_model import LogisticRegression

    began = time.perf_counter()
    features = encoded.features([text for text, _ in support]).cpu().numpy()
    model = LogisticRegression(max_iter=1000).fit(features, [c for _, c in support])
    seconds = time.perf_counter() - began
    return Answer([int(c) for c in model.predict(encoded.features(queries).cpu().numpy())], seconds)


def setfit(support: Pairs, queries: Sequence[str], *, iterations: int | None = None) -> Answer:
    """Train SetFit from our base model for one epoch in batches of 16, and predict the queries.

    Other settings are SetFit's defaults. `iterations`: the number of pairings for each example; None uses all pairs of examples.
    Every call loads the base model again; the returned seconds exclude this. Matrix products are in bfloat16, as in ours. With
    them, SetFit's losses agree with float32 to four digits, and training takes two thirds of the time.
    """
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
    """Return the episode with label words added to its support set, as the option `label_words` does."""
    words = tuple((label_words(label), c) for c, label in enumerate(episode.labels))
    return replace(episode, support=episode.support + words)


def accuracy(answer: Answer, episode: Episode) -> float:
    """Return the share of the episode's queries whose predicted class is right."""
    return float(np.mean([p == c for p, (_, c) in zip(answer.predicted, episode.query, strict=True)]))
