"""Secrets that the database keeps are sealed: a copy of it is of no use without the key, which is elsewhere."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.fernet import Fernet


def seal(text: str, key: str) -> bytes:
    """Return *text* such that only who has *key*, a secret of any length that cannot be guessed, can read it."""
    return _fernet(key).encrypt(text.encode())


def unseal(sealed: bytes, key: str) -> str | None:
    """Return what was sealed; None if it was with another key."""
    from cryptography.fernet import InvalidToken

    try:
        return _fernet(key).decrypt(sealed).decode()
    except InvalidToken:
        return None


def _fernet(key: str) -> Fernet:
    # 5 MB in every process, which only those take that have something to seal.
    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derived = HKDF(SHA256(), length=32, salt=None, info=b"bridge: sealed in the database").derive(key.encode())
    return Fernet(base64.urlsafe_b64encode(derived))
