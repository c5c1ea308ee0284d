"""The figures of the real data sets, computed with pandas from the raw files alone.

Nothing of the pipeline is used, not even its constants: what a mapping's notes, the governance file and the views say
in words is computed here a second time. Needs the extra `verify`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from vocbeam.pipelines.figures import Olist, Row, Rows, ServiceNow, Sfo

BRAZIL = "America/Sao_Paulo"

Z = NormalDist().inv_cdf(0.975)


def olist(data: Path) -> Olist:
    """Reviews, life cycle and payments of the orders."""
    folder = data / "olist"
    orders = _read(folder / "olist_orders_dataset.csv.gz")
    reviews = _read(folder / "olist_order_reviews_dataset.csv.gz").drop_duplicates(["review_id", "order_id"])
    payments = _read(folder / "olist_order_payments_dataset.csv.gz").drop_duplicates(["order_id", "payment_sequential"])
    status = orders.set_index("order_id")["order_status"]
    purchased = _brazilian(orders["order_purchase_timestamp"])
    arrived = _brazilian(orders["order_delivered_customer_date"])
    promised = _brazilian(orders["order_estimated_delivery_date"])
    steps = {
        "approval_time": _brazilian(orders["order_approved_at"]),
        "handover_time": _brazilian(orders["order_delivered_carrier_date"]),
        "delivery_time": arrived,
    }
    cancelled = orders["order_status"].isin(["canceled", "unavailable"])
    names = ("order_approved", "order_handed_to_carrier", "order_delivered")
    events = {
        "survey csat": len(reviews),
        **{f"telemetry {name}": int(step.notna().sum()) for name, step in zip(names, steps.values(), strict=True)},
        "outcome purchase": len(payments),
        "outcome cancellation": int(cancelled.sum()),
    }

    answers = pd.DataFrame({"month": _month(_brazilian(reviews["review_creation_date"]))})
    answers["score"] = reviews["review_score"].astype(int)
    answers["weight"] = np.where(reviews["order_id"].map(status) == "delivered", 186_539, 10_000)
    answers["scored_weight"] = answers["score"] * answers["weight"]
    answers["satisfied"] = (answers["score"] >= 4).astype(int)
    answers["satisfied_weight"] = answers["satisfied"] * answers["weight"]
    answers["n"] = 1
    months = answers.groupby("month").sum()

    deliveries = pd.DataFrame({"month": _month(arrived), "late": (arrived > promised).astype(int), "n": 1})
    deliveries = deliveries[arrived.notna()].groupby("month").sum()

    money = pd.DataFrame({"n": 1, "centavos": (payments["payment_value"].astype(float) * 100).round().astype(int)})
    money["month"] = payments["order_id"].map(pd.Series(_month(purchased).to_numpy(), index=orders["order_id"]))

    durations: dict[str, Row] = {}
    percentiles: dict[str, Row] = {}
    reported: dict[str, Row] = {}
    for metric, step in steps.items():
        measured = step.notna() & (step >= purchased)
        seconds = (_micros(step[measured]) - _micros(purchased[measured])) // 1_000_000
        for month, group in seconds.groupby(_month(step[measured])):
            place = f"{month} {metric}"
            durations[place] = int(group.sum()), len(group)
            percentiles[place] = _percentile(group, 50), _percentile(group, 90)
            reported[place] = (_percentile(group, 90),)
    return Olist(
        accounts={"loaded or known already": (sum(events.values()),), "dead letters": (0,)},
        events={name: (n,) for name, n in events.items()},
        csat_scores=_rows(answers.groupby(["month", "score"])[["n", "weight"]].sum()),
        csat_means={
            month: (int(row["score"]), int(row["n"]), int(row["score"]) / int(row["n"]))
            for month, row in _records(months)
        },
        csat_weighted_means=_rows(months[["scored_weight", "weight"]]),
        csat_shares={
            month: (
                int(row["satisfied"]),
                int(row["n"]),
                int(row["satisfied"]) / int(row["n"]),
                int(row["satisfied_weight"]) / int(row["weight"]),
            )
            for month, row in _records(months)
        },
        late_deliveries={
            month: (int(row["late"]), int(row["n"]), int(row["late"]) / int(row["n"]))
            for month, row in _records(deliveries)
        },
        revenue={"BRL": (int(money["centavos"].sum()), len(money))},
        revenue_by_month=_rows(money.groupby("month")[["centavos", "n"]].sum()),
        durations=durations,
        percentiles=percentiles,
        reported_percentiles=reported,
    )


def servicenow(data: Path) -> ServiceNow:
    """Openings, first responses, resolutions and reopenings from the sequence of each incident's updates."""
    rows = _read(data / "servicenow" / "incident_event_log.csv.gz")
    rows["count"] = rows["sys_mod_count"].astype(int)
    for name in ("sys_updated_at", "opened_at", "resolved_at"):
        rows[name] = pd.to_datetime(rows[name].where(rows[name] != "?"), format="%d/%m/%Y %H:%M")
    rows = rows.sort_values(["number", "count", "sys_updated_at"], kind="stable").reset_index(drop=True)
    number, state, group = rows["number"], rows["incident_state"], rows["assignment_group"]
    first = ~number.duplicated()

    done = state.isin(["Resolved", "Closed"])
    after_done = done.shift(fill_value=False) & ~first
    # An incident's first row opens it whatever its state; without resolved_at nobody knows when it was resolved.
    resolved = done & ~first & rows["resolved_at"].notna()
    after_resolved = resolved.shift(fill_value=False) & ~first
    resolves = resolved & ~after_resolved
    last = resolves & ~number.where(resolves, rows.index.astype(str)).duplicated(keep="last")
    moment = rows["opened_at"].where(first, rows["resolved_at"].where(last, rows["sys_updated_at"]))
    reopens = ~done & after_resolved
    taken_up = (state != "New") & ~done & ~first & ~after_done & ((state.shift() == "New") | (group == group.shift()))
    answers = (taken_up | resolved) & (rows["sys_updated_by"] != "Updated by 908")

    incidents = pd.DataFrame({"opened": _micros(rows["opened_at"][first]).set_axis(number[first])})
    answered = answers & ~number.where(answers, rows.index.astype(str)).duplicated()
    incidents["answered"] = _micros(moment[answered]).set_axis(number[answered])
    ends = ~number.duplicated(keep="last") & resolved
    incidents["resolved"] = _micros(rows["resolved_at"][ends]).set_axis(number[ends])
    incidents["reopened"] = reopens.groupby(number).sum()
    in_file = reopen_counts(data)
    unknown = rows[first & rows["resolved_at"].isna()]["number"]
    still_open = incidents[incidents["resolved"].isna()]

    month = pd.to_datetime(incidents["opened"], unit="us").dt.strftime("%Y-%m")
    spans = {
        "first_response_time": (incidents["answered"] - incidents["opened"]).dropna().astype("int64"),
        "resolution_time": (incidents["resolved"] - incidents["opened"]).dropna().astype("int64"),
    }
    durations: dict[str, Row] = {}
    medians: dict[str, Row] = {}
    for metric, span in spans.items():
        for of_month, seconds in (span // 1_000_000).groupby(month):
            durations[f"{of_month} {metric}"] = int(seconds.sum()), len(seconds)
            medians[f"{of_month} {metric}"] = (_percentile(seconds, 50),)
    ever = (incidents["reopened"] > 0).groupby(month)
    return ServiceNow(
        accounts={
            "loaded or known already": (len(rows),),
            "dead letters": (0,),
            "incidents": (int(number.nunique()),),
        },
        opened=_rows(incidents[["opened"]]),
        first_responses=_rows(spans["first_response_time"].to_frame()),
        resolutions=_rows(spans["resolution_time"].to_frame()),
        unresolved={str(incident): (1,) for incident in unknown},
        open={str(incident): (1,) for incident in still_open.index},
        backlog={"": (len(still_open), int(still_open["answered"].isna().sum()))},
        reopened=_rows(incidents[["reopened"]]),
        reopened_otherwise={
            str(incident): (int(ours), in_file[str(incident)])
            for incident, ours in incidents["reopened"].items()
            if ours != in_file[str(incident)]
        },
        opened_by_month=_rows(month.groupby(month).count().to_frame()),
        durations=durations,
        reported_percentiles=medians,
        reopened_by_month={
            str(of_month): (int(flags.sum()), len(flags), int(flags.sum()) / len(flags)) for of_month, flags in ever
        },
    )


def reopen_counts(data: Path) -> dict[str, int]:
    """Incident → the highest reopen_count that its rows in the file have."""
    rows = _read(data / "servicenow" / "incident_event_log.csv.gz")
    return {str(number): int(count) for number, count in rows.groupby("number")["reopen_count"].max().items()}


def sfo(data: Path) -> Sfo:
    """Recommendation and ratings of 2017."""
    rows = _read(data / "sfo_survey" / "2017_SFO_Customer_Survey.csv.gz")
    weight = (rows["WEIGHT"].astype(float) * 10_000).round().astype(int)
    answered = rows["NETPRO"].isin([str(score) for score in range(11)])
    nps = pd.DataFrame({"score": rows["NETPRO"][answered].astype(int), "weight": weight[answered], "n": 1})
    promoters, detractors = nps["score"] >= 9, nps["score"] <= 6
    n = len(nps)
    w, w_sq = int(nps["weight"].sum()), int((nps["weight"] ** 2).sum())
    counts = int(promoters.sum()), int(detractors.sum())
    shares = int(nps["weight"][promoters].sum()) / w, int(nps["weight"][detractors].sum()) / w
    effective = w * w / w_sq

    asked = ["Q10SAFE", "Q13GETRATE", "Q14FIND", "Q14PASSTHRU"]
    asked += [name for name in rows.columns if name.startswith(("Q7", "Q9")) and "COM" not in name]
    ratings = rows[asked].assign(weight=weight).melt(id_vars="weight", value_name="score")
    ratings = ratings[ratings["score"].isin(["1", "2", "3", "4", "5"])].assign(n=1)
    month = "2017-05"
    return Sfo(
        accounts={"loaded or known already": (n + len(ratings),), "dead letters": (0,)},
        nps_scores=_rows(nps.groupby("score")[["n", "weight"]].sum(), month),
        nps_counts={month: (counts[0] - counts[1], n, w, w_sq)},
        nps={month: (100 * (counts[0] - counts[1]) / n,)},
        nps_interval={month: _adjusted_wald(n, *counts)},
        nps_weighted={month: (100 * (shares[0] - shares[1]),)},
        nps_weighted_interval={month: _adjusted_wald(effective, shares[0] * effective, shares[1] * effective)},
        ratings=_rows(ratings.groupby("score")[["n", "weight"]].sum(), month),
    )


def _adjusted_wald(n: float, promoters: float, detractors: float) -> Row:
    """95 % interval of NPS in points (Rocks 2016): three answers more, a quarter of them each of the outer kinds."""
    size = n + 3
    p, d = (promoters + 0.75) / size, (detractors + 0.75) / size
    margin = Z * math.sqrt((p + d - (p - d) ** 2) / size)
    return 100 * (p - d - margin), 100 * (p - d + margin)


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _brazilian(local: pd.Series[Any]) -> pd.Series[Any]:
    """Local times of Brazil; NaT where empty, the first of two equal ones, the end of the gap for a skipped one."""
    naive = pd.to_datetime(local.where(local != ""), format="%Y-%m-%d %H:%M:%S")
    return naive.dt.tz_localize(BRAZIL, ambiguous=np.ones(len(naive), bool), nonexistent="shift_forward")


def _month(moments: pd.Series[Any]) -> pd.Series[Any]:
    months: pd.Series[Any] = moments.dt.strftime("%Y-%m")
    return months


def _micros(moments: pd.Series[Any]) -> pd.Series[Any]:
    micros: pd.Series[Any] = moments.dt.as_unit("us").astype("int64")
    return micros


def _percentile(values: pd.Series[Any], percentile: int) -> int:
    return int(np.percentile(values.to_numpy(), percentile, method="inverted_cdf"))


def _records(frame: pd.DataFrame) -> list[tuple[str, Any]]:
    return [(str(place), row) for place, row in frame.iterrows()]


def _rows(frame: pd.DataFrame, month: str = "") -> Rows:
    """A frame of whole numbers as a table; several levels of its index, and the month, become one place."""

    def place(index: Any) -> str:
        parts: Sequence[Any] = index if isinstance(index, tuple) else (index,)
        return " ".join(str(part) for part in (month, *parts) if part != "")

    return {place(row[0]): tuple(int(figure) for figure in row[1:]) for row in frame.itertuples(name=None)}
