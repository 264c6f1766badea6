"""Encryption at rest: seal values that are derived from examples, and open them.

Values are sealed before they are written to Redis.

A sealed value is AES-256-GCM ciphertext that says by which key it was sealed:

    NUL "sealed:" KEY_ID ":" nonce (12 bytes) ciphertext tag (16 bytes)

The name of the value, such as its Redis key and field, is authenticated with it (as associated data). So a value that was moved to
another record or field does not open. A value without this prefix is plain: it was written before encryption was switched on. No
plain value begins with NUL: texts have none, and the first bytes of weights are the length of a short header.

`docs/data.md` lists what is sealed.
"""

import base64
import binascii
import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from worker.errors import EncryptionKeyMissing, InvalidKeyFile, SealBroken

_PREFIX = b"\0sealed:"
_HEADER = re.compile(rb"\0sealed:([0-9a-f]{8}):")
HEADER_BYTES = len(_PREFIX) + 9
"""The length of the beginning of a sealed value that `sealed_with` needs."""
_NONCE_BYTES, _TAG_BYTES, _KEY_BYTES = 12, 16, 32
PLAIN_LINE = "plain"
"""The first line of a key file whose keys only open values: new values are written as they are."""
_MOST_FILE_BYTES = 10_000


@dataclass(frozen=True)
class EncryptionKey:
    """One key of 256 bits. Its id is the beginning of a digest of it, so it does not reveal the key."""

    secret: bytes = field(repr=False)

    @property
    def identity(self) -> str:
        return hashlib.sha256(b"quickstudy encryption key " + self.secret).hexdigest()[:8]

    @property
    def line(self) -> str:
        """The key as a line of a key file."""
        return base64.urlsafe_b64encode(self.secret).decode().rstrip("=")


class Cipher:
    """Seals and opens values. Without keys, values are written as they are.

    `keys`: all of them open values. `seals`: True to seal new values with the first key.
    """

    def __init__(self, keys: Sequence[EncryptionKey] = (), *, seals: bool = True) -> None:
        self.key_ids = tuple(key.identity for key in keys)
        self._ciphers = {key.identity: AESGCM(key.secret) for key in keys}
        self.sealing_key = self.key_ids[0] if seals and keys else ""
        """The id of the key that seals new values, or "" if they are written as they are."""
        self.added_bytes = HEADER_BYTES + _NONCE_BYTES + _TAG_BYTES if self.sealing_key else 0
        """How much longer a value is when it is sealed, in bytes."""

    def seal(self, name: str, value: bytes) -> bytes:
        """Return a value in the form in which it is written. `name`: names the value, and nothing else."""
        if not self.sealing_key:
            return value
        nonce = os.urandom(_NONCE_BYTES)
        header = _PREFIX + self.sealing_key.encode() + b":"
        return header + nonce + self._ciphers[self.sealing_key].encrypt(nonce, value, name.encode())

    def open(self, name: str, stored: bytes) -> bytes:
        """Return the value that was stored under `name`, whether it is sealed or plain.

        Raises EncryptionKeyMissing if none of the keys sealed it, and SealBroken if it was changed or moved here from elsewhere.
        """
        if (identity := sealed_with(stored)) is None:
            return stored
        if identity not in self._ciphers:
            raise EncryptionKeyMissing(f"{name} is encrypted with key {identity}, which is not in ENCRYPTION_KEY_FILE")
        nonce, content = stored[HEADER_BYTES : HEADER_BYTES + _NONCE_BYTES], stored[HEADER_BYTES + _NONCE_BYTES :]
        try:
            return self._ciphers[identity].decrypt(nonce, content, name.encode())
        except (InvalidTag, ValueError):
            raise SealBroken(f"{name} was changed, or moved here from elsewhere, since it was encrypted") from None

    def is_current(self, stored: bytes) -> bool:
        """Return True if a stored value has the form that `seal` would give it now."""
        return (sealed_with(stored) or "") == self.sealing_key


PLAIN = Cipher()
"""Writes values as they are, and opens only such values."""


def sealed_with(stored: bytes) -> str | None:
    """Return the id of the key that sealed a value, or None if it is plain.

    The first HEADER_BYTES of the value are enough.
    """
    match = _HEADER.match(stored)
    return None if match is None else match[1].decode()


def field_name(record_key: str, field: str) -> str:
    """Return the name of a field of a Redis hash, for `Cipher`."""
    return f"{record_key}/{field}"


def new_key() -> EncryptionKey:
    return EncryptionKey(secrets.token_bytes(_KEY_BYTES))


def read_key_file(path: Path) -> Cipher:
    """Read a key file: one key in each line. Empty lines and lines that begin with `#` are skipped.

    The first key seals new values, and all keys open values. If the first line is `plain`, the keys only open values. Raises
    InvalidKeyFile, whose message quotes nothing of the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_FILE_BYTES + 1)
        text = content.decode("ascii")
    except (OSError, ValueError) as error:
        raise InvalidKeyFile(f"expected a readable file of keys, got {type(error).__name__} for {path}") from None
    if len(content) > _MOST_FILE_BYTES:
        raise InvalidKeyFile(f"expected a file of at most {_MOST_FILE_BYTES} bytes, got a longer one: {path}")
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    seals = not (lines and lines[0][1] == PLAIN_LINE)
    keys = [_parse_key(line, number, path) for number, line in (lines if seals else lines[1:])]
    if not keys:
        raise InvalidKeyFile(f"expected at least one key, got none in {path}; `quickstudy encryption new-key` writes one")
    if len(set(keys)) < len(keys):
        raise InvalidKeyFile(f"expected different keys, got one twice in {path}")
    return Cipher(keys, seals=seals)


def _parse_key(line: str, number: int, path: Path) -> EncryptionKey:
    try:
        secret = base64.b64decode(line + "=", altchars=b"-_", validate=True) if len(line) == 43 else b""
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != _KEY_BYTES:
        raise InvalidKeyFile(f"line {number} of {path}: expected a key of 43 characters, got something else")
    return EncryptionKey(secret)
