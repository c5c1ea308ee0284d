"""`vocbeam web`: pages for departments and stages, the form for flags, and what is done about flags and cases."""

from __future__ import annotations

import ipaddress
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from flask import Flask
from waitress import create_server, wasyncore

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.flagging import Channel, raise_flag
from vocbeam.pipelines.settings import (
    Home,
    bootstrap_option,
    home_option,
    read_text,
    registry_option,
    topic_prefix_option,
    warehouse_option,
)
from vocbeam.pipelines.supervisor import stop_on_signals
from vocbeam.pipelines.web.figures import FigureKeeper
from vocbeam.pipelines.web.people import People, load_people
from vocbeam.pipelines.web.sign_in import OidcSignIn, ProxySignIn, SignIn, TokenSignIn
from vocbeam.pipelines.web.site import MAX_BODY_BYTES, Settings, Site
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.registry import open_registry
from vocbeam.schemas.secrets import SecretSource
from vocbeam.sinks.engine import open_engine
from vocbeam.transforms.kafka_settings import parse_settings
from vocbeam.transforms.progress import PROGRESS

SECRET_ENV = "VOCBEAM_WEB_SECRET"  # noqa: S105
OIDC_SECRET_ENV = "VOCBEAM_OIDC_CLIENT_SECRET"  # noqa: S105

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
THREADS = 8
STOP_SECONDS = 5
ANSWER_SECONDS = 30.0
"""Longest wait of a page for an answer of the warehouse."""


def check_binding(address: str, sign_in: str, public_url: str | None) -> None:
    """Raises ConfigError where pages would be served beyond this machine with the local token, or under no name."""
    try:
        beyond = not ipaddress.ip_address(address).is_loopback
    except ValueError:
        raise ConfigError(f"--address {address} is no IP address; write 127.0.0.1, or 0.0.0.0 for all") from None
    if beyond and sign_in == "token":
        raise ConfigError(
            f"--address {address} can be reached from other machines, and the local token is for this machine alone; "
            "sign people in with --sign-in oidc or --sign-in proxy"
        )
    if beyond and public_url is None:
        raise ConfigError(f"--address {address} can be reached under many names; say which one counts: --public-url")


def make_sign_in(
    kind: str,
    *,
    home: Home,
    people: People,
    public_url: str,
    token: str,
    proxies: tuple[str, ...],
    user_header: str,
    groups_header: str,
    issuer: str | None,
    client_id: str | None,
    name_claim: str,
    groups_claim: str,
) -> SignIn:
    """The way to sign in that the options name. Raises ConfigError where one is missing or says what it must not."""
    if kind == "token":
        return TokenSignIn(token)
    if kind == "proxy":
        return ProxySignIn(people, _addresses(proxies), user_header, groups_header)
    if not issuer or not client_id:
        raise ConfigError("--sign-in oidc needs --oidc-issuer and --oidc-client-id")
    parts = urlsplit(issuer)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ConfigError(f"--oidc-issuer {issuer} is not https, so its answers could be anybody's")
    return OidcSignIn(
        people=people,
        issuer=issuer,
        client_id=client_id,
        client_secret=SecretSource(OIDC_SECRET_ENV, home.keys / "oidc_client.secret").load(),
        public_url=public_url,
        name_claim=name_claim,
        groups_claim=groups_claim,
    )


def _addresses(addresses: tuple[str, ...]) -> frozenset[str]:
    try:
        return frozenset(str(ipaddress.ip_address(address)) for address in addresses)
    except ValueError as error:
        raise ConfigError(f"--trusted-proxy: {error}; write an IP address") from error


@contextmanager
def serving(app: Flask, keeper: FigureKeeper, address: str, port: int) -> Iterator[int]:
    """Serves the pages from threads; gives the port, which is chosen where `port` is 0.

    Raises ConfigError where it can't listen there.
    """
    sockets: dict[int, Any] = {}
    try:
        server = create_server(
            app,
            map=sockets,
            host=address,
            port=port,
            threads=THREADS,
            ident="vocbeam",
            # Whether they are believed is decided for each request, by the address of the other end.
            clear_untrusted_proxy_headers=False,
            max_request_body_size=2 * MAX_BODY_BYTES,
            max_request_header_size=32 * 1024,
            channel_timeout=30,
            connection_limit=200,
        )
    except OSError as error:
        raise ConfigError(
            f"can't listen at {address}:{port}: {error.strerror or error}; choose another --port or --address"
        ) from error
    thread = threading.Thread(target=server.run, name="vocbeam-web", daemon=True)
    keeper.start()
    thread.start()
    try:
        yield int(server.effective_port)
    finally:
        keeper.stop()
        server.task_dispatcher.shutdown(timeout=STOP_SECONDS)
        server.trigger.pull_trigger(lambda: wasyncore.close_all(sockets))
        thread.join(STOP_SECONDS)


@click.command()
@home_option
@warehouse_option
@bootstrap_option
@registry_option
@topic_prefix_option
@click.option(
    "--producer-config",
    envvar="VOCBEAM_PRODUCER_CONFIG",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    callback=lambda _context, _option, path: parse_settings(read_text(path)) if path else {},
    help="Settings of kafka-python's producer (SASL, TLS…) for raising flags, name = value.",
)
@click.option("--address", default="127.0.0.1", show_default=True, help="IP address to listen at.")
@click.option("--port", default=8088, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--public-url", envvar="VOCBEAM_WEB_URL", help="Where people reach the pages, such as https://voc.example.com."
)
@click.option(
    "--sign-in",
    "sign_in_kind",
    default="token",
    show_default=True,
    type=click.Choice(["token", "proxy", "oidc"]),
    help="By a token printed at start (this machine only), a trusted proxy's header, or OpenID Connect.",
)
@click.option(
    "--people",
    "people_path",
    envvar="VOCBEAM_WEB_PEOPLE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file: which people and groups have which role. See docs/web.md.",
)
@click.option(
    "--trusted-proxy",
    "proxies",
    multiple=True,
    metavar="ADDRESS",
    help="Address of a proxy that is believed; repeatable.  [default with --sign-in proxy: 127.0.0.1 and ::1]",
)
@click.option("--proxy-user-header", default="X-Forwarded-User", show_default=True, help="Who is signed in.")
@click.option("--proxy-groups-header", default="X-Forwarded-Groups", show_default=True, help="Groups, comma separated.")
@click.option("--oidc-issuer", envvar="VOCBEAM_OIDC_ISSUER", metavar="URL", help="The OpenID provider.")
@click.option(
    "--oidc-client-id",
    envvar="VOCBEAM_OIDC_CLIENT_ID",
    help=f"Its secret is read from {OIDC_SECRET_ENV} or {OIDC_SECRET_ENV}_FILE.",
)
@click.option("--oidc-name-claim", default="email", show_default=True, help="Claim that names the person.")
@click.option("--oidc-groups-claim", default="groups", show_default=True, help="Claim that lists groups.")
@click.option(
    "--open-flags/--no-open-flags",
    default=None,
    help="Whether anybody who reaches the pages may raise flags without signing in.  [default: only with the token]",
)
@click.option(
    "--refresh-seconds",
    default=300.0,
    show_default=True,
    type=click.FloatRange(5),
    help="Between two looks at figures.",
)
def web(
    *,
    home: Home,
    warehouse: str | None,
    bootstrap: str,
    registry: str | None,
    topic_prefix: str,
    producer_config: Mapping[str, Any],
    address: str,
    port: int,
    public_url: str | None,
    sign_in_kind: str,
    people_path: Path | None,
    proxies: tuple[str, ...],
    proxy_user_header: str,
    proxy_groups_header: str,
    oidc_issuer: str | None,
    oidc_client_id: str | None,
    oidc_name_claim: str,
    oidc_groups_claim: str,
    open_flags: bool | None,
    refresh_seconds: float,
) -> None:
    """Serve pages on stages and departments, flags and cases, until SIGTERM or Ctrl-C.

    Goes on while the warehouse is down, and says so. On PostgreSQL the role `web` suffices.
    """
    check_binding(address, sign_in_kind, public_url)
    url = warehouse or home.warehouse_url
    channel = Channel(
        bootstrap=bootstrap,
        registry=open_registry(registry, home.registry),
        topic_prefix=topic_prefix,
        producer=producer_config,
    )
    if sign_in_kind == "proxy" and not proxies:
        proxies = ("127.0.0.1", "::1")
    token = secrets.token_urlsafe(32)
    base = (public_url or f"http://{f'[{address}]' if ':' in address else address}:{port}").rstrip("/")
    sign_in = make_sign_in(
        sign_in_kind,
        home=home,
        people=load_people(people_path) if people_path else People(),
        public_url=base,
        token=token,
        proxies=proxies,
        user_header=proxy_user_header,
        groups_header=proxy_groups_header,
        issuer=oidc_issuer,
        client_id=oidc_client_id,
        name_claim=oidc_name_claim,
        groups_claim=oidc_groups_claim,
    )
    settings = Settings(
        secret=SecretSource(SECRET_ENV, home.keys / "web_session.secret").ensure(),
        public_url=base,
        hosts=[urlsplit(base).hostname or address] if public_url else [*LOOPBACK_HOSTS, urlsplit(base).hostname or ""],
        trusted_proxies=_addresses(proxies),
        open_flags=sign_in_kind == "token" if open_flags is None else open_flags,
    )
    reading = open_engine(url, answer_s=ANSWER_SECONDS)
    keeper = FigureKeeper(reading, now_us, refresh_seconds)
    site = Site(
        settings,
        sign_in,
        keeper,
        reading,
        open_engine(url, write=True, answer_s=ANSWER_SECONDS),
        lambda flag, governance: raise_flag(flag, governance, channel),
        now_us,
    )
    with stop_on_signals(PROGRESS), serving(site.app, keeper, address, port) as chosen:
        where = public_url or f"{base.rpartition(':')[0]}:{chosen}"
        click.echo(f"pages at {where}/" + (f"sign-in/token?token={token}" if sign_in_kind == "token" else ""), err=True)
        while not PROGRESS.stop_requested():
            PROGRESS.sleep(3600)
