"""Warnings about support sets: bounded in number and length, however many examples they are about."""

from collections.abc import Iterable, Iterator

from quickstudy.one_line import shown

from service.http.schemas import Warned

MOST_OF_A_SORT = 10
"""How many warnings of one sort an answer has. One more states the number of the others."""
_LABEL_CHARS = 50


def limited(warnings: Iterable[Warned], sort: str) -> Iterator[Warned]:
    """Yield the first warnings of one sort, and then at most one with the number of the others.

    `sort`: what the warnings are about, such as `labels with one example`.
    """
    more = 0
    for i, warning in enumerate(warnings):
        if i < MOST_OF_A_SORT:
            yield warning
        else:
            more += 1
    if more:
        yield Warned(field="support", message=f"and {more} more: {sort}")


def shown_label(label: str) -> str:
    """Return a label in quotes, shortened."""
    return shown(label, _LABEL_CHARS)
