"""Text classification over HTTP: labelled texts in, labels with probabilities out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, Field
from quickstudy.tables import is_blank

from metatrain.tasks.labels import label_words
from service.errors import InvalidRequest
from service.field_checks import SEEN_TEXT, check_text
from service.http.schemas import SUPPORT_EXAMPLE, TEXT_PATTERN, Body, Options, Text, Warned, example_body, schema_of
from service.kinds.classes import check_distinct, class_warnings, first_clash, label_of, why_same
from service.kinds.kind import SeenExample, SeenSupport
from service.predicting.interface import Answer
from service.settings import ServiceSettings
from service.warnings import limited, shown_label
from worker.kinds.kind import Canonical


class Example(Body):
    input: Text = Field(description="the text to learn from", examples=["My card was swallowed by the machine"])
    label: Text = Field(description="its label, exactly one", examples=["card_lost"])


class ScoreRequest(Body):
    model_config = example_body(examples=SUPPORT_EXAMPLE[:2])

    examples: Annotated[list[Example], Field(fail_fast=True)] = Field(
        description="inputs with their true labels; each label must be one of the adapter's"
    )


class Prediction(BaseModel):
    label: str = Field(description="the most probable label")
    probabilities: dict[str, float] = Field(description="probability of each label; with `top_k`, only of the most probable ones")


class TextClassification:
    """The HTTP side of text classification, a `service.kinds.kind.HttpKind`."""

    name = "text-classification"
    example = Example
    prediction = Prediction

    def check(
        self, support: Sequence[Example], options: Options, settings: ServiceSettings, before: Sequence[Canonical] = ()
    ) -> None:
        seen = {text: ("the adapter", label) for text, label in before}
        for i, example in enumerate(support):
            check_example(f"support[{i}]", example, settings)
            place, label = seen.setdefault(example.input, (f"support[{i}]", example.label))
            if label != example.label:
                expected = (
                    f"{label!r} as in {place}, which has the same input (one label per example; multi-label is not supported)"
                )
                raise InvalidRequest(f"support[{i}].label", expected, example.label)
        labels = {example.label for example in support} | {label for _, label in before}
        if not 2 <= len(labels) <= settings.max_labels:
            raise InvalidRequest("support", f"2 to {settings.max_labels} different labels", f"{len(labels)}")
        if options.label_words is True:
            _check_label_words(sorted(labels), seen)

    def check_seen(self, support: SeenSupport, options: Options) -> None:
        on_record = {example.stored for example in support.parent}
        labels = set(map(label_of, support.parent))
        for example in support.new:
            if is_blank(label_of(example)) and label_of(example) not in labels:
                raise InvalidRequest(f"{example.place}.label", "a label with visible characters", label_of(example))
            if not example.seen.tokens and example.stored not in on_record:
                raise InvalidRequest(f"{example.place}.input", SEEN_TEXT, example.stored[0])
        check_distinct(support)
        if options.label_words is True:
            _check_seen_label_words(support)

    def warnings(self, support: SeenSupport) -> Iterator[Warned]:
        yield from class_warnings(support)
        yield from _unknown_tokens(support)

    def predictions(self, answer: Answer, top_k: int | None) -> list[BaseModel]:
        predictions: list[BaseModel] = []
        for row, best in zip(answer.outputs, best_labels(answer), strict=True):
            columns = range(len(row)) if top_k is None else sorted(range(len(row)), key=row.__getitem__, reverse=True)[:top_k]
            predictions.append(Prediction(label=best, probabilities={answer.labels[column]: row[column] for column in columns}))
        return predictions

    def document(self, schemas: dict[str, Any], settings: ServiceSettings) -> None:
        text = {"minLength": 1, "maxLength": settings.max_text_chars, "pattern": TEXT_PATTERN}
        fields = schema_of(schemas, Example)["properties"]
        fields["input"] |= text
        fields["label"] |= {**text, "maxLength": settings.max_label_chars}


def check_example(field: str, example: Example, settings: ServiceSettings) -> None:
    """Raise InvalidRequest if an example's text or label is blank, too long or not valid Unicode.

    `field` is the example's path in the request, such as `support[3]`.
    """
    check_text(f"{field}.input", example.input, settings.max_text_chars)
    check_text(f"{field}.label", example.label, settings.max_label_chars)


def _unknown_tokens(support: SeenSupport) -> Iterator[Warned]:
    """Yield warnings about unknown tokens, which are all the same for the base model."""
    tokens, unknown = (sum(getattr(each.seen, name) for each in support.examples) for name in ("tokens", "unknown"))
    if _mostly(unknown, tokens):
        advice = "choose a base model that knows these words or characters"
        yield Warned(field="support", message=f"{unknown} of {tokens} tokens are unknown to the base model: {advice}")
    unseen = (
        Warned(field=f"{each.place}.input", message="the base model sees no token of this text")
        for each in support.new
        if not each.seen.tokens
    )
    yield from limited(unseen, "texts of which the base model sees no token")
    single = (
        Warned(field=f"{each.place}.input", message=f"unknown to the base model: {each.seen.unknown} of {each.seen.tokens} tokens")
        for each in support.new
        if _mostly(each.seen.unknown, each.seen.tokens)
    )
    yield from limited(single, "texts of mostly unknown tokens")


def _mostly(part: int, whole: int) -> bool:
    return 2 * part > whole


def best_labels(answer: Answer) -> list[str]:
    """Return the most probable label of each input."""
    return [answer.labels[max(range(len(row)), key=row.__getitem__)] for row in answer.outputs]


def _check_label_words(labels: list[str], inputs: dict[str, tuple[str, str]]) -> None:
    """Raise InvalidRequest if using label words as examples would give one text two labels.

    The words of a label must differ from the words of every other label, and from every input that has another label. `inputs`
    maps the text of each input to (its place in the request, its label).
    """
    label_by_words: dict[str, str] = {}
    for label in labels:
        words = label_words(label)
        other = label_by_words.setdefault(words, label)
        if other != label:
            raise InvalidRequest("options.label_words", f"labels of different words, not {other!r} and {label!r}", True)
        place, label_of_input = inputs.get(words, ("", label))
        if label_of_input != label:
            expected = f"no label with the words of another's example, as {label!r} has of {place}"
            raise InvalidRequest("options.label_words", expected, True)


def _check_seen_label_words(support: SeenSupport) -> None:
    """Raise InvalidRequest if label words are the same for the model as an example of another label.

    Labels and examples that the adapter already has are never refused.
    """
    on_record = {label_of(example) for example in support.parent}
    labels = sorted({label_of(example) for example in support.examples})
    rows = support.inputs.encode([label_words(label) for label in labels])
    words = [
        SeenExample(f"the words of {shown_label(label)}", (label_words(label), label), support.inputs.seen(row))
        for label, row in zip(labels, rows, strict=True)
    ]
    added = [example for example in words if label_of(example) not in on_record]
    for example in added:
        if not example.seen.tokens:
            raise InvalidRequest(
                "options.label_words", f"labels of which the base model sees a token, not {example.stored[1]!r}", True
            )
    before = [example for example in words if label_of(example) in on_record]
    clash = first_clash(replace(support, parent=(*support.parent, *before), new=(*support.new, *added)))
    if clash is not None:
        example, other = clash
        same = f"{example.place} and {other.place} are the same for it ({why_same(example, other, support)})"
        raise InvalidRequest(
            "options.label_words", f"label words that the base model can tell from other labels' words: {same}", True
        )
