"""An OpenID provider of one test on 127.0.0.1: discovery, authorization code with PKCE, RS256-signed ID tokens.

Everybody who is sent to it is signed in at once as `claims` says; `spoil` changes what it answers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT, SECRET = "vocbeam", "the client's secret"


@dataclass
class Provider:
    """Where it listens, who signs in, and how it misbehaves."""

    issuer: str
    key: RSAKey
    claims: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[dict[str, Any]], dict[str, Any]] = lambda claims: claims
    """Applied to the claims of an ID token before it is signed."""
    signing_key: RSAKey | None = None
    """What tokens are signed with, if not the published key."""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)


@contextmanager
def serve_provider() -> Iterator[Provider]:
    """The provider, listening on a free port while the context lasts."""
    provider = Provider("", RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"}))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            if path == "/.well-known/openid-configuration":
                self._answer(_metadata(provider.issuer))
            elif path == "/keys":
                self._answer({"keys": [provider.key.as_dict(private=False)]})
            elif path == "/authorize":
                asked = {name: values[0] for name, values in query.items()}
                code = secrets.token_urlsafe()
                provider.codes[code] = asked
                self.send_response(302)
                back = urlencode({"code": code, "state": asked["state"]})
                self.send_header("Location", f"{asked['redirect_uri']}?{back}")
                self.end_headers()
            else:
                self._answer({"error": "not_found"}, 404)

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            asked = provider.codes.pop(form["code"][0], None)
            expected = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
            challenge = hashlib.sha256(form.get("code_verifier", [""])[0].encode()).digest()
            if (
                asked is None
                or self.headers.get("Authorization") != f"Basic {expected}"
                or base64.urlsafe_b64encode(challenge).rstrip(b"=").decode() != asked["code_challenge"]
                or form["redirect_uri"][0] != asked["redirect_uri"]
            ):
                self._answer({"error": "invalid_grant"}, 400)
                return
            now = int(time.time())
            claims = {"iss": provider.issuer, "aud": CLIENT, "sub": "42", "iat": now, "exp": now + 300}
            claims = provider.spoil({**claims, "nonce": asked["nonce"], **provider.claims})
            token = jwt.encode({"alg": "RS256", "kid": "one"}, claims, provider.signing_key or provider.key)
            self._answer({"access_token": "a", "token_type": "Bearer", "expires_in": 300, "id_token": token})

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent."""

        def _answer(self, body: Any, status: int = 200) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _metadata(issuer: str) -> dict[str, Any]:
    return {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/authorize",
        "token_endpoint": f"{issuer}/token",
        "jwks_uri": f"{issuer}/keys",
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "code_challenge_methods_supported": ["S256"],
    }
