"""Who is asking: by a token printed at start, by a header of a trusted proxy, or by OpenID Connect.

Each way says who the request in hand comes from. The session cookie is signed and holds the name and the groups that
grant something; what they grant is looked up anew at each request.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from authlib.integrations.base_client import OAuthError
from authlib.integrations.flask_client import OAuth
from flask import Flask, abort, redirect, request, session, url_for
from joserfc.errors import JoseError
from requests import RequestException
from werkzeug.wrappers import Response

from vocbeam.pipelines.web.people import People, Person

log = logging.getLogger(__name__)

NAME_CHARS = 200
"""Longest name taken from elsewhere."""

OIDC_SECONDS = 10
"""Longest wait for an answer of the OpenID provider."""

SignedIn = Callable[[Person], Response]
"""Called once somebody has signed in: enters it into the audit trail, and says which page is next."""

Refused = Callable[[str], None]
"""Called with a name that nothing is granted to, '' where there is none."""


@dataclass(frozen=True)
class TokenSignIn:
    """One local token for whoever started the command: an admin. Sessions end with the process, and its token."""

    token: str = field(repr=False)
    kind: Literal["token"] = "token"

    def person(self) -> Person | None:
        """Who the request in hand comes from."""
        return Person("local", "admin") if _same(session.get("token", ""), self._digest) else None

    def install(self, app: Flask, signed_in: SignedIn, refused: Refused) -> None:
        """Adds the routes that signing in takes."""

        def sign_in_token() -> Response:
            given = request.values.get("token", "")
            if not _same(given, self.token):
                refused("")
                abort(403, "That is not the token which the command printed when it started.")
            session.clear()
            session["token"] = self._digest
            return signed_in(Person("local", "admin"))

        app.add_url_rule("/sign-in/token", view_func=sign_in_token, methods=["GET", "POST"])

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self.token.encode()).hexdigest()


@dataclass(frozen=True)
class ProxySignIn:
    """The name and groups that a proxy puts into headers; only requests from its addresses are believed."""

    people: People
    trusted: frozenset[str]
    user_header: str
    groups_header: str
    kind: Literal["proxy"] = "proxy"

    def person(self) -> Person | None:
        """Who the request in hand comes from."""
        name = request.headers.get(self.user_header, "").strip()
        if not name or len(name) > NAME_CHARS or request.remote_addr not in self.trusted:
            return None
        groups = [group.strip() for group in request.headers.get(self.groups_header, "").split(",")]
        return self.people.person(name, groups)

    def install(self, app: Flask, signed_in: SignedIn, refused: Refused) -> None:
        """Adds nothing: the proxy does it all."""


@dataclass(frozen=True)
class OidcSignIn:
    """OpenID Connect, authorization code flow with PKCE."""

    people: People
    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    public_url: str
    name_claim: str
    groups_claim: str
    kind: Literal["oidc"] = "oidc"

    def person(self) -> Person | None:
        """Who the request in hand comes from."""
        name = session.get("name")
        return self.people.person(name, session.get("groups", [])) if isinstance(name, str) else None

    def install(self, app: Flask, signed_in: SignedIn, refused: Refused) -> None:
        """Adds the routes that signing in takes."""
        provider = OAuth(app).register(
            "oidc",
            client_id=self.client_id,
            client_secret=self.client_secret,
            server_metadata_url=f"{self.issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs={
                "scope": "openid profile email",
                "code_challenge_method": "S256",
                "default_timeout": OIDC_SECONDS,
            },
        )

        def sign_in_oidc() -> Response:
            try:
                found: Response = provider.authorize_redirect(self.public_url + url_for("sign_in_callback"))
            except (RequestException, ValueError) as error:
                log.warning("the OpenID provider %s can't be reached: %s", self.issuer, error)
                abort(502, "The sign-in service can't be reached. Try again later.")
            return found

        def sign_in_callback() -> Response:
            try:
                issuer = {"essential": True, "values": [self.issuer]}
                token = provider.authorize_access_token(claims_options={"iss": issuer})
                claims: Mapping[str, Any] = token["userinfo"]
            except (RequestException, ValueError) as error:
                log.warning("the OpenID provider %s can't be reached: %s", self.issuer, error)
                abort(502, "The sign-in service can't be reached. Try again later.")
            except (OAuthError, JoseError, KeyError) as error:
                log.warning("a sign-in by %s is refused: %s", self.issuer, error)
                refused("")
                abort(403, "The answer of the sign-in service can't be accepted. Sign in again.")
            name, groups = self._who(claims)
            if not name or self.people.person(name, groups) is None:
                refused(name)
                abort(403, "You are signed in there, but nobody has given you access here. Ask an administrator.")
            session.clear()
            session["name"], session["groups"] = name, self.people.known_groups(groups)
            person = self.person()
            assert person is not None
            return signed_in(person)

        app.add_url_rule("/sign-in/oidc", view_func=sign_in_oidc)
        app.add_url_rule("/sign-in/callback", view_func=sign_in_callback)

    def _who(self, claims: Mapping[str, Any]) -> tuple[str, list[str]]:
        """Name and groups; no name where the claim is missing, or is a mail address that nobody has verified."""
        name = claims.get(self.name_claim)
        unverified = self.name_claim == "email" and claims.get("email_verified") is False
        if not isinstance(name, str) or unverified or len(name) > NAME_CHARS:
            name = ""
        groups = claims.get(self.groups_claim, [])
        groups = [groups] if isinstance(groups, str) else groups
        return name, [group for group in groups if isinstance(group, str)] if isinstance(groups, Iterable) else []


SignIn = TokenSignIn | ProxySignIn | OidcSignIn


def sign_out() -> Response:
    """Forgets who is signed in."""
    session.clear()
    return redirect(url_for("sign_in"))


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
