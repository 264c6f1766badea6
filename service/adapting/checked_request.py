"""From the body of a request to adapt to what is to be adapted, every part checked: the one place where that is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from metatrain.artifacts.initialization import Initialization
from service.errors import InvalidRequest
from service.field_checks import check_count, check_notes, check_ttl
from service.http.schemas import AdaptRequest, ExamplesRequest, Options
from service.http.state import Deployed, ServiceState
from service.kinds.kind import HttpKind
from service.kinds.registry import http_kinds, kind_of
from worker.kinds.kind import Canonical
from worker.kinds.registry import task_kinds
from worker.ledger.messages import JobRecipe
from worker.ledger.notes import Notes


@dataclass(frozen=True)
class CheckedRequest:
    """What is to be adapted: the examples of the request as they are kept, and those that they stand beside.

    `path` and `body` tell requests apart that come with the same Idempotency-Key.
    """

    kind: HttpKind
    own: tuple[Canonical, ...]
    before: tuple[Canonical, ...]
    deployed: Deployed
    init: Initialization
    options: Options
    ttl_seconds: int | None
    notes: Notes
    path: str
    body: BaseModel

    @property
    def recipe(self) -> JobRecipe:
        """All that determines the adapter's weights."""
        support = task_kinds()[self.kind.name].ordered((*self.before, *self.own))
        return JobRecipe(
            initialization=self.init.name,
            initialization_digest=self.init.digest,
            support=support,
            steps=_steps(self.kind.name, support, self.options, self.init),
            seed=self.options.seed,
            label_words=self.options.label_words,
            precision=self.deployed.base.precision,
            kind=self.kind.name,
        )


def checked_adapt(body: AdaptRequest[Any], state: ServiceState) -> CheckedRequest:
    """Check the body of `POST /adapt`. Raises InvalidRequest for the first thing that is wrong."""
    check_count("support", len(body.support), 2, state.settings.max_examples, "examples")
    kind = kind_of(body.support)
    kind.check(body.support, body.options, state.settings)
    notes = _notes(body)
    check_ttl(body.ttl_seconds, state.settings)
    deployed, init = state.initialization(body.initialization, task_kinds()[kind.name], body.base_model)
    own = _kept(kind, body.support)
    return CheckedRequest(kind, own, (), deployed, init, body.options, body.ttl_seconds, notes, "/adapt", body)


def checked_examples(body: ExamplesRequest[Any], parent_id: str, parent: JobRecipe, state: ServiceState) -> CheckedRequest:
    """Check the body of `POST /adapters/{id}/examples`: `parent` is the adapter's recipe. Raises InvalidRequest."""
    kind, before = http_kinds()[parent.kind], parent.support
    deployed, init = state.initialization_of(parent)
    options = _options(parent, body.options, init)
    beside = f" beside the adapter's {len(before)}"
    check_count("support", len(body.support), 1, state.settings.max_examples - len(before), "examples", beside)
    given = kind_of(body.support)
    if given.name != kind.name:
        raise InvalidRequest("support[0]", f"an example of {kind.name}, as the adapter has", given.name)
    kind.check(body.support, options, state.settings, before)
    notes = _notes(body, parent_id)
    check_ttl(body.ttl_seconds, state.settings)
    own, path = _kept(kind, body.support), f"/adapters/{parent_id}/examples"
    return CheckedRequest(kind, own, before, deployed, init, options, body.ttl_seconds, notes, path, body)


def _notes(body: AdaptRequest[Any] | ExamplesRequest[Any], parent: str | None = None) -> Notes:
    check_notes(body.name, body.tags)
    return Notes(body.name, None if body.tags is None else tuple(body.tags), parent=parent)


def _kept(kind: HttpKind, support: Sequence[BaseModel]) -> tuple[Canonical, ...]:
    return tuple(task_kinds()[kind.name].canonical(example.model_dump()) for example in support)


def _options(parent: JobRecipe, given: Options, init: Initialization) -> Options:
    """The parent's options, but for those that are given. A number of steps that its initialization chose for its examples is
    chosen again for more of them."""
    own = Options(seed=parent.seed, label_words=parent.label_words)
    if parent.steps != _steps(parent.kind, parent.support, own, init):
        own = own.model_copy(update={"steps": parent.steps})
    return own.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})


def _steps(kind: str, support: Sequence[Canonical], options: Options, init: Initialization) -> int | None:
    """The inner steps that are asked for, or that the initialization has for these shots; None where it has the support set's own
    accuracy decide. Raises InvalidRequest for steps that could teach nothing."""
    rows, groups = task_kinds()[kind].size(support, label_words=options.label_words)
    if options.steps is None:
        return None if init.inner.asks(rows, groups) else init.inner.steps_for(rows, groups)
    if options.steps and rows == groups and not init.inner.teaches_one_shot(len(support)):
        raise InvalidRequest("options.steps", f"0 for one example of each label with initialization {init.name!r}", options.steps)
    return options.steps
