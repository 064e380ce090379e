"""Passwords as mosquitto keeps them: PBKDF2 with HMAC-SHA-512, written ``USER:$7$ITERATIONS$SALT$HASH``."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

# Passwords are 192 random bits: there is nothing to slow down but the broker.
ITERATIONS = 101
_SALT_BYTES = 12
_HASH_BYTES = 64


def new_password() -> str:
    """192 random bits as 32 characters."""
    return secrets.token_urlsafe(24)


def password_line(user: str, password: str) -> str:
    """The line of mosquitto's password file, with a fresh salt."""
    salt = secrets.token_bytes(_SALT_BYTES)
    return f"{user}:$7${ITERATIONS}${_text(salt)}${_text(_hash(password, salt, ITERATIONS))}"


def matches(line: str, user: str, password: str) -> bool:
    """Whether a line of the password file is for this user and password."""
    try:
        who, _, rest = line.partition(":")
        empty, kind, iterations, salt, expected = rest.split("$")
        found = _hash(password, base64.b64decode(salt, validate=True), int(iterations))
        return who == user and not empty and kind == "7" and hmac.compare_digest(_text(found), expected)
    except ValueError:
        return False


def _hash(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations, _HASH_BYTES)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
