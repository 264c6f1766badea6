"""Response bodies of the audit log."""

from typing import Any

from pydantic import BaseModel, Field

from service.http.schemas import example_body
from worker.ledger.audit import ACTIONS


class ActorView(BaseModel):
    kind: str = Field(description="`key`, `no key` (a request without a key), `command line` or `process` (a worker by itself)")
    id: str | None = Field(description="id of the API key, or name of the operating system's user")
    address: str | None = Field(description="address that the request came from")


class AuditEntry(BaseModel):
    id: str = Field(description="id of the entry")
    time: float = Field(description="when the change was made")
    action: str = Field(description=f"{', '.join(f'`{action}`' for action in ACTIONS)}; later versions may have more")
    subject: str = Field(
        description="id of the key or adapter, the alias, the tenant whose limits changed, or another name of what changed"
    )
    actor: ActorView
    request_id: str | None = Field(description="id of the request that made the change")
    details: dict[str, Any] = Field(description="further values, such as the adapter that an alias pointed at before")


class AuditPage(BaseModel):
    model_config = example_body(
        entries=[
            {
                "id": "1785312000000-0",
                "time": 1785312000.0,
                "action": "alias.moved",
                "subject": "support.live",
                "actor": {"kind": "key", "id": "4be1a0c85f7d", "address": "192.0.2.7"},
                "request_id": "4be1a0c85f7d9023",
                "details": {"from": None, "to": "a3f1c0e2d4b5968778695a4b3c2d1e0f12345678"},
            }
        ],
        next_cursor=None,
    )

    entries: list[AuditEntry]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last page")
