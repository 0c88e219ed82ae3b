"""End-to-end encryption of batches: AES-256-GCM with a key that only the project has."""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING

from guard_agent import EncryptionConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16

_ALPHABET = re.compile(r"[A-Za-z0-9_-]+={0,2}", re.ASCII)
_MAKE_ONE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class Cipher:
    """Seals bytes. Each call takes a fresh random nonce, so the same bytes never look the same."""

    def __init__(
        self,
        key: str,
        where: str = "project_encryption_key",
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """
        Check the key and load the library.

        Args:
            key: 32 bytes in urlsafe base64, with or without padding.
            where: The setting it comes from, for error messages.
            random: Makes that many bytes nobody can foresee, never the same again.

        Raises:
            EncryptionConfigError: saying what is wrong, where, and how to mend it; never the key.
        """
        self._aead = _load(where)(decode_key(key, where))
        self._random = random

    def seal(self, plain: bytes) -> bytes:
        """Encrypt: urlsafe base64 of nonce, ciphertext and tag."""
        nonce = self._random(NONCE_BYTES)
        return urlsafe_b64encode(nonce + self._aead.encrypt(nonce, plain, None))

    def unseal(self, sealed: str) -> bytes:
        """
        Undo `seal`.

        Raises:
            ValueError: it was sealed with another key, or was changed, or never sealed.
        """
        try:
            raw = urlsafe_b64decode(sealed)
            return self._aead.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], None)
        except Exception as error:
            # No base64, InvalidTag, and what the library makes of a nonce that is cut off.
            msg = "not sealed with this key"
            raise ValueError(msg) from error


def sealed_size(plain: int) -> int:
    """How many bytes ``plain`` bytes become."""
    return -(-(plain + NONCE_BYTES + TAG_BYTES) // 3) * 4


def plain_room(sealed: int) -> int:
    """How many bytes may be sealed so that the result has at most ``sealed`` bytes."""
    return sealed // 4 * 3 - NONCE_BYTES - TAG_BYTES


def decode_key(text: str, where: str) -> bytes:
    """
    The 32 bytes of a key.

    Raises:
        EncryptionConfigError: saying what is wrong, where, and how to mend it; never the key.
    """
    text = text.strip()
    if not text:
        msg = (
            f"{where} is set but empty; is the environment variable or file it comes from set? "
            f"Nothing is sent unencrypted instead: {_MAKE_ONE}, or remove the setting"
        )
        raise EncryptionConfigError(msg)
    if not _ALPHABET.fullmatch(text):
        msg = (
            f"{where} is not urlsafe base64 (letters, digits, '-' and '_'; other base64 has "
            f"'+' and '/' instead): {_MAKE_ONE}"
        )
        raise EncryptionConfigError(msg)
    digits = text.rstrip("=")
    try:
        key = urlsafe_b64decode(digits + "=" * (-len(digits) % 4))
    except ValueError:
        msg = f"{where} is not base64, perhaps a character is missing: {_MAKE_ONE}"
        raise EncryptionConfigError(msg) from None
    if len(key) != KEY_BYTES:
        msg = (
            f"{where} has {len(key)} bytes, AES-256 needs {KEY_BYTES} "
            f"(43 characters of base64): {_MAKE_ONE}"
        )
        raise EncryptionConfigError(msg)
    if not any(key):
        msg = f"{where} is all zeros, which protects nothing: {_MAKE_ONE}"
        raise EncryptionConfigError(msg)
    return key


def _load(where: str) -> type[AESGCM]:
    # Here and not at the top: who does not encrypt needs no cryptography, and no time to load it.
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - an extra
    except ImportError as error:
        msg = (
            f"{where} is set, but the package cryptography that encrypts cannot be loaded "
            f"({error}); nothing is sent unencrypted instead: "
            "pip install 'guard-agent-http[encryption]', or remove the setting"
        )
        raise EncryptionConfigError(msg) from error
    return AESGCM
