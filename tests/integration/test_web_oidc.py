"""Signing in with OpenID Connect, against a real provider that signs its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import RSAKey

from tests.support.oidc import CLIENT, SECRET, Provider, serve_provider
from tests.support.web import Pages, fill, served
from vocbeam.pipelines.web.people import People
from vocbeam.pipelines.web.sign_in import OidcSignIn
from vocbeam.sinks import audit
from vocbeam.sinks.engine import open_engine

PEOPLE = People.model_validate({"groups": {"cx-care": {"role": "department", "departments": ["care"]}}})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a filled SQLite warehouse."""
    path: Path = tmp_path_factory.mktemp("filled") / "warehouse.db"
    fill(f"sqlite:///{path}").dispose()
    return f"sqlite:///{path}"


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider at which Cai of customer service signs in."""
    with serve_provider() as running:
        running.claims = {"email": "cai@example.com", "email_verified": True, "groups": ["cx-care", "others"]}
        yield running


@pytest.fixture
def pages(filled: str, provider: Provider) -> Iterator[Pages]:
    """Pages that send people there."""
    sign_in = OidcSignIn(
        people=PEOPLE,
        issuer=provider.issuer,
        client_id=CLIENT,
        client_secret=SECRET,
        public_url="http://127.0.0.1",
        name_claim="email",
        groups_claim="groups",
    )
    with served(filled, sign_in=sign_in, open_flags=False) as running:
        yield running


def signing_in(pages: Pages) -> httpx.Response:
    """The answer to the visit with which the provider sends somebody back; all before it is followed."""
    at_provider = pages.get("/sign-in/oidc").headers["Location"]
    back = httpx.get(at_provider).headers["Location"]
    assert back.startswith("http://127.0.0.1/sign-in/callback?")
    return pages.get(back.removeprefix("http://127.0.0.1"))


def last_entry(url: str) -> tuple[str, str, str, str]:
    """(who, action, object, outcome) of the newest entry of the audit trail."""
    with open_engine(url).connect() as connection:
        (row,) = audit.entries(connection, limit=1)
    return row.who, row.action, row.object, row.outcome


def test_oidc__signs_in_with_the_roles_of_the_groups(pages: Pages, filled: str) -> None:
    assert pages.get("/").headers["Location"] == "/sign-in"
    assert "/sign-in/oidc" in pages.get("/sign-in").text
    answer = signing_in(pages)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/")
    assert last_entry(filled) == ("cai@example.com", "sign_in", "", "done")
    assert "cai@example.com, department" in pages.get("/").text
    assert pages.get("/audit").status_code == 403
    assert pages.post("/cases/2/acknowledge", {}, page="/").status_code == 403
    assert pages.post("/cases/1/acknowledge", {}, page="/").status_code == 302
    assert pages.post("/sign-out", {}, page="/").status_code == 302
    assert pages.get("/").status_code == 302


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda claims: {**claims, "iss": "https://elsewhere.example"}, id="issuer"),
        pytest.param(lambda claims: {**claims, "aud": "another client"}, id="audience"),
        pytest.param(lambda claims: {**claims, "nonce": "of another sign-in"}, id="nonce"),
        pytest.param(lambda claims: {k: v for k, v in claims.items() if k != "nonce"}, id="no nonce"),
        pytest.param(lambda claims: {**claims, "exp": claims["iat"] - 3600}, id="expired"),
    ],
)
def test_oidc__refuses_tokens_that_are_not_for_it(
    pages: Pages, provider: Provider, filled: str, spoil: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    provider.spoil = spoil
    assert signing_in(pages).status_code == 403
    assert last_entry(filled) == ("nobody", "sign_in", "", "refused")
    assert pages.get("/").status_code == 302


def test_oidc__refuses_another_key(pages: Pages, provider: Provider) -> None:
    provider.signing_key = RSAKey.generate_key(2048, {"kid": "one"})
    assert signing_in(pages).status_code == 403
    assert pages.get("/").status_code == 302


def test_oidc__refuses_an_answer_that_nobody_asked_for(pages: Pages) -> None:
    at_provider = pages.get("/sign-in/oidc").headers["Location"]
    back = httpx.get(at_provider).headers["Location"].removeprefix("http://127.0.0.1")
    victim = pages.visitor()
    assert victim.get(back).status_code == 403
    assert victim.get("/").status_code == 302


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({"groups": ["others"]}, "cai@example.com"),
        ({"email_verified": False}, ""),
        ({"email": None}, ""),
        ({"groups": None}, "cai@example.com"),
    ],
)
def test_oidc__who_has_no_role_stays_out(
    pages: Pages, provider: Provider, filled: str, claims: dict[str, Any], named: str
) -> None:
    provider.claims |= claims
    answer = signing_in(pages)
    assert answer.status_code == 403
    assert "nobody has given you access" in answer.text
    assert last_entry(filled) == ("nobody", "sign_in", named, "refused")
    assert pages.get("/").status_code == 302


def test_oidc__a_provider_that_is_down_is_told(filled: str) -> None:
    with serve_provider() as gone:
        issuer = gone.issuer
    sign_in = OidcSignIn(PEOPLE, issuer, CLIENT, SECRET, "http://127.0.0.1", "email", "groups")
    with served(filled, sign_in=sign_in) as pages:
        answer = pages.get("/sign-in/oidc")
        assert answer.status_code == 502
        assert "Try again later" in answer.text
