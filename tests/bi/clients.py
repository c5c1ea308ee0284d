"""`python -m tests.bi.clients`: contract, dbt, MetricFlow and Superset on a real PostgreSQL, as members of `reader`.

Each client is installed into an environment of its own below the cache the first time. A quarter of a small company
is loaded into a PostgreSQL server that lives as long as this runs; all clients read as a member of the role `reader`.
The dashboard is imported from deploy/bi/superset, rendered in Chromium, and kept as docs/img/superset.png.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import jsonschema
import psycopg
from ruamel.yaml import YAML
from sqlalchemy.engine import make_url

from tests.integration.test_queries import Company
from tests.support import postgres
from tests.support.chromium import browser, find_or_install
from vocbeam.deploy.broker import free_port
from vocbeam.sinks.catalog import role_prefix
from vocbeam.sinks.roles import role_names

PROJECT = Path(__file__).parents[2]
BI = PROJECT / "deploy" / "bi"
ENVIRONMENTS = Path(os.environ.get("VOCBEAM_BI_ENVIRONMENTS") or PROJECT / ".cache" / "bi")
SCREENSHOT = PROJECT / "docs" / "img" / "superset.png"
READY_TIMEOUT_S = 600
PASSWORD = "admin"
CHARTS = 3
SIGN_INS = 5

PACKAGES = {
    "odcs": ["open-data-contract-standard==3.2.0"],
    "dbt": ["--only-binary", ":all:", "dbt-core==1.12.0", "dbt-postgres"],
    # Its spinner is there as source only; the parser's source would be fetched from elsewhere.
    "metricflow": [
        *("--only-binary", "dbt-core-experimental-parser"),
        *("dbt-metricflow==0.15.0", "dbt-core==1.12.0", "dbt-postgres"),
    ],
    "superset": ["--exclude-newer", "2026-06-01", "apache-superset==6.1.0", "psycopg2-binary", "rich", "cachetools"],
}


def environment(name: str) -> Path:
    """The folder of programs of a client, installed the first time."""
    folder = ENVIRONMENTS / name
    if not (folder / "bin" / "python").exists():
        click.echo(f"installing {name} into {folder}")
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        python = str(folder / "bin" / "python")
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *PACKAGES[name]], check=True)
    return folder / "bin"


def check_contract() -> None:
    """Holds the contract against the JSON schema of the standard's own package."""
    find = "import open_data_contract_standard as o; print(o.__path__[0])"
    python = str(environment("odcs") / "python")
    folder = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout.strip()
    schema = json.loads((Path(folder) / "schema.json").read_text(encoding="utf-8"))
    contract = YAML(typ="safe", pure=True).load((BI / "contract.odcs.yaml").read_text(encoding="utf-8"))
    jsonschema.validators.validator_for(schema)(schema).validate(contract)
    click.echo(f"contract: valid under the ODCS JSON schema ({contract['apiVersion']})")


def write_profile(url: str, folder: Path, schema: str) -> None:
    """Tells dbt where the warehouse is, and the schema of its own views."""
    where = make_url(url)
    output = {"type": "postgres", "host": where.host, "port": where.port, "user": where.username, "pass": "none"}
    output |= {"dbname": where.database, "schema": schema, "threads": 1}
    profile = {"vocbeam": {"target": "reader", "outputs": {"reader": output}}}
    (folder / "profiles.yml").write_text(json.dumps(profile), encoding="utf-8")


def run_dbt(url: str, folder: Path) -> None:
    """Parses the dbt project, and asks its semantic model's query of the warehouse."""
    write_profile(url, folder, "public")
    options = ["--profiles-dir", str(folder), "--target-path", str(folder / "target"), "--log-path", str(folder)]
    dbt = [str(environment("dbt") / "dbt"), "--no-send-anonymous-usage-stats", "--quiet"]
    for command in (["parse"], ["show", "--select", "vocbeam_metric_month", "--limit", "3"]):
        subprocess.run([*dbt, *command, *options], check=True, cwd=BI / "dbt")
    manifest = json.loads((folder / "target" / "semantic_manifest.json").read_text(encoding="utf-8"))
    click.echo(f"dbt: {len(manifest['metrics'])} metrics parsed, the facts were read from the warehouse")


MF_SCHEMA = "bi"
MF_QUERIES = {
    ("csat", "metric_time__month"): "SELECT period_start, 1.0 * sum(numerator) / sum(denominator) FROM metric_by_month "
    "WHERE metric = 'csat' AND suppressed = 0 GROUP BY period_start",
    ("nps", "metric_month__stage"): "SELECT stage, 100.0 * sum(numerator) / sum(denominator) FROM metric_by_month "
    "WHERE metric = 'nps' AND suppressed = 0 GROUP BY stage",
}
"""Metric and dimension asked of MetricFlow → the same figures, by what they are grouped by, from the view."""


def run_metricflow(url: str, folder: Path) -> None:
    """Builds the dbt project in a schema of the reader's own, and compares MetricFlow's answers with the view's."""
    project = folder / "metricflow"
    shutil.copytree(BI / "dbt", project)
    write_profile(url, project, MF_SCHEMA)
    programs = environment("metricflow")
    own = {**os.environ, "DBT_PROFILES_DIR": str(project), "DBT_SEND_ANONYMOUS_USAGE_STATS": "0"}
    subprocess.run([str(programs / "dbt"), "--quiet", "run"], check=True, cwd=project, env=own)
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    for (metric, dimension), query in MF_QUERIES.items():
        asked = ["query", "--metrics", metric, "--group-by", dimension, "--csv", "answer.csv"]
        subprocess.run([str(programs / "mf"), *asked], check=True, cwd=project, env=own, stdout=subprocess.DEVNULL)
        with (project / "answer.csv").open(encoding="utf-8", newline="") as file:
            answer = {row[dimension].removesuffix(" 00:00:00"): float(row[metric]) for row in csv.DictReader(file)}
        with psycopg.connect(plain) as connection:
            expected = {str(key): float(value) for key, value in connection.execute(query)}
        if not expected or answer.keys() != expected.keys():
            raise SystemExit(f"MetricFlow's {metric} has {sorted(answer)}, the view {sorted(expected)}")
        if not all(math.isclose(answer[key], expected[key]) for key in expected):
            raise SystemExit(f"MetricFlow's {metric} differs from the view: {answer}, {expected}")
        click.echo(f"MetricFlow: {metric} by {dimension} is the view's, {len(expected)} figures")


def bundle(url: str) -> bytes:
    """The dashboard's export with the warehouse's address, as a zip file."""
    address = make_url(url).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted((BI / "superset").rglob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            text = text.replace("postgresql+psycopg2://reader@127.0.0.1:5432/vocbeam", address)
            archive.writestr(f"export/{path.relative_to(BI / 'superset')}", text)
    return out.getvalue()


def render(url: str, folder: Path, chromium: Path) -> None:
    """Imports the dashboard into a new Superset, renders it, and keeps the picture."""
    programs = environment("superset")
    config = folder / "superset_config.py"
    config.write_text(
        f"SECRET_KEY = {os.urandom(32).hex()!r}\nSQLALCHEMY_DATABASE_URI = 'sqlite:///{folder / 'superset.db'}'\n"
        "TALISMAN_ENABLED = False\n",
        encoding="utf-8",
    )
    own = {**os.environ, "SUPERSET_CONFIG_PATH": str(config), "FLASK_APP": "superset"}
    export = folder / "export.zip"
    export.write_bytes(bundle(url))

    def superset(*arguments: str) -> None:
        with (folder / "superset.log").open("ab") as log:
            subprocess.run(
                [str(programs / "superset"), *arguments], check=True, env=own, stdout=log, stderr=log, cwd=folder
            )

    superset("db", "upgrade")
    person = ("--username", "admin", "--firstname", "Ada", "--lastname", "Admin", "--email", "a@example.org")
    superset("fab", "create-admin", *person, "--password", PASSWORD)
    superset("init")
    superset("import-dashboards", "--path", str(export), "--username", "admin")
    port = free_port()
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [str(programs / "superset"), "run", "-h", "127.0.0.1", "-p", str(port)],
            env=own,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health")
            _screenshot(f"http://127.0.0.1:{port}", chromium)
        finally:
            server.terminate()
            server.wait()


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _screenshot(address: str, chromium: Path) -> None:
    with browser(chromium) as started:
        page = started.new_page(viewport={"width": 1500, "height": 1010})
        page.set_default_timeout(1000 * READY_TIMEOUT_S)
        # On a busy machine the form may be drawn anew while it is filled in; then Superset shows it again.
        for _ in range(SIGN_INS):
            page.goto(f"{address}/login/")
            page.fill("#username", "admin")
            page.fill("#password", PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_url(lambda url: url != f"{address}/login/")
            if "/superset/welcome/" in page.url and "/login/" not in page.url:
                break
        else:
            raise SystemExit(f"Superset took no sign-in, {SIGN_INS} times")
        page.goto(f"{address}/superset/dashboard/voice-of-the-customer/?standalone=1")
        page.wait_for_function(
            "n => document.querySelectorAll('[data-test=\"chart-container\"] canvas, table tbody tr').length > n",
            arg=CHARTS - 1,
        )
        page.wait_for_timeout(5000)
        errors = page.locator("[role=alert]").all_inner_texts()
        SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(SCREENSHOT))
    if errors:
        raise SystemExit(f"Superset shows errors: {errors}; see {SCREENSHOT}")
    click.echo(f"Superset: dashboard imported and rendered, see {SCREENSHOT}")


@click.command()
@click.option("--only", type=click.Choice(["contract", "dbt", "metricflow", "superset"]), help="One client alone.")
def main(only: str | None) -> None:
    """Try the generated files and the dashboard with real clients."""
    if only in (None, "contract"):
        check_contract()
    if only == "contract":
        return
    # First, since the clients take minutes to install.
    chromium = find_or_install()
    server = postgres.start()
    try:
        with server.database() as url, TemporaryDirectory() as folder:
            warehouse = Company().load(url)
            group = role_names(role_prefix(warehouse))["reader"]
            warehouse.dispose()
            plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
            with psycopg.connect(plain, autocommit=True) as connection:
                connection.execute("CREATE ROLE bi_reader LOGIN")
                connection.execute(f'GRANT "{group}" TO bi_reader')
                connection.execute(f"CREATE SCHEMA {MF_SCHEMA} AUTHORIZATION bi_reader")
            reader = make_url(url).set(username="bi_reader").render_as_string(hide_password=False)
            if only in (None, "dbt"):
                run_dbt(reader, Path(folder))
            if only in (None, "metricflow"):
                run_metricflow(reader, Path(folder))
            if only in (None, "superset"):
                render(reader, Path(folder), chromium)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
