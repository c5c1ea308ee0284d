"""Orders of an invented online retailer: the structural model that says what causes what.

The structural model (one unit is one order; every arrow is a term of `respond`):

    region ──> late delivery, satisfaction         plan ──> satisfaction, churn          (confounders)
    stock-out ──> late delivery, cancellation, contact, satisfaction
    payment failure ──> cancellation, contact, satisfaction
    late delivery ──> contact, satisfaction        app error ──> contact, satisfaction
    contact ──> long wait, repeat contact <── training gap of the agent
    long wait, repeat contact ──> satisfaction ──> dissatisfied (score of 2 or less) ──> churn ──> no further orders

Whether a customer answers a survey depends on nothing else, so answers are a random sample of the orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CYCLE_DAYS = 42
"""A customer orders at most once in a cycle; order, delivery, survey and the churn horizon fit into it."""

HORIZON_DAYS = 14
"""Churn is counted from the sending of the survey for this long."""

REGIONS = ("SP", "RJ", "MG", "RS", "PR", "BA", "PE", "CE", "AM", "PA")
REGION_SHARES = (0.36, 0.14, 0.12, 0.07, 0.07, 0.06, 0.05, 0.05, 0.04, 0.04)
REMOTE_REGIONS = ("CE", "AM", "PA")

RENEWAL = 2_990
"""What a paid plan brings when it is renewed, in minor units."""

SENT_BACK = 0.07
"""Share of delivered orders that are sent back and refunded."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Planted:
    """Parameters of the structural model: probabilities, effects on the latent 1–5 satisfaction, hazards a day."""

    paid: float = 0.4
    stock_out: float = 0.05
    payment_failure: float = 0.05
    app_error: float = 0.06
    training_gap: float = 0.2
    late: float = 0.07
    late_if_remote: float = 0.12
    late_if_stock_out: float = 0.30
    cancel: float = 0.01
    cancel_if_stock_out: float = 0.25
    cancel_if_payment_failure: float = 0.10
    contact: float = 0.08
    contact_if_late: float = 0.40
    contact_if_stock_out: float = 0.25
    contact_if_payment_failure: float = 0.20
    contact_if_app_error: float = 0.10
    wait: float = 0.12
    wait_if_gap: float = 0.20
    repeat: float = 0.05
    repeat_if_gap: float = 0.25
    base_satisfaction: float = 4.1
    satisfaction_sd: float = 0.8
    remote_effect: float = -0.2
    paid_effect: float = 0.2
    late_effect: float = -1.6
    stock_out_effect: float = -0.7
    payment_failure_effect: float = -0.9
    app_error_effect: float = -0.5
    wait_effect: float = -1.0
    repeat_effect: float = -1.2
    hazard_free: float = 0.006
    hazard_paid: float = 0.003
    hazard_ratio_dissatisfied: float = 5.0
    order_share: float = 0.85
    order_amount_log_mean: float = 9.2
    order_amount_log_sd: float = 0.6

    def hazard(self, paid: Bools | bool, dissatisfied: Bools | bool) -> Floats:
        """Hazard of churn a day, from the sending of the survey to the end of the horizon."""
        hazard = np.where(paid, self.hazard_paid, self.hazard_free)
        return np.asarray(hazard * np.where(dissatisfied, self.hazard_ratio_dissatisfied, 1.0), dtype=np.float64)

    def churn_risk(self, paid: Bools | bool, dissatisfied: Bools | bool) -> Floats:
        """Risk of churn within the horizon: 1 − exp(−hazard · days)."""
        return np.asarray(1.0 - np.exp(-self.hazard(paid, dissatisfied) * HORIZON_DAYS), dtype=np.float64)

    def mean_order_amount(self) -> float:
        """Expected order value in minor units (mean of the log-normal)."""
        return float(np.exp(self.order_amount_log_mean + self.order_amount_log_sd**2 / 2))


ISSUES = ("late_delivery", "stock_out", "payment_failure", "app_error", "long_wait", "training_gap", "repeat_contact")
"""Causes that a company could remove; each a name that `_respond` lets be set."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Everything about orders that no cause of the model decides."""

    remote: Bools
    paid: Bools
    gap: Bools
    uniforms: Mapping[str, Floats]
    noise: Floats


@dataclass(frozen=True, slots=True)
class Orders:
    """What became of orders, under the natural course or an intervention."""

    stock_out: Bools
    payment_failure: Bools
    app_error: Bools
    cancelled: Bools
    late: Bools
    contact: Bools
    gap: Bools
    wait: Bools
    repeat: Bools
    latent: Floats
    csat: Ints
    dissatisfied: Bools


_UNIFORMS = ("stock_out", "payment_failure", "app_error", "late", "cancel", "contact", "wait", "repeat")


def draw_orders(rng: np.random.Generator, planted: Planted, remote: Bools, paid: Bools, gap: Bools) -> Draws:
    count = len(remote)
    uniforms = {name: rng.random(count) for name in _UNIFORMS}
    return Draws(remote, paid, gap, uniforms, rng.normal(0.0, planted.satisfaction_sd, count))


def respond(planted: Planted, draws: Draws, do: Mapping[str, bool] | None = None) -> Orders:
    """The structural equations; `do` sets an issue for every order (for contacts where it is about contacts)."""
    do = do or {}
    u = draws.uniforms

    def happens(name: str, drawn: str, probability: NDArray[np.floating[Any]] | float) -> Bools:
        if name in do:
            return np.full(len(draws.remote), do[name])
        return u[drawn] < probability

    stock_out = happens("stock_out", "stock_out", planted.stock_out)
    payment_failure = happens("payment_failure", "payment_failure", planted.payment_failure)
    app_error = happens("app_error", "app_error", planted.app_error)
    cancelled = u["cancel"] < (
        planted.cancel + planted.cancel_if_stock_out * stock_out + planted.cancel_if_payment_failure * payment_failure
    )
    late = ~cancelled & happens(
        "late_delivery",
        "late",
        planted.late + planted.late_if_remote * draws.remote + planted.late_if_stock_out * stock_out,
    )
    contact = u["contact"] < (
        planted.contact
        + planted.contact_if_late * late
        + planted.contact_if_stock_out * stock_out
        + planted.contact_if_payment_failure * payment_failure
        + planted.contact_if_app_error * app_error
    )
    gap = np.full(len(draws.gap), do["training_gap"]) if "training_gap" in do else draws.gap
    wait = contact & happens("long_wait", "wait", planted.wait + planted.wait_if_gap * gap)
    repeat = contact & happens("repeat_contact", "repeat", planted.repeat + planted.repeat_if_gap * gap)
    latent = (
        planted.base_satisfaction
        + planted.remote_effect * draws.remote
        + planted.paid_effect * draws.paid
        + planted.late_effect * late
        + planted.stock_out_effect * stock_out
        + planted.payment_failure_effect * payment_failure
        + planted.app_error_effect * app_error
        + planted.wait_effect * wait
        + planted.repeat_effect * repeat
        + draws.noise
    )
    csat = np.clip(np.rint(latent), 1, 5).astype(np.int64)
    return Orders(
        stock_out, payment_failure, app_error, cancelled, late, contact, gap, wait, repeat, latent, csat, csat <= 2
    )
