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


_MOST_SHOTS = 10  # from this mean number of examples of a label on, one more of them does not matter


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
        If it is "auto", they come last too, and are optional; words that would give one text two labels are left out.
        """
        examples: list[tuple[str, str]] = [(text, label) for text, label in recipe.support]
        words = [(label_words(label), label) for label in recipe.labels]
        is_used = recipe.label_words is True or (recipe.label_words == "auto" and _may_help(examples, words))
        return examples + words if is_used else examples

    def support(self, recipes: Sequence[JobRecipe], encoded: Encoded) -> Support[Any]:
        pairs, optional = [], []
        for recipe in recipes:
            class_of = {label: c for c, label in enumerate(recipe.labels)}
            pairs.append([(text, class_of[label]) for text, label in self.training_pairs(recipe)])
            optional.append(len(pairs[-1]) - len(recipe.support) if recipe.label_words == "auto" else 0)
        return encoded.support(pairs, optional)

    def baselines(self, base: BaseDescription) -> list[Initialization]:
        from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero

        return [frozen_prototypes(base), lora_from_zero(base)]


def _may_help(examples: Sequence[tuple[str, str]], words: Sequence[tuple[str, str]]) -> bool:
    """Return True if the words of labels can be examples, and if one more example of each can matter.

    They cannot if a text would then have two labels.
    """
    label_of = dict(examples)
    is_distinct = all(label_of.setdefault(text, label) == label for text, label in words)
    return is_distinct and len(examples) <= _MOST_SHOTS * len(words)
