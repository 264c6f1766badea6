"""What a request may hold. Every check names the field, what was expected and what came."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metatrain.tasks.labels import label_words
from service.errors import BodyTooLarge, InvalidRequest, problem
from service.http.schemas import AdaptRequest, Example, Options, PredictRequest, ScoreRequest
from service.settings import ServiceSettings
from worker.ledger.aliases import is_alias


def check_adapt(request: AdaptRequest, settings: ServiceSettings) -> None:
    """Raises InvalidRequest for the first thing that is wrong."""
    check_support(request.support, request.options, settings)
    check_notes(request.name, request.tags)
    check_ttl(request.ttl_seconds, settings)


def check_support(
    support: Sequence[Example], options: Options, settings: ServiceSettings, before: Sequence[tuple[str, str]] = ()
) -> None:
    """`before`: the (input, label) pairs that these examples are to stand beside. Raises InvalidRequest."""
    least, most = (1 if before else 2), settings.max_examples - len(before)
    if not least <= len(support) <= most:
        beside = f" beside the adapter's {len(before)}" if before else ""
        raise InvalidRequest("support", f"{least} to {most} examples{beside}", f"{len(support)} examples")
    seen = {text: ("the adapter", label) for text, label in before}
    for i, example in enumerate(support):
        _check_example(f"support[{i}]", example, settings)
        place, label = seen.setdefault(example.input, (f"support[{i}]", example.label))
        if label != example.label:
            expected = f"{label!r} as in {place}, which has the same input (one label per example; multi-label is not supported)"
            raise InvalidRequest(f"support[{i}].label", expected, example.label)
    labels = {example.label for example in support} | {label for _, label in before}
    if not 2 <= len(labels) <= settings.max_labels:
        raise InvalidRequest("support", f"2 to {settings.max_labels} different labels", f"{len(labels)}")
    if options.label_words:
        _check_label_words(sorted(labels), seen)


def check_notes(name: str | None, tags: Sequence[str] | None) -> None:
    """Raises InvalidRequest. Their lengths are the schema's."""
    if name is not None:
        _check_text("name", name, len(name))
    for i, tag in enumerate(tags or ()):
        _check_text(f"tags[{i}]", tag, len(tag))


def check_ttl(ttl_seconds: int | None, settings: ServiceSettings) -> None:
    """Raises InvalidRequest."""
    if ttl_seconds is not None and ttl_seconds > settings.max_ttl_seconds:
        raise InvalidRequest("ttl_seconds", f"at most {settings.max_ttl_seconds}", ttl_seconds)


def _check_label_words(labels: list[str], inputs: dict[str, tuple[str, str]]) -> None:
    """No text may stand for two labels: neither two labels' words, nor a label's words and another's input."""
    spoken: dict[str, str] = {}
    for label in labels:
        words = label_words(label)
        other = spoken.setdefault(words, label)
        if other != label:
            raise InvalidRequest("options.label_words", f"labels of different words, not {other!r} and {label!r}", True)
        place, own = inputs.get(words, ("", label))
        if own != label:
            expected = f"no label with the words of another's example, as {label!r} has of {place}"
            raise InvalidRequest("options.label_words", expected, True)


def check_predict(request: PredictRequest, settings: ServiceSettings) -> None:
    """Raises InvalidRequest for the first thing that is wrong."""
    if not 1 <= len(request.inputs) <= settings.max_inputs:
        raise InvalidRequest("inputs", f"1 to {settings.max_inputs} texts", f"{len(request.inputs)} texts")
    for i, text in enumerate(request.inputs):
        _check_text(f"inputs[{i}]", text, settings.max_text_chars)


def check_score(request: ScoreRequest, settings: ServiceSettings) -> None:
    """Raises InvalidRequest for the first thing that is wrong; which labels the adapter has is not known here."""
    if not 1 <= len(request.examples) <= settings.max_examples:
        raise InvalidRequest("examples", f"1 to {settings.max_examples} examples", f"{len(request.examples)} examples")
    for i, example in enumerate(request.examples):
        _check_example(f"examples[{i}]", example, settings)


def check_alias(alias: str) -> None:
    """Raises InvalidRequest for a name that looks like an adapter's id."""
    if not is_alias(alias):
        raise InvalidRequest("alias", "a name that is not of the form of an adapter's id", alias)


def prefer_wait(header: str | None, most: float) -> float:
    """Seconds of `Prefer: wait=N` (RFC 7240), at most `most`; 0 where it is not asked for."""
    for preference in (header or "").split(","):
        name, _, value = preference.partition("=")
        if name.strip().lower() == "wait":
            try:
                seconds = float(value.strip().strip('"'))
            except ValueError:
                seconds = -1.0
            if not 0 <= seconds < float("inf"):
                raise InvalidRequest("Prefer", "wait=SECONDS", header)
            return min(seconds, most)
    return 0.0


def _check_example(field: str, example: Example, settings: ServiceSettings) -> None:
    _check_text(f"{field}.input", example.input, settings.max_text_chars)
    _check_text(f"{field}.label", example.label, settings.max_label_chars)


def _check_text(field: str, text: str, most: int) -> None:
    if not text.strip():
        raise InvalidRequest(field, "a text that is not empty", text)
    if len(text) > most:
        raise InvalidRequest(field, f"at most {most} characters", f"{len(text)} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(field, "Unicode text without lone surrogates", text) from None
    if "\x00" in text:
        raise InvalidRequest(field, "Unicode text without NUL", text)


class BodyLimit:
    """ASGI middleware: 413 as soon as a body is known to be over the limit, whatever its headers say."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        chunks: list[bytes] = []
        received = 0
        size, more = int(stated) if stated.isdigit() else 0, scope["method"] not in ("GET", "HEAD", "DELETE")
        while more and size <= self.most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            received += len(chunks[-1])
            more = message.get("more_body", False)
            size = max(size, received)
        if size > self.most:
            error = BodyTooLarge(f"body: expected at most {self.most} bytes, got {'at least ' if more else ''}{size}")
            await problem(error)(scope, receive, send)
            return
        queue: list[Message] = [{"type": "http.request", "body": b"".join(chunks), "more_body": False}]

        async def replay() -> Message:
            return queue.pop(0) if queue else await receive()

        await self.app(scope, replay, send)
