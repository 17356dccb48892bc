"""The JavaScript client without a browser: its own tests in node, and its types. `test_client_page` uses a browser."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from serving.store import DUPLICATES_S
from tests import ROOT
from tests.serving.test_client_schema import FORMS, SCHEMA

CLIENT = ROOT / "serving" / "clients" / "javascript"

TYPES = (CLIENT / "types.d.ts").read_text("utf-8")
FIELD = re.compile(r"^  (\w+)(\??): (.+);$", re.MULTILINE)
DECLARED = {
    name: FIELD.findall(body) for name, body in re.findall(r"export interface (\w+) {\n(.*?)^}", TYPES, re.M | re.S)
}
CLIENT_TYPES = {"Options", "KeyValue", "Counts", "ObserveOptions"}
"""Interfaces of the client that are not in the service's schema."""
SUPPORTED = {
    "/v1/rank": "post",
    "/v1/recommend": "post",
    "/v1/page": "post",
    "/v1/similar/{item_id}": "get",
    "/v1/events": "post",
    "/v1/users/{user_id}/merge": "post",
}
NOT_SUPPORTED = {
    "/v1/items": "writes the catalogue: a page must not have a key for that",
    "/v1/items/{item_id}": "writes the catalogue: a page must not have a key for that",
    "/v1/users/{user_id}": "writes and erases users: a page must not have a key for that",
    "/metrics": "for Prometheus",
    "/health/live": "for the process manager",
    "/health/ready": "for operators; a page gets it from the responses to its calls",
}


def test_every_route_is_supported_or_listed_with_a_reason() -> None:
    """The paths in the source are the supported ones, and each of the others has a reason."""
    source = "".join(path.read_text("utf-8") for path in CLIENT.glob("*.js"))
    named = set(re.findall(r"[\"`](/(?:v1|health|metrics)[\w/]*)", source))
    assert named == {path.partition("{")[0] for path in SUPPORTED}
    assert set(SCHEMA["paths"]) == set(SUPPORTED) | set(NOT_SUPPORTED)
    assert all(method in SCHEMA["paths"][path] for path, method in SUPPORTED.items())


@pytest.mark.parametrize("name", sorted(DECLARED.keys() - CLIENT_TYPES))
def test_declared_types_have_the_fields_of_the_schema(name: str) -> None:
    """The same fields, of which the same are optional."""
    assert [field for field, _, _ in DECLARED[name]] == list(FORMS[name]["properties"]), f"types.d.ts: {name} differs"
    assert {field for field, may, _ in DECLARED[name] if not may} == set(FORMS[name].get("required", ()))


def test_every_type_of_the_supported_routes_is_declared() -> None:
    """The types that these routes accept and return, and the types nested in them, are declared, and no others."""
    wanted = {"ProblemDocument"}
    seen: set[str] = set()
    for path, method in SUPPORTED.items():
        wanted |= set(re.findall(r"#/components/schemas/(\w+)", str(SCHEMA["paths"][path][method])))
    while wanted - seen:
        name = (wanted - seen).pop()
        seen.add(name)
        wanted |= set(re.findall(r"#/components/schemas/(\w+)", str(FORMS[name])))
    assert seen - {"HTTPValidationError", "ValidationError"} == DECLARED.keys() - CLIENT_TYPES


def test_declared_event_names_are_those_of_the_schema() -> None:
    """The names that rules may use, and the names that events may have."""
    ruled, sent = (re.findall(r'"(\w+)"', line) for line in re.findall(r"export type \w*EventName = (.*);", TYPES))
    assert sorted(ruled) == FORMS["Exclude"]["properties"]["events"]["items"]["enum"]
    assert set(ruled) | set(sent) == set(FORMS["EventIn"]["properties"]["event"]["enum"])


def test_events_expire_before_the_service_forgets_their_ids() -> None:
    """At least an hour earlier."""
    (hours,) = re.findall(r"REMEMBERED_MS = (\d+) \* 3600_000", (CLIENT / "outbox.js").read_text("utf-8"))
    assert int(hours) * 3600 <= DUPLICATES_S - 3600


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine: apt-get install nodejs")
def test_the_clients_own_tests_pass() -> None:
    """`node --test`: delivery of events, and conversion of a dataLayer."""
    files = sorted(map(str, (CLIENT / "test").glob("*.test.js")))
    process = subprocess.run(["node", "--test", *files], capture_output=True, text=True, timeout=120, cwd=CLIENT)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"# pass {process.stdout.count('# Subtest')}" in process.stdout


def test_the_client_imports_only_its_own_files() -> None:
    """No dependency in package.json, and every import is of a file in its folder."""
    assert '"dependencies"' not in (CLIENT / "package.json").read_text("utf-8")
    for path in CLIENT.glob("*.js"):
        for line in path.read_text("utf-8").splitlines():
            if line.startswith(("import ", "export {")) and " from " in line:
                name = line.rpartition(" from ")[2].strip('";')
                assert (CLIENT / name).is_file(), f"{path.name} imports {name}"
