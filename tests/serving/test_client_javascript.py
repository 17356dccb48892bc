"""The JavaScript client by itself: its tests in node, and its types; in a browser: `test_client_page`."""

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
OURS = {"Options", "KeyValue", "Counts", "ObserveOptions"}
"""Interfaces of the client itself, which the service knows nothing of."""
OFFERED = {"/v1/rank": "post", "/v1/recommend": "post", "/v1/similar/{item_id}": "get", "/v1/events": "post"}
NOT_OFFERED = {
    "/v1/items": "writes the catalogue: no key for that belongs in a page",
    "/v1/items/{item_id}": "writes the catalogue: no key for that belongs in a page",
    "/v1/users/{user_id}": "erases: no key for that belongs in a page",
    "/metrics": "for Prometheus",
    "/health/live": "for whoever restarts the process",
    "/health/ready": "for operators; a page learns it from the answer it asks for",
}


def test_every_route_is_offered_or_listed_as_not() -> None:
    """The paths in the source are those offered, and all others have a reason."""
    source = "".join(path.read_text("utf-8") for path in CLIENT.glob("*.js"))
    named = set(re.findall(r"[\"`](/(?:v1|health|metrics)[\w/]*)", source))
    assert named == {path.partition("{")[0] for path in OFFERED}
    assert set(SCHEMA["paths"]) == set(OFFERED) | set(NOT_OFFERED)
    assert all(method in SCHEMA["paths"][path] for path, method in OFFERED.items())


@pytest.mark.parametrize("name", sorted(DECLARED.keys() - OURS))
def test_declared_types_have_the_schemas_fields(name: str) -> None:
    """No field more, none less; those that may be left out, or missing in an answer, are the schema's."""
    assert [field for field, _, _ in DECLARED[name]] == list(FORMS[name]["properties"]), f"types.d.ts: {name} differs"
    assert {field for field, may, _ in DECLARED[name] if not may} == set(FORMS[name].get("required", ()))


def test_declared_types_are_all_that_a_page_needs() -> None:
    """Whatever forms the offered routes take or answer, and the forms within them."""
    wanted, seen = {"ProblemDocument"}, set()
    for path, method in OFFERED.items():
        wanted |= set(re.findall(r"#/components/schemas/(\w+)", str(SCHEMA["paths"][path][method])))
    while wanted - seen:
        name = (wanted - seen).pop()
        seen.add(name)
        wanted |= set(re.findall(r"#/components/schemas/(\w+)", str(FORMS[name])))
    assert seen - {"HTTPValidationError", "ValidationError"} == DECLARED.keys() - OURS


def test_declared_names_of_events_are_the_schemas() -> None:
    """Those a rule may name, and those an event may have."""
    ruled, sent = (re.findall(r'"(\w+)"', line) for line in re.findall(r"export type \w*EventName = (.*);", TYPES))
    assert sorted(ruled) == FORMS["Exclude"]["properties"]["events"]["items"]["enum"]
    assert set(ruled) | set(sent) == set(FORMS["EventIn"]["properties"]["event"]["enum"])


def test_events_are_given_up_before_the_service_forgets_their_ids() -> None:
    """With an hour to spare."""
    (hours,) = re.findall(r"REMEMBERED_MS = (\d+) \* 3600_000", (CLIENT / "outbox.js").read_text("utf-8"))
    assert int(hours) * 3600 <= DUPLICATES_S - 3600


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine: apt-get install nodejs")
def test_its_own_tests_pass() -> None:
    """`node --test`: what becomes of events, whatever happens; and what a dataLayer holds."""
    files = sorted(map(str, (CLIENT / "test").glob("*.test.js")))
    done = subprocess.run(["node", "--test", *files], capture_output=True, text=True, timeout=120, cwd=CLIENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"# pass {done.stdout.count('# Subtest')}" in done.stdout


def test_it_needs_nothing_at_run_time_and_imports_its_own_files_alone() -> None:
    """No dependency in package.json, and every import is of a file beside it."""
    assert '"dependencies"' not in (CLIENT / "package.json").read_text("utf-8")
    for path in CLIENT.glob("*.js"):
        for line in path.read_text("utf-8").splitlines():
            if line.startswith(("import ", "export {")) and " from " in line:
                name = line.rpartition(" from ")[2].strip('";')
                assert (CLIENT / name).is_file(), f"{path.name} imports {name}"
