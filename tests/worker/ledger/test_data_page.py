"""docs/data.md lists every Redis key and every field of a record, and says which ones are encrypted."""

import re
from pathlib import Path

import worker.ledger.record as record_module
from worker.ledger import names
from worker.ledger.contents import CONTENTS
from worker.ledger.encryption import Cipher, EncryptionKey, sealed_with
from worker.ledger.record import SEALED_FIELDS, Record, sealed_field

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "data.md").read_text()


def test_every_redis_key_is_on_the_list_once() -> None:
    table = PAGE.partition("## All keys in Redis")[2].partition("\nAll fields")[0]
    listed = re.findall(r"`(qs:[^`]*)`", table)
    assert sorted(listed) == sorted(contents.pattern for contents in CONTENTS)


def test_the_list_has_every_key_that_names_describes() -> None:
    described = re.findall(r"^\| `([^`]*)` \|", str(names.__doc__), re.M)
    patterns = {"qs:TENANT" + name.removeprefix("…") if name.startswith("…") else name for name in described}
    assert patterns == {contents.pattern for contents in CONTENTS}


def test_every_field_of_a_record_is_on_the_list_and_the_encrypted_ones_are_named() -> None:
    paragraph = PAGE.partition("All fields of a record: ")[2].partition("\n\n")[0]
    encrypted, _, others = paragraph.partition(". The others are ")
    documented = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", str(record_module.__doc__), re.M)
    fields = {name for names in documented for name in re.findall(r"\w+", names)} | set(Record.model_fields)
    fields -= {"tenant", "adapter_id", *SEALED_FIELDS}
    assert set(re.findall(r"`(\w+)`", encrypted)) == set(SEALED_FIELDS)
    assert fields <= set(re.findall(r"`(\w+)`", others)) and "lost_at" in fields
    cipher = Cipher([EncryptionKey(b"1" * 32)])
    for field in (*fields, *SEALED_FIELDS):
        assert (sealed_with(sealed_field("t", "a1", field, "value", cipher)) is not None) is (field in SEALED_FIELDS)


def test_every_entry_of_what_is_derived_from_examples_names_an_existing_test() -> None:
    table = PAGE.partition("## What is derived from examples")[2].partition("\n\nThere are no other copies")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 9
    for row in rows:
        path, _, test = row.rsplit(" | ", 1)[1].strip("`| ").partition("::")
        assert f"def {test}" in (ROOT / path).read_text(), row
