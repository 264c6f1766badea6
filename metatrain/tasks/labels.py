"""Labels are words too: `card_arrival` says what its examples have in common."""

import re


def label_words(label: str) -> str:
    """The words of a label: names in snake_case, kebab-case, (ASCII) camelCase, paths and dotted names are taken apart. A label
    that nothing would be left of stays as it is.

    Adapters made with label words depend on this: a change here is a new `ID_FORMAT` in `worker.ledger.ids`.
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", label)
    return " ".join(re.split(r"[\s_\-/:.]+", apart)).strip() or label
