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


_MANY_SHOTS = 10  # from this mean number of examples of a label on, one more of them does not matter


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

    def support(self, recipes: Sequence[JobRecipe], encoded: Encoded) -> Support[Any]:
        """Encode the examples of the jobs, followed by the words of their labels.

        With `label_words: "auto"` the words are optional: the inner loop decides whether to use them.
        """
        pairs, optional = [], []
        for recipe in recipes:
            class_of = {label: c for c, label in enumerate(recipe.labels)}
            examples = [(text, class_of[label]) for text, label in recipe.support]
            words = [(label_words(label), c) for label, c in class_of.items()]
            is_optional = recipe.label_words == "auto"
            if not recipe.label_words or (is_optional and not _may_help(examples, words, encoded)):
                words = []
            pairs.append(examples + words)
            optional.append(len(words) if is_optional else 0)
        return encoded.support(pairs, optional)

    def baselines(self, base: BaseDescription) -> list[Initialization]:
        from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero

        return [frozen_prototypes(base), lora_from_zero(base)]


def _may_help(examples: Sequence[tuple[str, int]], words: Sequence[tuple[str, int]], encoded: Encoded) -> bool:
    """Return True if the words of labels can be examples, and if one more example of each can matter.

    They cannot if the base model would see the same text with two labels, or nothing of the words of a label.
    """
    if len(examples) >= _MANY_SHOTS * len(words):
        return False
    rows = encoded.rows([[text for text, _ in (*examples, *words)]])
    seen = [encoded.base.inputs.seen(row) for row in rows]
    of_examples, of_words = seen[: len(examples)], seen[len(examples) :]
    class_of = {each.content: c for each, (_, c) in zip(of_examples, examples, strict=True)}
    return all(each.tokens > 0 and class_of.setdefault(each.content, c) == c for each, (_, c) in zip(of_words, words, strict=True))
