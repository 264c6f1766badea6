"""Check whole adaptation requests. Only this module creates a `CheckedRequest` from a request body.

Bodies are checked in the work pool. What has to be read from Redis is read in the tenant's threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from metatrain.artifacts.initialization import Initialization
from service.errors import InvalidRequest
from service.field_checks import check_count, check_notes, check_text, check_ttl
from service.http.schemas import AdaptRequest, ExamplesRequest, Options
from service.http.state import Deployed, ServiceState
from service.http.tenant_threads import in_thread
from service.kinds.kind import HttpKind
from service.kinds.registry import http_kinds, kind_of
from service.settings import ServiceSettings
from worker.kinds.kind import Canonical
from worker.kinds.registry import task_kinds
from worker.ledger.messages import JobRecipe, LabelWords
from worker.ledger.notes import Notes
from worker.ledger.record import Record


@dataclass(frozen=True)
class CheckedRequest:
    """An adaptation request whose parts have all been checked.

    `new_examples` come from the request body. `parent_examples` come from the existing adapter that the new ones are added to, and
    are empty if there is none. Both are in canonical form, as records store them. `path` and `body` are compared to decide whether
    two requests with the same Idempotency-Key are the same request.
    """

    kind: HttpKind
    new_examples: tuple[Canonical, ...]
    parent_examples: tuple[Canonical, ...]
    deployed: Deployed
    init: Initialization
    options: Options
    ttl_seconds: int | None
    notes: Notes
    path: str
    body: BaseModel

    @property
    def recipe(self) -> JobRecipe:
        """Everything that determines the adapter's weights."""
        support = task_kinds()[self.kind.name].ordered((*self.parent_examples, *self.new_examples))
        return JobRecipe(
            initialization=self.init.name,
            initialization_digest=self.init.digest,
            support=support,
            steps=_steps(self.kind.name, support, self.options, self.init),
            seed=self.options.seed,
            label_words=_setting_of_label_words(self.kind.name, support, self.options),
            precision=self.deployed.base.precision,
            kind=self.kind.name,
        )


async def check_adapt_request(body: AdaptRequest[Any], state: ServiceState, tenant: str) -> CheckedRequest:
    """Check the body of `POST /adapt` and return the checked request.

    Raises InvalidRequest for the first error.
    """
    kind, notes, examples = await state.work.run(tenant, _check_adapt_body, body, state.settings)
    check_text("initialization", body.initialization, len(body.initialization))
    deployed, init = await in_thread(state.initialization, body.initialization, task_kinds()[kind.name], body.base_model)
    return CheckedRequest(kind, examples, (), deployed, init, body.options, body.ttl_seconds, notes, "/adapt", body)


def _check_adapt_body(body: AdaptRequest[Any], settings: ServiceSettings) -> tuple[HttpKind, Notes, tuple[Canonical, ...]]:
    check_count("support", len(body.support), 2, settings.max_examples, "examples")
    kind = kind_of(body.support)
    kind.check(body.support, body.options, settings)
    notes = _notes(body)
    check_ttl(body.ttl_seconds, settings)
    return kind, notes, _canonical(kind, body.support)


async def check_examples_request(
    body: ExamplesRequest[Any], record: Record, parent: JobRecipe, state: ServiceState, tenant: str
) -> CheckedRequest:
    """Check the body of `POST /adapters/{id}/examples` and return the checked request.

    `record` and `parent` are the record and the recipe of the adapter in the path. Raises InvalidRequest for the first error, and
    AdapterNotReady if this deployment does not have the adapter's base model.
    """
    made_from = await in_thread(state.initialization_of, record)
    return await state.work.run(tenant, _check_examples_body, body, record.adapter_id, parent, made_from, state.settings)


def _check_examples_body(
    body: ExamplesRequest[Any],
    parent_id: str,
    parent: JobRecipe,
    made_from: tuple[Deployed, Initialization],
    settings: ServiceSettings,
) -> CheckedRequest:
    kind, parent_examples, (deployed, init) = http_kinds()[parent.kind], parent.support, made_from
    options = _options(parent, body.options, init)
    most, suffix = settings.max_examples - len(parent_examples), f" beside the adapter's {len(parent_examples)}"
    check_count("support", len(body.support), 1, most, "examples", suffix)
    body_kind = kind_of(body.support)
    if body_kind.name != kind.name:
        raise InvalidRequest("support[0]", f"an example of {kind.name}, as the adapter has", body_kind.name)
    kind.check(body.support, options, settings, parent_examples)
    notes = _notes(body, parent_id)
    check_ttl(body.ttl_seconds, settings)
    examples, path = _canonical(kind, body.support), f"/adapters/{parent_id}/examples"
    return CheckedRequest(kind, examples, parent_examples, deployed, init, options, body.ttl_seconds, notes, path, body)


def _notes(body: AdaptRequest[Any] | ExamplesRequest[Any], parent: str | None = None) -> Notes:
    check_notes(body.name, body.tags)
    return Notes(body.name, None if body.tags is None else tuple(body.tags), parent=parent)


def _canonical(kind: HttpKind, support: Sequence[BaseModel]) -> tuple[Canonical, ...]:
    return tuple(task_kinds()[kind.name].canonical(example.model_dump()) for example in support)


def _options(parent: JobRecipe, requested: Options, init: Initialization) -> Options:
    """Return the options of the new adapter: the parent's, overridden by those that the request sets.

    If the initialization chose the parent's number of inner steps, `steps` stays None, so that the initialization chooses again
    for the larger support set.
    """
    options = Options(seed=parent.seed, label_words=parent.label_words)
    if parent.steps != _steps(parent.kind, parent.support, options, init):
        options = options.model_copy(update={"steps": parent.steps})
    return options.model_copy(update={name: getattr(requested, name) for name in requested.model_fields_set})


def _steps(kind: str, support: Sequence[Canonical], options: Options, init: Initialization) -> int | None:
    """Return the requested number of inner steps, or else the initialization's for this support set.

    Returns None if the initialization chooses the number during adaptation, from the accuracy on the support set. Raises
    InvalidRequest if the requested steps could learn nothing, because each label has one example and the objective needs more.
    """
    (rows, groups), (fewest, _) = (task_kinds()[kind].size(support, label_words=used) for used in _label_words(options))
    if options.steps is None:
        planned = {init.inner.steps_for(rows, groups), init.inner.steps_for(fewest, groups)}
        decided_later = len(planned) > 1 or any(init.inner.asks(number, groups) for number in (rows, fewest))
        return None if decided_later else planned.pop()
    if options.steps and fewest == groups and not init.inner.teaches_one_shot(len(support)):
        expected = f"0 for one example of each label with initialization {init.name!r}, or label_words: true with it"
        raise InvalidRequest("options.steps", expected, options.steps)
    return options.steps


def _label_words(options: Options) -> tuple[bool, bool]:
    """Return whether label words may be used, and whether they must be.

    With "auto" the first is true and the second is not, because that is decided during adaptation.
    """
    return bool(options.label_words), options.label_words is True


def _setting_of_label_words(kind: str, support: Sequence[Canonical], options: Options) -> LabelWords:
    """Return the requested setting, or False in place of "auto" for a task kind that has no label words."""
    with_words, without = (task_kinds()[kind].size(support, label_words=used) for used in (True, False))
    return False if options.label_words == "auto" and with_words == without else options.label_words
