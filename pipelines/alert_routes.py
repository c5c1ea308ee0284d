"""Alertmanager's configuration as data, from the governance file: each department's alerts go where its route says.

An `alert_route` is an e-mail address, the http(s) address of a webhook, or a name that becomes part of the address of
the installation's own webhook. No secret is in the file: passwords and tokens are read from files by Alertmanager.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vocbeam.pipelines.alert_rules import DOWN, OPERATIONS
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import Governance

UNROUTED = "vocbeam.unrouted"
OPERATED = "vocbeam.operations"
WATCHED = "vocbeam.watchdog"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How alerts leave: `{route}` in `webhook_url` is the name of a receiver; files are Alertmanager's.

    `group_wait`: how long alerts of a stage are gathered before the first notification; `operations_wait`, the same for
    the pipeline's own, is shorter, so that what silences departments is known in time. All are durations of Prometheus.
    Alerts of departments go to `case_url` too, which opens cases.
    """

    webhook_url: str
    token_file: str | None = None
    smarthost: str | None = None
    mail_from: str | None = None
    mail_user: str | None = None
    mail_password_file: str | None = None
    group_wait: str = "1m"
    operations_wait: str = "30s"
    group_interval: str = "10m"
    repeat_interval: str = "24h"
    case_url: str | None = None
    case_token_file: str | None = None


def routes_document(governance: Governance, delivery: Delivery) -> dict[str, Any]:
    """The configuration. Raises ConfigError where e-mail is wanted and how to send it isn't told."""
    names = [UNROUTED, OPERATED, WATCHED, *dict.fromkeys(d.alert_route for d in governance.departments)]
    if any(_is_mail(name) for name in names) and not (delivery.smarthost and delivery.mail_from):
        raise ConfigError("an alert_route is an e-mail address; give --smarthost (host:port) and --mail-from")
    mail = {
        "smtp_smarthost": delivery.smarthost,
        "smtp_from": delivery.mail_from,
        "smtp_auth_username": delivery.mail_user,
        "smtp_auth_password_file": delivery.mail_password_file,
    }
    return {
        "global": {"resolve_timeout": "5m", **{key: value for key, value in mail.items() if value is not None}},
        "route": {
            "receiver": UNROUTED,
            # One page a stage, however many metrics are red there.
            "group_by": ["team", "stage"],
            "group_wait": delivery.group_wait,
            "group_interval": delivery.group_interval,
            "repeat_interval": delivery.repeat_interval,
            "routes": [
                {
                    "matchers": ['alertname="Watchdog"'],
                    "receiver": WATCHED,
                    "group_wait": "0s",
                    "group_interval": "1m",
                    "repeat_interval": "5m",
                },
                {
                    "matchers": [f'team="{OPERATIONS}"'],
                    "receiver": OPERATED,
                    "group_by": ["alertname"],
                    "group_wait": delivery.operations_wait,
                    "repeat_interval": "4h",
                },
                *(
                    {"matchers": [f'team="{department.id}"'], "receiver": department.alert_route}
                    for department in governance.departments
                ),
            ],
        },
        "inhibit_rules": [
            {
                "source_matchers": [f'alertname=~"{"|".join(DOWN)}"'],
                "target_matchers": ['scope="department"'],
            },
            {
                # Where nothing can be scraped or read, the rest follows from it.
                "source_matchers": ['alertname=~"ExporterDown|WarehouseDown"'],
                "target_matchers": ['scope="pipeline"', 'severity="warning"'],
            },
        ],
        "receivers": [
            *(_receiver(name, delivery) for name in names[:3]),
            *(_with_cases(_receiver(name, delivery), delivery) for name in names[3:]),
        ],
    }


def _receiver(name: str, delivery: Delivery) -> dict[str, Any]:
    if _is_mail(name):
        return {"name": name, "email_configs": [{"to": name, "send_resolved": True}]}
    webhook: dict[str, Any] = {
        "url": name if "://" in name else delivery.webhook_url.replace("{route}", name),
        "send_resolved": name != WATCHED,
    }
    if delivery.token_file is not None and "://" not in name:
        webhook["http_config"] = {"authorization": {"credentials_file": delivery.token_file}}
    return {"name": name, "webhook_configs": [webhook]}


def _with_cases(receiver: dict[str, Any], delivery: Delivery) -> dict[str, Any]:
    if delivery.case_url is None:
        return receiver
    webhook: dict[str, Any] = {"url": delivery.case_url, "send_resolved": True}
    if delivery.case_token_file is not None:
        webhook["http_config"] = {"authorization": {"credentials_file": delivery.case_token_file}}
    return {**receiver, "webhook_configs": [*receiver.get("webhook_configs", []), webhook]}


def _is_mail(route: str) -> bool:
    return "@" in route and "://" not in route
