"""`POST /adapters/{adapter_id}/score`: measure an adapter on labelled examples that it has not seen."""

from dataclasses import asdict

from fastapi import APIRouter, Depends, Request

from service.errors import AdapterNotReady, InvalidRequest, UnknownAdapter
from service.field_checks import SEEN_TEXT, check_count
from service.http.auth import needs
from service.http.openapi import BODY_ERRORS, ROUTE_ERRORS, problems
from service.http.route import TenantRoute
from service.http.schemas import AdapterId, LabelScore, ScoreAnswer
from service.http.state import State, Tenant
from service.http.tenant_threads import in_thread
from service.http.views import get_record
from service.kinds.text_classification import ScoreRequest, TextClassification, best_labels, check_example
from service.predicting.answering import answer_parts
from service.predicting.scoring import score

router = APIRouter(route_class=TenantRoute, tags=["predictions"], dependencies=[Depends(needs("predict"))])


@router.post(
    "/adapters/{adapter_id}/score",
    responses=problems(*ROUTE_ERRORS, *BODY_ERRORS, UnknownAdapter, AdapterNotReady),
)
async def score_adapter(
    adapter_id: AdapterId, request: ScoreRequest, connection: Request, state: State, tenant: Tenant
) -> ScoreAnswer:
    """Predict labelled examples and return the accuracy, F1, confusion and mistakes.

    Examples are predicted in groups of MAX_INPUTS, and each group counts as one request towards MAX_REQUESTS_A_MINUTE.
    """
    check_count("examples", len(request.examples), 1, state.settings.max_examples, "examples")
    for i, example in enumerate(request.examples):
        check_example(f"examples[{i}]", example, state.settings)
    record = await in_thread(get_record, adapter_id, state, tenant)
    if record.summary.kind != TextClassification.name:
        raise InvalidRequest("adapter_id", f"an adapter of kind {TextClassification.name}", record.summary.kind)
    labels = set(record.summary.labels)
    for i, example in enumerate(request.examples):
        if example.label not in labels:
            raise InvalidRequest(f"examples[{i}].label", "one of the adapter's labels", example.label)
    texts, most = [example.input for example in request.examples], state.settings.max_inputs
    parts = [texts[start : start + most] for start in range(0, len(texts), most)]
    if len(parts) > 1:
        await state.meter.count_requests(tenant, len(parts) - 1)  # less 1, because authentication has already counted one
    record, answers = await answer_parts(adapter_id, parts, connection, state, tenant)
    empty = [part * most + position for part, answer in enumerate(answers) for position in answer.empty]
    if empty:
        raise InvalidRequest(f"examples[{empty[0]}].input", SEEN_TEXT, texts[empty[0]])
    scores = score([example.label for example in request.examples], [label for answer in answers for label in best_labels(answer)])
    return ScoreAnswer(
        adapter_id=adapter_id,
        digest=str(record.digest),
        examples=len(texts),
        accuracy=scores.accuracy,
        macro_f1=scores.macro_f1,
        labels={label: LabelScore(**asdict(of_label)) for label, of_label in scores.labels.items()},
        confusion=scores.confusion,
        mistakes=scores.mistakes,
    )
