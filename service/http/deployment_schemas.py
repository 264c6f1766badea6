"""The shapes of what a deployment says of itself: initializations, readiness, usage."""

from typing import Literal

from pydantic import BaseModel, Field

from service.http.schemas import example_body

Missing = Literal["worker", "redis", "cache", "predictor"]


class InPartsView(BaseModel):
    more_than: int = Field(description="examples, label words among them: that many are taken at each step")
    objective: dict[str, float]
    most: int = Field(description="parts that are given `steps` each")


class InitializationView(BaseModel):
    name: str
    digest: str
    base_model: str
    delta: dict[str, object]
    algorithm: str
    steps: int
    steps_by_shots: dict[int, int]
    hard_steps: dict[str, int | float] | None = Field(
        description="`steps` for a support set of `shots` a label or more whose own leave-one-out accuracy is below `below`"
    )
    optimizer: str
    objective: dict[str, float]
    in_parts: InPartsView | None = Field(description="of a support set that is too large for one step; null: as any other")
    temperature: float
    max_length: int


class InitializationList(BaseModel):
    model_config = example_body(initializations=[])

    initializations: list[InitializationView]


class Alive(BaseModel):
    model_config = example_body(status="alive")

    status: Literal["alive"]


class Readiness(BaseModel):
    model_config = example_body(status="ready", missing=[])

    status: Literal["ready"]
    missing: list[Missing] = Field(description="empty; the problem of a 503 has the same member")


class UsageView(BaseModel):
    model_config = example_body(
        tenant="default",
        adapters=3,
        aliases=1,
        bytes=1_805_652,
        example_bytes=2_391,
        jobs=1,
        requests_this_minute=12,
        adaptations=41,
        predictions=20_410,
        limits={
            "MAX_ADAPTERS": 0,
            "MAX_ADAPTER_BYTES": 0,
            "MAX_EXAMPLE_BYTES": 0,
            "MAX_JOBS": 0,
            "MAX_ALIASES": 1000,
            "MAX_REQUESTS_A_MINUTE": 0,
        },
    )

    tenant: str
    adapters: int = Field(description="that there is a record of, whatever its status")
    aliases: int
    bytes: int = Field(description="of weights that are ready, and most that those being made will have")
    example_bytes: int = Field(description="of the examples in records, whatever their status")
    jobs: int = Field(description="that are queued or running")
    requests_this_minute: int = Field(description="by the clock of the records")
    adaptations: int = Field(description="jobs taken, since the records began")
    predictions: int = Field(description="inputs answered, since the records began")
    limits: dict[str, int] = Field(description="by the name of the setting; 0: none")
