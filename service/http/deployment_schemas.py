"""Response bodies that describe a deployment: its initializations, its readiness and a tenant's usage."""

from typing import Literal

from pydantic import BaseModel, Field

from service.http.schemas import example_body

Missing = Literal["worker", "redis", "cache", "predictor", "service", "encryption_key"]


class InPartsView(BaseModel):
    more_than: int = Field(
        description="a support set with more rows than this (examples, and label words if used) is split into parts of this size"
    )
    objective: dict[str, float] = Field(description="weight of each term of the objective for such a support set")
    most: int = Field(description="at most so many parts get `steps` inner steps each")


class InitializationView(BaseModel):
    name: str = Field(description="value of `initialization` in a request to adapt")
    digest: str = Field(description="digest of the initialization's content")
    base_model: str
    delta: dict[str, object] = Field(
        description="the parameters that adaptation moves: kind and options, such as LoRA and its rank"
    )
    algorithm: str = Field(description="the meta-learning algorithm that produced the initialization")
    steps: int = Field(description="inner steps, unless `steps_by_shots` or `hard_steps` says otherwise")
    steps_by_shots: dict[int, int] = Field(description="inner steps from this many examples per label on, instead of `steps`")
    hard_steps: dict[str, int | float] | None = Field(
        description="use `steps` inner steps for a support set with at least `shots` examples per label and a leave-one-out "
        "accuracy below `below`; null: no such rule"
    )
    optimizer: str = Field(description="optimizer of the inner loop")
    objective: dict[str, float] = Field(description="weight of each term of the inner loop's objective")
    in_parts: InPartsView | None = Field(
        description="the rule for support sets that are too large for one step; null: no separate rule"
    )
    temperature: float = Field(description="softmax temperature of the cosine logits")
    max_length: int = Field(description="longest input, in tokens; longer ones are truncated")


class InitializationList(BaseModel):
    model_config = example_body(initializations=[])

    initializations: list[InitializationView]


class Alive(BaseModel):
    model_config = example_body(status="alive")

    status: Literal["alive"] = Field(description="always `alive`: the process answers, and its predictors work")


class Readiness(BaseModel):
    model_config = example_body(status="ready", missing=[], initializations_missing=[])

    status: Literal["ready"]
    missing: list[Missing] = Field(description="empty; in the problem of a 503, the parts that are missing")
    initializations_missing: list[str] = Field(
        description="digests of initializations that unfinished jobs need, and that are neither stored nor loaded by this service"
    )


class UsageView(BaseModel):
    model_config = example_body(
        tenant="default",
        adapters=3,
        aliases=1,
        bytes=1_805_652,
        example_bytes=2_391,
        jobs=1,
        requests_this_minute=12,
        streams=1,
        bodies_bytes=0,
        adaptations=41,
        predictions=20_410,
        limits={
            "MAX_ADAPTERS": 1000,
            "MAX_ADAPTER_BYTES": 700_000_000,
            "MAX_EXAMPLE_BYTES": 100_000_000,
            "MAX_JOBS": 500,
            "MAX_ALIASES": 1000,
            "MAX_REQUESTS_A_MINUTE": 60_000,
            "MAX_STREAMS": 100,
            "MAX_TENANT_BODIES_BYTES": 32_000_000,
        },
    )

    tenant: str
    adapters: int = Field(description="adapters on record, whatever their status")
    aliases: int
    bytes: int = Field(description="bytes of the weights that are ready, plus an upper bound for those still being adapted")
    example_bytes: int = Field(description="bytes of the examples on record, whatever their adapter's status")
    jobs: int = Field(description="jobs that are queued or running")
    requests_this_minute: int = Field(description="requests in the current minute of the clock, as the record server tells time")
    streams: int = Field(description="event streams and requests that wait for a job, open now in the process that answers")
    bodies_bytes: int = Field(description="bytes of request bodies that the process that answers holds now")
    adaptations: int = Field(description="jobs accepted since the records began")
    predictions: int = Field(description="inputs answered since the records began")
    limits: dict[str, int] = Field(
        description="the limits that hold for the tenant, its own ones or the defaults, by the name of their setting; 0: no limit"
    )
