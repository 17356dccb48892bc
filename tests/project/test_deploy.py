"""What is in deploy/ is true: schemas hold, and every key, command, metric, route and port that it names is ours."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from offline.cli.app import app as cli
from offline.config.configuration import Config, load
from serving.api.events import Rejected
from serving.app import create_app
from serving.config import ServiceConfig
from serving.records.metrics import Metrics
from tests import ROOT

DEPLOY = ROOT / "deploy"
CONFIG = "/etc/shelfwise/shelfwise.yaml"
USER = 10001
NIGHT = "systemd/shelfwise-night"
KUBERNETES = ("1.29", "1.37")
"""The oldest and the newest version of Kubernetes that the manifests are held to."""

PROMETHEUS = {"up": {"job", "instance"}}
"""What Prometheus itself says of every target, and its labels."""

VERDICTS = [3, 4, 5, 6, 7]
"""Exit statuses of `shelfwise nightly` that another try does not change."""


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


COMPOSE = read("compose.yaml")
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes/shelfwise.yaml").read_text("utf-8")))
RULES = [rule for group in read("prometheus/alerts.yaml")["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana/shelfwise.json").read_text("utf-8"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text("utf-8")


def manifest(kind: str, name: str = "shelfwise") -> Any:
    return next(m for m in MANIFESTS if (m["kind"], m["metadata"]["name"]) == (kind, name))


def night_job() -> Any:
    return manifest("CronJob", "shelfwise-night")["spec"]["jobTemplate"]["spec"]


def pods() -> dict[str, Any]:
    """The specification of every pod, by the name of what starts it."""
    found = {m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in MANIFESTS if m["kind"] == "Deployment"}
    return found | {"shelfwise-night": night_job()["template"]["spec"]}


def containers() -> list[Any]:
    return [c for pod in pods().values() for c in (*pod.get("initContainers", ()), *pod["containers"])]


def unit(name: str) -> dict[str, list[str]]:
    """Values of a systemd unit by key."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / name).read_text("utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


# Configuration


def configs(folder: Path) -> dict[str, Config]:
    """Every configuration in deploy/, as our own models read it."""
    embedded = folder / "kubernetes.yaml"
    embedded.write_text(manifest("ConfigMap")["data"]["shelfwise.yaml"])
    return {
        "compose": load(DEPLOY / "shelfwise.yaml"),
        "kubernetes": load(embedded),
        "systemd": load(DEPLOY / "systemd/shelfwise.yaml"),
    }


def test_every_configuration_is_accepted_by_our_own_models(tmp_path: Path) -> None:
    """An unknown key or an impossible value in deploy/ raises ConfigError here, not on the machine."""
    found = configs(tmp_path)
    assert found["compose"] == found["kubernetes"]


def test_a_service_that_others_reach_has_keys(tmp_path: Path) -> None:
    """No configuration listens beyond its machine without keys, or says `insecure`."""
    for name, config in configs(tmp_path).items():
        guarded = config.serving.keys_file is not None or config.serving.host == "127.0.0.1"
        assert guarded, name
        assert not config.serving.insecure, name


def test_stopping_waits_longer_than_draining(tmp_path: Path) -> None:
    """Whoever stops the service gives it drain_s, and on Kubernetes the pause before it as well."""
    drain = configs(tmp_path)["compose"].serving.drain_s
    assert int(COMPOSE["services"]["service"]["stop_grace_period"].removesuffix("s")) > drain
    pod = pods()["shelfwise"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + drain


def commands() -> Iterator[tuple[str, list[str]]]:
    """(where, arguments of `shelfwise`) of everything that deploy/ starts."""
    for name, service in COMPOSE["services"].items():
        if service["image"].startswith("shelfwise:"):
            yield f"compose {name}", service["command"]
    for container in containers():
        yield f"kubernetes {container['name']}", container["args"]
    for key in ("ExecStartPre", "ExecStart"):
        yield f"systemd {key}", shlex.split(unit(f"{NIGHT}.service")[key][0])[1:]
    for said in re.findall(r"^CMD (\[\"(?:serve|nightly).*\])", DOCKERFILE, re.MULTILINE):
        yield "Dockerfile", json.loads(said)


@pytest.mark.parametrize(("where", "arguments"), [pytest.param(*c, id=f"{c[0]}-{c[1][0]}") for c in commands()])
def test_every_command_is_one_of_ours(where: str, arguments: list[str]) -> None:
    """A command of `shelfwise`, with the configuration that is mounted there."""
    known = {c.name or c.callback.__name__ for c in cli.registered_commands if c.callback}
    assert arguments[0] in known, where
    assert arguments[1:] == ["--config", CONFIG], where


# Images


def test_the_images_are_built_from_stages_and_files_that_exist() -> None:
    """Each stage begins with an image or a stage before it, copies what there is, and ends as a plain user."""
    stages: list[str] = []
    user: dict[str, str] = {}
    instructions = [w.split() for w in re.sub(r"\\\n", " ", DOCKERFILE).splitlines() if w and not w.startswith("#")]
    known = {
        "ARG",
        "FROM",
        "ENV",
        "RUN",
        "WORKDIR",
        "COPY",
        "USER",
        "VOLUME",
        "ENTRYPOINT",
        "CMD",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
    }
    for word, *rest in instructions:
        assert word in known, word
        if word == "FROM":
            assert rest[0] in stages or rest[0].startswith("python:"), rest[0]
            assert rest[1] == "AS"
            stages.append(rest[2])
            user[rest[2]] = user.get(rest[0], "root")
        elif word == "USER":
            user[stages[-1]] = rest[0]
        elif word == "COPY" and rest[0].startswith("--from="):
            assert rest[0].removeprefix("--from=") in stages
        elif word == "COPY":
            assert all((ROOT / source).exists() for source in rest[:-1]), rest
    assert {"serve", "train"} <= set(stages)
    assert user["serve"] == user["train"] == str(USER)
    assert {s["build"]["target"] for s in COMPOSE["services"].values() if "build" in s} == {"serve", "train"}


def test_the_build_sees_our_packages_and_nothing_else() -> None:
    """What .dockerignore lets through is what pyproject.toml packs: no workspace, no secret, no history."""
    first, *lines = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert first == "*"
    let_through = {line[1:] for line in lines if line.startswith("!")}
    packed = {p.rstrip("*") for p in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert let_through == packed | {"pyproject.toml", "requirements.lock", "README.md", "LICENSE"}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_images_hold_the_versions_that_the_tests_ran_with() -> None:
    """Every package of both images is pinned in requirements.lock; torch is the Makefile's."""
    locked = {
        re.split("==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.lock").read_text("utf-8").split()
    }
    extra = PROJECT["project"]["optional-dependencies"]
    wanted = {re.split("[>=]", d)[0].lower() for d in (*PROJECT["project"]["dependencies"], *extra["train"])}
    assert wanted - locked == {"torch"}
    torch = re.findall(r"torch==\S+", DOCKERFILE)
    assert torch == re.findall(r"torch==\S+", (ROOT / "Makefile").read_text("utf-8"))


def test_the_image_that_serves_takes_no_package_of_the_night() -> None:
    """Its stages install the project's own dependencies and none of the extras, torch among them."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    of_serve = [s for s in stages if re.match(r"\S+ AS (serve-packages|serve-build|base|serve)\n", s)]
    assert len(of_serve) == 4
    code = "\n".join(line for s in of_serve for line in s.splitlines() if not line.startswith("#"))
    assert "torch" not in code.lower()
    assert "optional-dependencies" not in code


WITHOUT = """
import pathlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"the image that serves has no {{name}}")
sys.meta_path.insert(0, Missing())
import offline.cli.service, offline.cli.terminal, serving.app
offline.cli.terminal.load_config(pathlib.Path({config!r}), None)
"""


def test_the_image_that_serves_can_start_without_the_packages_of_the_night() -> None:
    """`shelfwise serve` reads its configuration and loads the service with none of them installed."""
    extra = PROJECT["project"]["optional-dependencies"]["train"]
    module = {"scikit-learn": "sklearn"}
    names = [re.split("[>=]", dependency)[0] for dependency in extra]
    absent = {module.get(name, name.replace("-", "_")) for name in names}
    code = WITHOUT.format(absent=absent, config=str(DEPLOY / "shelfwise.yaml"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# The compose file

SERVICE_KEYS = {
    "image",
    "build",
    "command",
    "depends_on",
    "ports",
    "stop_grace_period",
    "volumes",
    "configs",
    "secrets",
    "deploy",
    "restart",
    "read_only",
    "tmpfs",
    "cap_drop",
    "security_opt",
    "environment",
    "profiles",
    "healthcheck",
}
"""The keys of the Compose specification that our file uses; a new one is added here once looked up."""


def test_the_compose_file_is_whole() -> None:
    """Only keys of the specification; every volume, config, secret and service named is declared."""
    assert {k for k in COMPOSE if not k.startswith("x-")} <= {"name", "services", "configs", "secrets", "volumes"}
    for name, service in COMPOSE["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert re.search(r":(?!latest$)", service["image"]), f"{name}: pin the image"
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert set(service.get("depends_on", ())) <= set(COMPOSE["services"]), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            there = (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
            assert there, f"{name}: {source}"
        for part in ("configs", "secrets"):
            for one in service.get(part, ()):
                assert (one["source"] if isinstance(one, dict) else one) in COMPOSE[part], f"{name}: {one}"
    assert all((DEPLOY / c["file"]).is_file() for c in COMPOSE["configs"].values())


def test_no_port_of_the_compose_file_is_open_beyond_the_machine() -> None:
    """Docker opens a port past the machine's own firewall, so each is bound to the loopback address."""
    ports = [p for s in COMPOSE["services"].values() for p in s.get("ports", ())]
    assert ports
    assert all(p.startswith("127.0.0.1:") for p in ports)


def test_secrets_are_files_that_git_does_not_keep() -> None:
    """No secret stands in deploy/; the folder they are expected in is ignored."""
    assert {str(Path(s["file"]).parent) for s in COMPOSE["secrets"].values()} == {"secrets"}
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text("utf-8").split()
    assert "Secret" not in {m["kind"] for m in MANIFESTS}
    text = "".join(p.read_text("utf-8") for p in DEPLOY.rglob("*") if p.is_file() and "secrets" not in p.parts)
    assert not re.search(r"swk_[A-Za-z0-9]|[0-9a-f]{64}", text)


def test_redis_loses_nothing_silently() -> None:
    """An append-only file, and no eviction of shoppers' lists."""
    command = COMPOSE["services"]["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")


# Kubernetes


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("document", MANIFESTS, ids=lambda m: f"{m['kind']}-{m['metadata']['name']}")
def test_a_manifest_obeys_the_schema_of_kubernetes(document: Any, version: str) -> None:
    """Strictly: no unknown field, none of another type."""
    kubernetes_validate.validate(document, version, strict=True)


def test_every_container_is_bounded_and_locked_down() -> None:
    """Limits and requests, a root file system that is read-only, no root, no privilege, /tmp of its own."""
    for pod in pods().values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == USER
        assert not pod["automountServiceAccountToken"]
    for container in containers():
        assert {"cpu", "memory"} <= set(container["resources"]["limits"]) & set(container["resources"]["requests"])
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in {m["mountPath"] for m in container["volumeMounts"]}


def test_what_a_manifest_refers_to_is_there() -> None:
    """Volumes, claims, config maps, ports, and the labels by which a service, a budget and a scaler find the pods."""
    for pod in pods().values():
        named = {v["name"]: v for v in pod["volumes"]}
        mounted = {m["name"] for c in (*pod.get("initContainers", ()), *pod["containers"]) for m in c["volumeMounts"]}
        assert mounted == set(named)
        assert named["workspace"]["persistentVolumeClaim"]["claimName"] == "shelfwise-workspace"
        assert named["config"]["configMap"]["name"] == manifest("ConfigMap")["metadata"]["name"]
    assert manifest("PersistentVolumeClaim", "shelfwise-workspace")["spec"]["accessModes"] == ["ReadWriteMany"]
    deployment = manifest("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    target = manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "shelfwise")
    assert "replicas" not in deployment, "the autoscaler decides; a number here would undo it with each apply"


def test_secrets_of_kubernetes_come_by_reference() -> None:
    """REDIS_URL, which may carry a password, is named and never written."""
    for container in containers():
        assert [e["valueFrom"]["secretKeyRef"]["key"] for e in container["env"]] == ["redis-url"]


def routes() -> set[str]:
    return {route.path for route in create_app(ServiceConfig(), "redis://nowhere.invalid:1").routes}  # type: ignore[attr-defined]


def test_probes_ask_routes_and_ports_that_the_service_has(tmp_path: Path) -> None:
    """Alive is a route that asks nobody else; ready is one that needs a release."""
    container = pods()["shelfwise"]["containers"][0]
    asked = {k: container[k]["httpGet"]["path"] for k in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {"startupProbe": "/health/live", "livenessProbe": "/health/live", "readinessProbe": "/health/ready"}
    scraped = read("prometheus/prometheus.yaml")["scrape_configs"][0]
    assert {*asked.values(), scraped["metrics_path"]} <= routes()
    port = configs(tmp_path)["kubernetes"].serving.port
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    assert scraped["static_configs"] == [{"targets": [f"service:{port}"]}]
    assert f"127.0.0.1:{port}/health/live" in DOCKERFILE
    assert f"EXPOSE {port}" in DOCKERFILE


# The night


def test_a_verdict_is_not_asked_twice() -> None:
    """Exit statuses 3 to 7 stop systemd, Kubernetes and Airflow alike; anything else is tried again."""
    rule = next(r for r in night_job()["podFailurePolicy"]["rules"] if r["action"] == "FailJob")
    assert rule["onExitCodes"]["values"] == VERDICTS
    assert rule["onExitCodes"]["containerName"] == pods()["shelfwise-night"]["containers"][0]["name"]
    service = unit(f"{NIGHT}.service")
    assert [int(s) for s in service["RestartPreventExitStatus"][0].split()] == VERDICTS
    assert service["Restart"] == ["on-failure"]
    dag = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(DAG).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert sorted([dag["KEPT"], *dag["VERDICTS"]]) == VERDICTS
    assert dag["CONFIG"] == CONFIG


def test_two_nights_never_meet() -> None:
    """Each scheduler starts a night only when the one before has ended."""
    assert manifest("CronJob", "shelfwise-night")["spec"]["concurrencyPolicy"] == "Forbid"
    assert unit(f"{NIGHT}.service")["Type"] == ["oneshot"]
    assert "max_active_runs=1" in DAG


DAG = (DEPLOY / "airflow/shelfwise_night.py").read_text("utf-8")


def test_the_airflow_example_is_python() -> None:
    """It compiles, warning of nothing; Airflow itself is not installed here."""
    compile(DAG, "shelfwise_night.py", "exec")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing, where the program is one that exists."""
    for name in (f"{NIGHT}.service", f"{NIGHT}.timer"):
        text = (DEPLOY / name).read_text("utf-8").replace("/opt/shelfwise/bin/shelfwise", "/bin/true")
        (tmp_path / Path(name).name).write_text(text)
    units = sorted(tmp_path.iterdir())
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    about_ours = [line for line in done.stderr.splitlines() if "shelfwise" in line]
    assert about_ours == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_the_timer_and_the_cron_job_mean_the_same_moment() -> None:
    """02:30 UTC, in systemd's notation and in cron's."""
    said = unit(f"{NIGHT}.timer")["OnCalendar"][0]
    done = subprocess.run(["systemd-analyze", "calendar", said], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    night = manifest("CronJob", "shelfwise-night")["spec"]
    minute, hour, *rest = night["schedule"].split()
    assert (said, rest) == (
        f"*-*-* {int(hour):02}:{int(minute):02}:00 {night['timeZone'].removeprefix('Etc/')}",
        ["*", "*", "*"],
    )
    assert f'schedule="{night["schedule"]}"' in DAG


# Metrics


def exported() -> dict[str, set[str]]:
    """Names of all series that the service exports, with their labels."""
    metrics = Metrics()
    metrics.request("/v1/rank", 200, 0.01)
    metrics.refused("busy")
    metrics.ranked(10, degraded=True, slow=True)
    metrics.rejected([Rejected(0, "item_id", "missing")])
    metrics.events(1, 1)
    metrics.fresh(0.1)
    metrics.release("r1")
    metrics.redis(True)
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {s.name: {*s.labels, "job", "instance"} for family in families for s in family.samples}


def expressions() -> list[tuple[str, str]]:
    """(where, PromQL) of all alert rules and all panels."""
    rules = [(f"alert {rule['alert']}", rule["expr"]) for rule in RULES]
    panels = [(f"panel {p['title']}", t["expr"]) for p in DASHBOARD["panels"] for t in p["targets"]]
    return rules + [(where, said.replace("$__rate_interval", "5m")) for where, said in panels]


def parts(expression: str) -> Iterator[Any]:
    """All nodes of a PromQL expression, parsed."""
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), pre_visit=lambda node: found.append(node))
    yield from found
    yield from (node.vector_selector for node in found if isinstance(node, promql_parser.MatrixSelector))


def selectors(expression: str) -> dict[str, Any]:
    return {str(n): n for n in parts(expression) if isinstance(n, promql_parser.VectorSelector)}


def test_every_expression_names_what_the_service_exports() -> None:
    """Every series, and every label it is chosen or summed by, in alert rules and dashboard."""
    series = exported() | PROMETHEUS
    for where, said in expressions():
        found = selectors(said).values()
        assert found, where
        assert {s.name for s in found} <= set(series), where
        labels = set.intersection(*(series[s.name] for s in found))
        for s in found:
            assert {m.name for m in s.matchers.matchers} <= series[s.name], where
        for node in parts(said):
            if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
                assert set(node.modifier.labels) <= labels, where


def test_routes_and_reasons_that_expressions_choose_are_ours() -> None:
    """A matcher on a route or a reason of refusal finds one that there is."""
    words = {
        n.value
        for p in (ROOT / "serving").rglob("*.py")
        for n in ast.walk(ast.parse(p.read_text("utf-8")))
        if isinstance(n, ast.Constant)
    }
    for where, said in expressions():
        for m in (m for s in selectors(said).values() for m in s.matchers.matchers):
            if m.name == "route":
                assert any(re.fullmatch(m.value, route) for route in routes()), where
            if m.name == "reason":
                assert set(m.value.split("|")) <= words, where


def test_a_misspelt_metric_is_found() -> None:
    """The reading of expressions above sees series within ranges, functions and comparisons."""
    said = "histogram_quantile(0.9, sum by (le) (rate(a_bucket{x='1'}[5m]))) > 1 and absent(b offset 1h) == 1"
    assert {s.name for s in selectors(said).values()} == {"a_bucket", "b"}


def test_everything_exported_is_on_the_dashboard() -> None:
    """A metric that nobody looks at is not worth its cost: each family has a panel."""
    shown = {
        s.name
        for p in DASHBOARD["panels"]
        for t in p["targets"]
        for s in selectors(t["expr"].replace("$__rate_interval", "5m")).values()
    }
    family = re.compile(r"_(bucket|count|sum|total|created)$")
    assert {family.sub("", n) for n in exported()} == {family.sub("", n) for n in shown}


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    """Panels with ids of their own that do not overlap, within 24 columns, all asking the provisioned data source."""
    assert {"uid", "title", "schemaVersion", "panels", "time"} <= set(DASHBOARD)
    source = read("grafana/datasource.yaml")["datasources"][0]
    panels = DASHBOARD["panels"]
    assert len({p["id"] for p in panels}) == len({p["title"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for p in panels:
        assert p["type"] in ("timeseries", "stat")
        assert p["description"]
        asked = [p["datasource"], *(t["datasource"] for t in p["targets"])]
        assert all(a == {"type": source["type"], "uid": source["uid"]} for a in asked)
        assert len({t["refId"] for t in p["targets"]}) == len(p["targets"])
        g = p["gridPos"]
        cells = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_grafana_finds_what_it_is_provisioned_with() -> None:
    """The dashboard's file is mounted where its provider looks, and its home is that file."""
    grafana = COMPOSE["services"]["grafana"]
    path = read("grafana/dashboards.yaml")["providers"][0]["options"]["path"]
    mounts = dict(v.split(":")[:2] for v in grafana["volumes"])
    assert mounts["./grafana/shelfwise.json"] == f"{path}/shelfwise.json"
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == mounts["./grafana/shelfwise.json"]
    assert read("grafana/datasource.yaml")["datasources"][0]["url"] == "http://prometheus:9090"


def test_prometheus_reads_the_rules_with_a_key_that_is_mounted() -> None:
    """The rule file lies beside its configuration; the key is the secret of the compose file."""
    prometheus = read("prometheus/prometheus.yaml")
    assert all((DEPLOY / "prometheus" / name).is_file() for name in prometheus["rule_files"])
    key = prometheus["scrape_configs"][0]["authorization"]["credentials_file"]
    assert key == f"/run/secrets/{COMPOSE['services']['prometheus']['secrets'][0]}"


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r["alert"])
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(rule: Any) -> None:
    """Only keys of Prometheus' rules; a severity; a summary; a section of docs/operations.md that is there."""
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m"))
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert re.search(rf"^### {rule['alert']}$", OPERATIONS, re.MULTILINE)
    assert promql_parser.parse(rule["expr"]) is not None


def test_the_guide_has_no_alert_that_is_not() -> None:
    """Every section on an alert in docs/operations.md is about a rule that there is."""
    assert set(re.findall(r"^### (Shelfwise\w+)$", OPERATIONS, re.MULTILINE)) == {r["alert"] for r in RULES}


def test_files_that_the_guide_names_are_there() -> None:
    """Every path under deploy/ in docs/operations.md."""
    named = set(re.findall(r"deploy/[\w./-]*\w", OPERATIONS))
    missing = {n for n in named if not (ROOT / n).exists() and not n.startswith("deploy/secrets")}
    assert named
    assert not missing
