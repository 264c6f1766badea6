"""Checks and warnings for all kinds of task whose examples have one label each.

The stored form of such an example ends with its label.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from metatrain.tasks.normal_form import plain_form
from service.errors import InvalidRequest
from service.http.schemas import Warned
from service.kinds.kind import SeenExample, SeenSupport
from service.warnings import limited, shown_label

_IMBALANCE = 5
"""There is a warning if one label has at least this many times as many examples as another."""


def label_of(example: SeenExample) -> str:
    return str(example.stored[-1])


def check_distinct(support: SeenSupport) -> None:
    """Raise InvalidRequest for a new example that is the same for the model as one with another label."""
    clash = first_clash(support)
    if clash is not None:
        example, other = clash
        why = f"which is the same for the base model ({why_same(example, other, support)})"
        raise InvalidRequest(
            f"{example.place}.label", f"{shown_label(label_of(other))} as in {other.place}, {why}", label_of(example)
        )


def first_clash(support: SeenSupport) -> tuple[SeenExample, SeenExample] | None:
    """Return the first new example that is the same for the model as one with another label, and that one.

    Returns None if there is none. An example that the adapter already has does not count as a new one.
    """
    by_content: defaultdict[object, dict[str, SeenExample]] = defaultdict(dict)
    for example in support.parent:
        by_content[example.seen.content].setdefault(label_of(example), example)
    on_record = {example.stored for example in support.parent}
    for example in support.new:
        same = by_content[example.seen.content]
        same.setdefault(label_of(example), example)
        other = next((each for label, each in same.items() if label != label_of(example)), None)
        if other is not None and example.stored not in on_record:
            return example, other
    return None


def why_same(one: SeenExample, other: SeenExample, support: SeenSupport) -> str:
    """Return why the base model may not see a difference between two examples."""
    if one.seen.truncated or other.seen.truncated:
        return f"it sees only the first {support.inputs.limit}"
    if one.seen.unknown:
        return "it does not know some of their words or characters"
    return "it may not see differences in case, accents, spaces or invisible characters"


def class_warnings(support: SeenSupport) -> Iterator[Warned]:
    """Yield the warnings about labels, and about examples that are the same for the base model."""
    counts = Counter(map(label_of, support.examples))
    single = (
        Warned(field="support", message=f"label {shown_label(label)} has one example")
        for label in sorted(counts)
        if counts[label] == 1
    )
    yield from limited(single, "labels with one example")
    (most, largest), *_, (least, smallest) = counts.most_common()
    if largest >= _IMBALANCE * smallest:
        message = f"imbalance: label {shown_label(most)} has {largest} examples, label {shown_label(least)} has {smallest}"
        yield Warned(field="support", message=message)
    yield from limited(_alike_labels(sorted(counts)), "groups of labels that look alike")
    yield from limited(_same_examples(support), "examples that are the same for the base model as others")


def _alike_labels(labels: Sequence[str]) -> Iterator[Warned]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[plain_form(label)].append(label)
    for group in groups.values():
        if len(group) > 1:
            names = ", ".join(map(shown_label, group[:3])) + (f" and {len(group) - 3} more" if len(group) > 3 else "")
            message = f"the labels {names} differ only in case, spaces, invisible characters or Unicode form: is one label meant?"
            yield Warned(field="support", message=message)


def _same_examples(support: SeenSupport) -> Iterator[Warned]:
    first = {example.seen.content: example for example in reversed(support.examples)}
    repeated = {example.stored for example in support.parent}
    for example in support.new:
        other = first[example.seen.content]
        if other is not example and example.stored not in repeated:
            label = "" if label_of(other) == label_of(example) else ", which has another label"
            message = f"the same for the base model as {other.place}{label} ({why_same(other, example, support)})"
            yield Warned(field=example.place, message=message)
        repeated.add(example.stored)
