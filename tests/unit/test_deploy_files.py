"""Container, compose and Kubernetes files: valid by their own schemas, and true of this product.

No container engine runs where these tests do, so they compare the files with the code and with each other.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import click
import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from vocbeam.pipelines import alert_routes
from vocbeam.pipelines.case_receiver import load_token, token_source
from vocbeam.pipelines.cli import vocbeam
from vocbeam.pipelines.heartbeats import SILENT_SECONDS
from vocbeam.pipelines.web.command import OIDC_SECRET_ENV, SECRET_ENV, check_binding
from vocbeam.pipelines.workers import STOP_SECONDS
from vocbeam.schemas.secrets import DeadLetterCipher, dead_letter_source, pseudonym_key, pseudonym_source
from vocbeam.transforms.kafka_settings import parse_settings

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
CONTAINERFILE = DEPLOY / "Containerfile"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes"
LINTERS = Path(sys.executable).parent

KUBERNETES_VERSIONS = ("1.30", "1.34")
METRICS_PORT = 9464
PAGES_PORT = 8088
CASES_PORT = 9466
FLINK = "FlinkDeployment"
OPERATED = (FLINK, "PrometheusRule", "ServiceMonitor")
"""Kinds whose schemas come with an operator and not with Kubernetes."""

Json = Any


def load(path: Path) -> list[Json]:
    """The documents of a YAML file, read as Kubernetes and Compose read it: version 1.1, no key twice."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)
    return [document for document in yaml.load_all(path.read_text(encoding="utf-8")) if document is not None]


def merge(base: Json, patch: Json) -> Json:
    """`patch` over `base`, as Kubernetes does for what these files patch: lists of named things by name."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {**base, **{key: merge(base.get(key), value) for key, value in patch.items()}}
    if isinstance(base, list) and all(isinstance(item, dict) and "name" in item for item in [*base, *patch]):
        named = {item["name"]: item for item in base}
        named |= {item["name"]: merge(named.get(item["name"]), item) for item in patch}
        return list(named.values())
    return patch


def build(folder: str) -> list[Json]:
    """What `kubectl kustomize` makes of a folder here: its resources with those of its bases, patched."""
    (kustomization,) = load(KUBERNETES / folder / "kustomization.yaml")
    found: list[Json] = []
    for resource in kustomization["resources"]:
        path = KUBERNETES / folder / resource
        found += load(path) if path.is_file() else build(path.resolve().name)
    for entry in kustomization.get("patches", []):
        (patch,) = load(KUBERNETES / folder / entry["path"])
        found = [merge(document, patch) if key_of(document) == key_of(patch) else document for document in found]
    return found


def key_of(document: Json) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


FOLDERS = ("warehouse", "pipeline", "flink", "alerts", "people", "value")
BUILT = {folder: build(folder) for folder in FOLDERS}
RESOURCES = list({key_of(document): document for documents in BUILT.values() for document in documents}.values())
SERVICES: Mapping[str, Json] = load(COMPOSE)[0]["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("vocbeam:")}


def pods(documents: list[Json]) -> Iterator[tuple[str, Json, Json]]:
    """(name, pod template, container) of each container of ours."""
    for document in documents:
        kind, name = key_of(document)
        spec = document.get("spec", {})
        templates = {
            "Deployment": lambda spec=spec: [spec["template"]],
            "Job": lambda spec=spec: [spec["template"]],
            "CronJob": lambda spec=spec: [spec["jobTemplate"]["spec"]["template"]],
            FLINK: lambda spec=spec: [merge(spec["podTemplate"], spec["taskManager"]["podTemplate"])],
        }
        for template in templates.get(kind, list)():
            for container in template["spec"]["containers"]:
                if container["name"] != "flink-main-container":
                    yield f"{name}/{container['name']}", template, container


ALL_PODS = [(f"{folder} {name}", *pod) for folder in FOLDERS for name, *pod in pods(BUILT[folder])]
PODS = {name.split(" ")[1]: (template, container) for name, template, container in ALL_PODS}
"""By name; of what two folders have, the last one's."""
PIPELINE_POD = next(c for name, _, c in pods(BUILT["pipeline"]) if name == "vocbeam-run/run")


def command_lines() -> dict[str, list[str]]:
    lines = {f"compose {name}": service["command"] for name, service in OURS.items()}
    for folder in FOLDERS:
        for name, _, container in pods(BUILT[folder]):
            if container["image"] == "vocbeam":
                lines[f"{folder} {name}"] = container["args"]
    return lines


def linter(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINTERS / name, *arguments], capture_output=True, text=True, check=False)


# Linters, and that they find what is planted.


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        pytest.param(None, None, id="as it is"),
        pytest.param("FROM debian\n", "DL3006", id="image without a tag"),
        pytest.param("FROM debian:12\nRUN sudo ls\n", "DL3004", id="sudo"),
        pytest.param("FROM debian:12\nUSER root\n", "DL3002", id="root"),
    ],
)
def test_containerfile__hadolint(tmp_path: Path, planted: str | None, found: str | None) -> None:
    path = tmp_path / "Containerfile"
    path.write_text(planted or CONTAINERFILE.read_text(encoding="utf-8"), encoding="utf-8")
    ended = linter("hadolint", path)
    assert (ended.returncode == 0) == (found is None), ended.stdout
    assert found is None or found in ended.stdout


@pytest.mark.parametrize(
    ("text", "planted", "valid"),
    [
        pytest.param("", "", True, id="as it is"),
        pytest.param("read_only: true", "read_olny: true", False, id="misspelt key"),
        pytest.param("interval: 20s", "interval: [20s]", False, id="wrong type"),
    ],
)
def test_compose__specification(tmp_path: Path, text: str, planted: str, valid: bool) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(COMPOSE.read_text(encoding="utf-8").replace(text, planted) if text else COMPOSE.read_text())
    ended = linter("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    assert (ended.returncode == 0) == valid, ended.stdout


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes__schemas(version: str) -> None:
    assert {kind for kind, _ in map(key_of, RESOURCES)} >= {"Job", "CronJob", "Deployment", "NetworkPolicy", FLINK}
    for document in RESOURCES:
        if document["kind"] not in OPERATED:
            kubernetes_validate.validate(document, version, strict=True)
    # Of the operator's kind, what Kubernetes knows: the pods in it.
    for template in (cluster()["podTemplate"], cluster()["taskManager"]["podTemplate"]):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(("spec", "strategi"), {"type": "Recreate"}, id="misspelt key"),
        pytest.param(("spec", "replicas"), "one", id="wrong type"),
        pytest.param(("spec", "template", "spec", "terminationGracePeriod"), 30, id="key of another place"),
    ],
)
def test_kubernetes__schemas_refuse_what_is_planted(path: tuple[str, ...], value: object) -> None:
    document = next(document for document in RESOURCES if key_of(document) == ("Deployment", "vocbeam-exporter"))
    patch: Json = value
    for key in reversed(path):
        patch = {key: patch}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(merge(document, patch), KUBERNETES_VERSIONS[-1], strict=True)


def cluster() -> Json:
    return next(document["spec"] for document in RESOURCES if document["kind"] == FLINK)


def test_kustomizations__name_every_file() -> None:
    for path in KUBERNETES.glob("*/*.yaml"):
        (kustomization,) = load(path.parent / "kustomization.yaml")
        named = [*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", []))]
        assert path.name == "kustomization.yaml" or path.name in named


# Commands, variables, addresses.


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, id=where) for where, line in command_lines().items()],
)
def test_commands__exist_with_their_options(line: list[str]) -> None:
    parse(line)


@pytest.mark.parametrize("line", [["run", "--no-such"], ["run", "stray"], ["runn"], ["run", "--runner", "spark"]])
def test_commands__parse_refuses(line: list[str]) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parse(line)


def parse(line: list[str]) -> None:
    """Raises where the command line has no such command, option, argument or value."""
    command: click.Command | None = vocbeam
    words = list(line)
    context = click.Context(vocbeam)
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0))
    assert command is not None
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    assert rest == []
    for option in command.params:
        if option.name in values and isinstance(option.type, click.Choice | click.types.IntParamType):
            option.type.convert(values[option.name], option, context)


def variables_read() -> set[str]:
    """Every variable of ours that the code names, and for each secret the one that names its file."""
    sources = [
        path.read_text(encoding="utf-8") for top in ("schemas", "pipelines") for path in (PROJECT / top).rglob("*.py")
    ]
    named = {name for source in sources for name in re.findall(r'"(VOCBEAM_\w+)"', source)}
    secrets = {source(Path()).env for source in (pseudonym_source, dead_letter_source, token_source)}
    secrets |= {SECRET_ENV, OIDC_SECRET_ENV}
    assert secrets < named
    return named | {f"{name}_FILE" for name in secrets}


def test_environment__every_variable_is_one_that_is_read() -> None:
    settings = next(document["data"] for document in RESOURCES if key_of(document) == ("ConfigMap", "vocbeam-settings"))
    kafka = next(document["data"] for document in RESOURCES if key_of(document) == ("ConfigMap", "vocbeam-kafka"))
    referred = set(re.findall(r"\$\{(\w+)\}", kafka["client.properties"]))
    libraries = {"PGUSER", "PGPASSWORD", "PGPASSFILE", "SSL_CERT_FILE"}
    image = dict(re.findall(r"^(?:ENV)? +(VOCBEAM_\w+)=(\S+)", CONTAINERFILE.read_text(encoding="utf-8"), re.M))
    given = set(settings) | {name for name in image if name != "VOCBEAM_CACHE"}
    for service in OURS.values():
        given |= set(service.get("environment", {}))
    for _, _, container in ALL_PODS:
        if container["image"] == "vocbeam":
            given |= {variable["name"] for variable in container.get("env", [])}
    assert len(given) > 10
    assert given - variables_read() - libraries - referred == set()
    assert parse_settings(kafka["client.properties"])["security_protocol"] == "SASL_SSL"


def test_generated_files__are_where_compose_looks_for_them() -> None:
    (prometheus,) = load(DEPLOY / "prometheus.yml")
    (pattern,) = prometheus["rule_files"]
    here = {path.name for path in (DEPLOY / "generated").iterdir()}
    assert {name for name in here if PurePath(f"/etc/prometheus/generated/{name}").match(pattern)} == {"rules.yml"}
    command = SERVICES["alertmanager"]["command"]
    assert "--config.file=/etc/alertmanager/generated/alertmanager.yml" in command
    assert here == {"rules.yml", "alertmanager.yml", "vocbeam.json"}
    # The rules ask for the job by its name.
    assert [job["job_name"] for job in prometheus["scrape_configs"]] == ["vocbeam"]


def test_operator__scrapes_the_exporter_as_the_job_that_the_rules_name() -> None:
    monitor = next(document for document in RESOURCES if document["kind"] == "ServiceMonitor")
    service = next(document for document in RESOURCES if key_of(document) == ("Service", "vocbeam-exporter"))
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "vocbeam"
    ports = {entry["name"] for entry in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


def test_addresses__agree() -> None:
    (prometheus,) = load(DEPLOY / "prometheus.yml")
    targets = [t for job in prometheus["scrape_configs"] for entry in job["static_configs"] for t in entry["targets"]]
    assert targets == [f"exporter:{METRICS_PORT}"]
    exporters = [line for line in command_lines().values() if line[0] == "exporter"]
    assert len(exporters) >= 2
    assert {line[line.index("--port") + 1] for line in exporters} == {str(METRICS_PORT)}
    found = {key_of(document): document.get("spec") for document in RESOURCES}
    assert PODS["vocbeam-exporter/exporter"][1]["ports"] == [{"name": "metrics", "containerPort": METRICS_PORT}]
    assert found["Service", "vocbeam-exporter"]["ports"][0]["port"] == METRICS_PORT
    assert found["NetworkPolicy", "from-prometheus"]["ingress"][0]["ports"][0]["port"] == METRICS_PORT

    run = next(container["args"] for name, _, container in pods(BUILT["flink"]) if name == "vocbeam-run/run")
    options = dict(zip(run[1::2], run[2::2], strict=True))
    pool = PODS["vocbeam-flink/worker-pool"][1]
    assert options["--flink-worker-pool"] in pool["args"]
    assert options["--flink-rest"] == "http://vocbeam-flink-rest:8081"
    host, _, port = options["--flink-job-endpoint"].partition(":")
    assert {entry["port"] for entry in found["Service", host]["ports"]} == {int(port), 8098}
    assert f"--job-port={port}" in PODS["vocbeam-jobserver/jobserver"][1]["args"]
    assert int(options["--workers"]) == cluster()["taskManager"]["replicas"]
    inside = {entry["port"] for entry in found["NetworkPolicy", "flink-inside"]["egress"][0]["ports"]}
    fixed = {int(value) for name, value in cluster()["flinkConfiguration"].items() if name.endswith(".port")}
    assert inside == fixed | {6123, 8081, 8098, 8099}


def values_of(line: list[str]) -> dict[str, str]:
    """Option → value, of a command line of a command or of one in a group."""
    options = [i for i, word in enumerate(line) if word.startswith("--") and i + 1 < len(line)]
    return {line[i]: line[i + 1] for i in options}


def test_pages_and_cases__are_reached_where_others_look_for_them() -> None:
    lines = {where: values_of(line) for where, line in command_lines().items()}
    assert {values["--port"] for where, values in lines.items() if where.endswith("web")} == {str(PAGES_PORT)}
    assert {values["--port"] for where, values in lines.items() if where.endswith("cases")} == {str(CASES_PORT)}
    found = {key_of(document): document.get("spec") for document in RESOURCES}
    for name, policy, port in (("web", "from-ingress", PAGES_PORT), ("cases", "from-alertmanager", CASES_PORT)):
        container = PODS[f"vocbeam-{name}/{name}"][1]
        assert container["ports"] == [{"name": "http", "containerPort": port}]
        assert found["Service", f"vocbeam-{name}"]["ports"] == [{"name": "http", "port": port, "targetPort": "http"}]
        assert found["NetworkPolicy", policy]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port}]
        labels = PODS[f"vocbeam-{name}/{name}"][0]["metadata"]["labels"]
        assert found["NetworkPolicy", policy]["podSelector"]["matchLabels"].items() <= labels.items()
    for where in ("compose web", "people vocbeam-web/web"):
        values = lines[where]
        check_binding(values["--address"], values["--sign-in"], "https://voc.example.com")
    # The host, as a container of this network sees it, and nobody else.
    (network,) = load(COMPOSE)[0]["networks"]["pages"]["ipam"]["config"]
    assert lines["compose web"]["--trusted-proxy"] == network["gateway"]
    assert SERVICES["web"]["ports"] == [f"127.0.0.1:{PAGES_PORT}:{PAGES_PORT}"]
    assert [name for name, service in SERVICES.items() if "pages" in service.get("networks", [])] == ["web"]


def test_alertmanager__tells_the_receiver_of_cases_and_shows_its_secret() -> None:
    (config,) = load(DEPLOY / "generated" / "alertmanager.yml")
    told = {
        receiver["name"]: [hook for hook in receiver["webhook_configs"] if hook["url"] == CASES_URL]
        for receiver in config["receivers"]
    }
    departments = told.keys() - {alert_routes.UNROUTED, alert_routes.OPERATED, alert_routes.WATCHED}
    assert departments
    assert {name for name, hooks in told.items() if hooks} == departments
    secrets = {hook["http_config"]["authorization"]["credentials_file"] for hooks in told.values() for hook in hooks}
    assert [path.removeprefix("/run/secrets/") for path in secrets] == SERVICES["alertmanager"]["secrets"]
    assert set(SERVICES["alertmanager"]["networks"]) & set(SERVICES["cases"]["networks"])


CASES_URL = f"http://cases:{CASES_PORT}/alerts"


def test_jobs__never_run_twice_at_once_and_come_to_an_end() -> None:
    jobs = {key_of(document)[1]: document["spec"] for document in RESOURCES if document["kind"] == "CronJob"}
    assert jobs.keys() == {f"vocbeam-{name}" for name in ("retain", "compact", "value", "drivers")}
    for name, spec in jobs.items():
        assert spec["concurrencyPolicy"] == "Forbid", name
        assert spec["timeZone"] == "Etc/UTC", name
        assert spec["jobTemplate"]["spec"].keys() >= {"backoffLimit", "activeDeadlineSeconds"}, name
    assert len({spec["schedule"] for spec in jobs.values()}) == len(jobs)


def test_services__run_in_order() -> None:
    for name in ("pipeline", "exporter", "retain", "compact", "value", "drivers", "web", "cases"):
        assert SERVICES[name]["depends_on"]["accounts"] == {"condition": "service_completed_successfully"}
    assert SERVICES["accounts"]["depends_on"]["apply"] == {"condition": "service_completed_successfully"}


# Least rights.


def test_containers__have_limits_probes_and_no_rights() -> None:
    for name, template, container in ALL_PODS:
        resources, security = container["resources"], container["securityContext"]
        assert resources["limits"].keys() == resources["requests"].keys() == {"cpu", "memory"}, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True, name
        assert security.get("runAsUser", template["spec"]["securityContext"].get("runAsUser")) == 10001, name
        assert template["spec"]["automountServiceAccountToken"] is False, name
        if template["spec"].get("restartPolicy", "Always") == "Always":
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}, name
    for name, service in SERVICES.items():
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name
        assert "healthcheck" in service or service["restart"] == "no", name
    for name, service in OURS.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"].startswith("${VOCBEAM_UID:?"), name


def test_secrets__are_named_and_never_written() -> None:
    documented = set(re.findall(r"create secret generic ([\w-]+)", (PROJECT / "docs/deployment.md").read_text()))
    used = set()
    assert "Secret" not in {kind for kind, _ in map(key_of, RESOURCES)}
    for name, template, container in ALL_PODS:
        volumes = [volume["secret"] for volume in template["spec"]["volumes"] if "secret" in volume]
        used |= {volume["secretName"] for volume in volumes}
        # The group may read, as fsGroup needs; a key file open to others is refused.
        assert {volume["defaultMode"] for volume in volumes} <= {0o440}, name
        for variable in container.get("env", []):
            if "valueFrom" in variable and "secretKeyRef" in variable["valueFrom"]:
                used.add(variable["valueFrom"]["secretKeyRef"]["name"])
            elif re.search("PASSWORD|KEY|SECRET", variable["name"]):
                assert variable["name"].endswith("_FILE"), name
    assert used == documented
    declared = load(COMPOSE)[0]["secrets"]
    assert {secret for service in SERVICES.values() for secret in service.get("secrets", [])} == declared.keys()
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSW?ORD|PASSFILE|_KEY|SECRET", variable):
                assert variable.endswith("FILE"), name
                assert value.removeprefix("/run/secrets/") in service["secrets"], name


def test_roles__each_pod_has_one() -> None:
    def role(container: Json) -> set[str]:
        references = [variable.get("valueFrom", {}).get("secretKeyRef") for variable in container.get("env", [])]
        return {
            reference["name"] for reference in references if reference and reference["name"].startswith("warehouse")
        }

    assert {name.split("/")[1]: role(container) for name, _, container in ALL_PODS} == {
        "apply": {"warehouse-owner"},
        "retain": {"warehouse-owner"},
        "compact": {"warehouse-owner"},
        "value": {"warehouse-owner"},
        "drivers": {"warehouse-owner"},
        "run": {"warehouse-writer"},
        "worker-pool": {"warehouse-writer"},
        "exporter": {"warehouse-auditor"},
        "web": {"warehouse-web"},
        "cases": {"warehouse-receiver"},
        "jobserver": set(),
    }
    users = {name: service["environment"]["PGUSER"] for name, service in OURS.items() if "PGUSER" in str(service)}
    owners = dict.fromkeys(("apply", "retain", "compact", "value", "drivers"), "voc_owner")
    assert users == {**owners, "pipeline": "loader", "exporter": "watch", "web": "pages", "cases": "cases"}
    granted = [line.removeprefix("--command=GRANT voc_") for line in SERVICES["accounts"]["command"]]
    assert granted == ["writer TO loader", "auditor TO watch", "reader TO bi", "web TO pages", "receiver TO cases"]


def test_network__opens_what_each_pod_asks_for_and_no_more() -> None:
    policies = {key_of(d)[1]: d["spec"] for d in RESOURCES if d["kind"] == "NetworkPolicy"}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, template, container in ALL_PODS:
        labels, given = template["metadata"]["labels"], {variable["name"] for variable in container.get("env", [])}
        assert ("vocbeam/to-warehouse" in labels) == ("PGUSER" in given), name
        assert ("vocbeam/to-kafka" in labels) == ("KAFKA_PASSWORD" in given), name
        for label in labels:
            if label.startswith("vocbeam/to-"):
                assert policies[label.removeprefix("vocbeam/")]["podSelector"] == {"matchLabels": {label: "yes"}}


# Ends and heartbeats.


def test_grace__is_longer_than_a_run_takes_to_end() -> None:
    assert all(
        template["spec"]["terminationGracePeriodSeconds"] > STOP_SECONDS
        for name, template, _ in ALL_PODS
        if name.endswith("vocbeam-run/run")
    )
    assert int(SERVICES["pipeline"]["stop_grace_period"].removesuffix("s")) > STOP_SECONDS
    run = next(document for document in RESOURCES if key_of(document) == ("Deployment", "vocbeam-run"))
    assert (run["spec"]["replicas"], run["spec"]["strategy"]) == (1, {"type": "Recreate"})


def heartbeat_checks() -> dict[str, tuple[str, str]]:
    """Where → (shell command, folder of heartbeats it looks at)."""
    service = SERVICES["pipeline"]
    shell = service["healthcheck"]["test"][1].replace("$$", "$")
    found = {"compose": (shell, service["environment"]["VOCBEAM_HEARTBEAT"])}
    folder = next(variable["value"] for variable in PIPELINE_POD["env"] if variable["name"] == "VOCBEAM_HEARTBEAT")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        found[probe] = (PIPELINE_POD[probe]["exec"]["command"][2], folder)
    return found


@pytest.mark.parametrize("where", ["compose", "startupProbe", "readinessProbe", "livenessProbe"])
def test_heartbeats__are_what_the_probe_looks_at(tmp_path: Path, where: str) -> None:
    command, folder = heartbeat_checks()[where]
    beats = tmp_path / "beats"
    command = command.replace(folder, str(beats))
    assert f"-mmin +{SILENT_SECONDS // 60}" in command

    def healthy() -> bool:
        return subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0

    assert not healthy()
    beats.mkdir()
    assert not healthy()
    for name in ("shard-0", "shard-1"):
        (beats / name).touch()
    assert healthy()
    old = (beats / "shard-1").stat().st_mtime - SILENT_SECONDS - 61
    os.utime(beats / "shard-1", (old, old))
    assert not healthy()


# The image and its secrets.


def test_image__is_built_from_hashed_locks_and_runs_as_nobody_special() -> None:
    text = CONTAINERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    installs = re.findall(r"pip install [^&\n]+", text)
    assert installs
    for install in installs:
        assert "--require-hashes" in install or ("--no-deps" in install and "--no-index" in install), install
        for lock in re.findall(r"--requirement (\S+)", install):
            assert (PROJECT / lock).is_file()
    users = re.findall(r"^USER (\S+)", text, re.M)
    assert users == ["10001:10001"]
    assert all(re.match(r"\$\{PYTHON_IMAGE\}|build|base", image) for image in re.findall(r"^FROM (\S+)", text, re.M))
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim", text, re.M)
    assert not re.search(r"^(ARG|ENV) \S*(PASSWORD|TOKEN|SECRET|_KEY)", text, re.M)


def test_context__holds_nothing_but_the_product() -> None:
    lines = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {
        "LICENSE", "README.md", "pyproject.toml", "setup.py", "requirements/*.lock",
        "schemas", "transforms", "sinks", "pipelines", "deploy",
    }  # fmt: skip
    assert "deploy/compose" in lines
    ignored = (PROJECT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"deploy/compose/secrets/", "deploy/compose/.env"} <= set(ignored)


def test_make_secrets__makes_what_compose_names_and_changes_nothing_twice(tmp_path: Path) -> None:
    script = shutil.copy(DEPLOY / "compose" / "make-secrets.sh", tmp_path)
    subprocess.run([script], check=True, capture_output=True)
    declared = {entry["file"] for entry in load(COMPOSE)[0]["secrets"].values()}
    made = {f"secrets/{path.name}": path.read_bytes() for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == declared
    subprocess.run([script], check=True, capture_output=True)
    assert {name: (tmp_path / name).read_bytes() for name in made} == made

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "secrets").iterdir()}
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert {modes[name] for name in modes if name.endswith((".key", ".pgpass"))} == {0o600}
    environment = {f"{source(Path()).env}_FILE": str(tmp_path / "secrets" / file) for source, file in KEY_FILES}
    assert len(pseudonym_key(pseudonym_source(tmp_path).load(environment))) == 32
    cipher = DeadLetterCipher(dead_letter_source(tmp_path).load(environment))
    assert cipher.decrypt(cipher.encrypt(b"raw")) == b"raw"
    token = made["secrets/case_token.password"].decode().strip()
    with pytest.MonkeyPatch.context() as environment_:
        environment_.setenv("VOCBEAM_CASE_TOKEN_FILE", str(tmp_path / "secrets" / "case_token.key"))
        assert load_token(tmp_path) == token
    password = made["secrets/loader.password"].decode().strip()
    assert made["secrets/loader.pgpass"].decode() == f"*:*:*:loader:{password}\n"
    assert re.fullmatch(r"VOCBEAM_UID=[1-9]\d*\n", (tmp_path / ".env").read_text())


KEY_FILES = ((pseudonym_source, "pseudonym.key"), (dead_letter_source, "dead_letter.key"))
