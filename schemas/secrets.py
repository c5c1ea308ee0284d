"""Secrets: where they come from, how they are made, and the cipher for dead letters.

A secret never travels: job graphs and options carry a `SecretSource`, which holds only names, and every worker reads
the secret from its own environment or files.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from vocbeam.schemas.errors import ConfigError

PSEUDONYM_ENV = "VOCBEAM_PSEUDONYM_KEY"
DEAD_LETTER_ENV = "VOCBEAM_DEAD_LETTER_KEY"

MIN_KEY_CHARS = 32
"""Shortest pseudonymisation key accepted: pseudonyms made with a guessable key can be reversed by trying ids."""

_TOO_OPEN = stat.S_IRWXO | stat.S_IWGRP
"""Permissions a key file must not have. Group read stays allowed: Kubernetes mounts secrets as 0440 under fsGroup."""


class Hidden(str):
    """A secret's text for a library that may log its settings: their representation shows asterisks for it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where a secret is read: environment variable `env`, the file named by `env`_FILE, else `path`.

    Holds names only, so it may be pickled, logged and put into pipeline options.
    """

    env: str
    path: Path

    def load(self, environ: Mapping[str, str] | None = None) -> str:
        """The secret's text without surrounding whitespace; `environ` is the process environment unless given.

        Raises ConfigError when there is none, when it is empty, or when others may read its file.
        """
        environ = os.environ if environ is None else environ
        if self.env in environ:
            return _not_empty(environ[self.env], f"environment variable {self.env}")
        named = environ.get(f"{self.env}_FILE")
        return _read_private(Path(named) if named else self.path, self.env)

    def ensure(self, environ: Mapping[str, str] | None = None) -> str:
        """Like `load`, but makes a new secret at `path` (mode 600, folder 700) when none is configured anywhere.

        Processes that start together agree: the first file to be linked wins and the others read it.
        """
        environ = os.environ if environ is None else environ
        configured = self.env in environ or bool(environ.get(f"{self.env}_FILE"))
        if not configured and not self.path.exists():
            _create_private(self.path, _generate(self.env))
        return self.load(environ)


def pseudonym_source(home: Path) -> SecretSource:
    """Source of the pseudonymisation key of the home folder `home`."""
    return SecretSource(PSEUDONYM_ENV, home / "keys" / "pseudonym.key")


def dead_letter_source(home: Path) -> SecretSource:
    """Source of the dead-letter encryption keys of the home folder `home`."""
    return SecretSource(DEAD_LETTER_ENV, home / "keys" / "dead_letter.key")


def pseudonym_key(secret: str) -> bytes:
    """32-byte key for keyed hashes, from the text of the secret. Raises ConfigError when the secret is too short."""
    if len(secret) < MIN_KEY_CHARS:
        raise ConfigError(
            f"the pseudonymisation key has {len(secret)} characters, at least {MIN_KEY_CHARS} are needed; "
            f"make one with `openssl rand -hex 32` and set {PSEUDONYM_ENV}"
        )
    return blake2b(secret.encode(), digest_size=32, person=b"vocbeam-key").digest()


def fingerprint(key: bytes) -> str:
    """32 hex characters that identify a key without revealing it."""
    return blake2b(b"", digest_size=16, key=key, person=b"vocbeam-finger").hexdigest()


class DeadLetterCipher:
    """Encrypts the raw bytes of dead letters with Fernet (AES-128-CBC and HMAC-SHA256).

    `secret` is one Fernet key or several, separated by commas: the first encrypts, all decrypt, which is how keys are
    rotated. Raises ConfigError for a key that is not one.
    """

    def __init__(self, secret: str) -> None:
        try:
            keys = [Fernet(part.strip()) for part in secret.split(",") if part.strip()]
            self._newest, self._fernet = keys[0], MultiFernet(keys)
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"{DEAD_LETTER_ENV} holds something that is no Fernet key (32 bytes, URL-safe base64); make one with "
                "`python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'`"
            ) from error

    def encrypt(self, raw: bytes) -> bytes:
        """Token of `raw` under the first key; each call gives another token."""
        return self._fernet.encrypt(raw)

    def decrypt(self, token: bytes) -> bytes:
        """The bytes behind a token. Raises ConfigError when no configured key opens it."""
        try:
            return self._fernet.decrypt(token)
        except InvalidToken as error:
            raise ConfigError(
                f"no key in {DEAD_LETTER_ENV} opens this dead letter; add the key it was written with to the list"
            ) from error

    def reseal(self, token: bytes) -> bytes | None:
        """The token under the first key, or None where it is under that already. Raises as `decrypt` does."""
        try:
            self._newest.decrypt(token)
        except InvalidToken:
            return self.encrypt(self.decrypt(token))
        return None


def _generate(env: str) -> str:
    return Fernet.generate_key().decode() if env == DEAD_LETTER_ENV else secrets.token_hex(32)


def _not_empty(text: str, where: str) -> str:
    if not text.strip():
        raise ConfigError(f"{where} is empty; set it to the secret or remove it")
    return text.strip()


def _read_private(path: Path, env: str) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & _TOO_OPEN:
                raise ConfigError(
                    f"{path} can be read or changed by others (mode {stat.S_IMODE(status.st_mode):o}); "
                    f"run `chmod 600 {path}`, and make a new secret if others had access"
                )
            return _not_empty(file.read(), str(path))
    except FileNotFoundError as error:
        raise ConfigError(f"no secret: {path} does not exist; set {env} or {env}_FILE, or restore the file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the secret in {path} can't be read ({type(error).__name__}); check the file") from error


def _create_private(path: Path, secret: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()
