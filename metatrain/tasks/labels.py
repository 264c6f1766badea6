"""Split labels into words, because a label such as `card_arrival` describes its examples."""

import re


def label_words(label: str) -> str:
    """Split a label into words: snake_case, kebab-case, ASCII camelCase, paths and dotted names.

    A label without any words, such as `__`, is returned unchanged. Adapters made with label words depend on this function: if you
    change it, increase `ID_FORMAT` in `worker.ledger.ids`.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", label)
    return " ".join(re.split(r"[\s_\-/:.]+", spaced)).strip() or label
