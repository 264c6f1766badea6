"""The table of all settings in docs/settings.md, generated from the settings classes.

`make settings` rewrites the table in the page.
"""

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service.settings import ServiceSettings
from worker.settings import WorkerSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
BEGIN, END = "<!-- begin: written by `make settings` -->\n", "<!-- end -->\n"
ONLY_WORKER = {
    *("lease_seconds", "attempts", "jobs_together", "pass_rows"),
    *("job_seconds", "hang_seconds", "erase_seconds", "drain_seconds"),
}
ONLY_SERVICE = set(ServiceSettings.model_fields) - set(WorkerSettings.model_fields) | {"wait_replicas"}


def readers(name: str) -> str:
    """Return the process that reads the setting: "worker", "service" or "both"."""
    return "worker" if name in ONLY_WORKER else "service" if name in ONLY_SERVICE else "both"


def default(field: FieldInfo) -> str:
    """Return the default as Markdown, written as in an environment variable, or "unset"."""
    if field.default is None or field.default == "":
        return "unset"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def allowed(field: FieldInfo) -> str:
    """Describe the allowed values. Return "" if the setting has neither choices nor bounds."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    if field.annotation is bool:
        return "`true`, `false`"
    bounds = {name: getattr(limit, name) for limit in field.metadata for name in ("gt", "ge", "le") if hasattr(limit, name)}
    words = {"gt": "more than", "ge": "at least", "le": "at most"}
    return ", ".join(f"{words[name]} {bound:,}" for name, bound in bounds.items())


def table() -> str:
    """Return the Markdown table: one row per setting, in the order of the settings class."""
    rows = ["| setting | default | allowed | meaning | read by |", "|---|---|---|---|---|"]
    for name, field in ServiceSettings.model_fields.items():
        assert field.description, f"{name}: expected a description, got none"
        rows.append(f"| `{name.upper()}` | {default(field)} | {allowed(field)} | {field.description} | {readers(name)} |")
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    """Return `page` with the current table between its two markers."""
    return re.sub(f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", lambda _: table(), page, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
