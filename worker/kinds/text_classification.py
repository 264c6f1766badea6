"""The task kind `text-classification`: each text has one label.

A prediction gives the probability of each label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metatrain.tasks.labels import label_words
from worker.kinds.kind import Canonical

if TYPE_CHECKING:
    from metatrain.artifacts.initialization import Initialization
    from metatrain.inner.encoded import Encoded
    from metatrain.inner.support import Support
    from metatrain.models.description import BaseDescription
    from worker.ledger.messages import JobRecipe


class TextClassification:
    """The task kind for (text, label) pairs. It implements `worker.kinds.kind.TaskKind`."""

    name = "text-classification"
    readout = "classes"
    default = "default"

    def canonical(self, example: Mapping[str, Any]) -> Canonical:
        return example["input"], example["label"]

    def ordered(self, support: Sequence[Canonical]) -> tuple[Canonical, ...]:
        """Return the pairs sorted by (label, text)."""
        return tuple(sorted(support, key=lambda pair: pair[::-1]))

    def inputs(self, support: Sequence[Canonical]) -> list[Any]:
        return [text for text, _ in support]

    def labels(self, support: Sequence[Canonical]) -> tuple[str, ...]:
        return tuple(sorted({label for _, label in support}))

    def size(self, support: Sequence[Canonical], *, label_words: bool) -> tuple[int, int]:
        labels = len({label for _, label in support})
        return len(support) + labels * label_words, labels

    def training_pairs(self, recipe: JobRecipe) -> list[tuple[str, str]]:
        """Return the (text, label) pairs that the inner loop trains on.

        These are the recipe's examples. If its `label_words` is True, the words of each label are one more example of that label.
        """
        words = [(label_words(label), label) for label in recipe.labels if recipe.label_words]
        return [(text, label) for text, label in recipe.support] + words

    def support(self, recipes: Sequence[JobRecipe], encoded: Encoded) -> Support[Any]:
        pairs = []
        for recipe in recipes:
            class_of = {label: c for c, label in enumerate(recipe.labels)}
            pairs.append([(text, class_of[label]) for text, label in self.training_pairs(recipe)])
        return encoded.support(pairs)

    def baselines(self, base: BaseDescription) -> list[Initialization]:
        from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero

        return [frozen_prototypes(base), lora_from_zero(base)]
