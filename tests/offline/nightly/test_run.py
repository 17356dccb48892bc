"""A run directory: finished steps are skipped, changed ones run again, and a killed run continues."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offline.config import SimulateConfig, load
from offline.nightly.night import Night
from offline.nightly.run import Run, Step, resolve_reads
from offline.runtime.files import checksum, sources, write_json
from offline.simulation import simulate
from serving.lock import Locked, locked
from tests import ROOT
from tests.killed import exit_status, run_killed


class Plan:
    """Three steps; each copies the previous file and adds its letter. Records which steps ran."""

    def __init__(self, root: Path, **inputs: object) -> None:
        self.run = Run(root, inputs or {"seed": 1})
        self.done: list[str] = []
        self.fails: str | None = None
        self.letters: dict[str, str] = {}

    def steps(self) -> list[Step]:
        return [
            Step(n, f"Step {n}", [f"{n}.txt"], self._work(n, before), reads=[f"{before}.txt"] if before != " " else [])
            for n, before in ("a ", "ba", "cb")
        ]

    def _work(self, name: str, before: str) -> Callable[..., None]:
        def work(on_progress: object) -> None:
            if self.fails == name:
                raise OSError("the disk is full")
            self.done.append(name)
            so_far = self.run.file(f"{before}.txt").read_text() if before != " " else ""
            self.run.file(f"{name}.txt").write_text(so_far + self.letters.get(name, name))

        return work

    def __call__(self) -> list[str]:
        """The names of the steps that ran in this call."""
        self.done.clear()
        self.run.do(self.steps())
        return list(self.done)


def record(plan: Plan) -> list[str]:
    return list(json.loads(plan.run.file("steps.json").read_text()))


def test_finished_steps_do_not_run_again(tmp_path: Path) -> None:
    assert Plan(tmp_path)() == ["a", "b", "c"]
    again = Plan(tmp_path)
    assert again() == []
    assert again.run.file("c.txt").read_text() == "abc"
    assert again() == []


def test_duration_memory_and_written_files_are_recorded(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    plan()
    recorded = Run(tmp_path, {"seed": 1}).finished["b"]
    assert recorded["made"] == {"b.txt": checksum(plan.run.file("b.txt"))}
    assert recorded["seconds"] >= 0
    assert recorded["peak_mb"] > 1


@pytest.mark.parametrize("harm", [lambda f: f.write_text("x"), lambda f: f.unlink()])
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_changed_or_missing_file_is_rewritten_and_later_steps_are_skipped_if_it_is_the_same(
    tmp_path: Path, harm: Callable[[Path], None], name: str
) -> None:
    Plan(tmp_path)()
    plan = Plan(tmp_path)
    harm(plan.run.file(f"{name}.txt"))
    assert plan() == [name]
    assert plan.run.file("c.txt").read_text() == "abc"


def test_later_steps_run_again_if_a_rewritten_file_differs(tmp_path: Path) -> None:
    """b now writes B. c reads b, so it runs again; a does not."""
    Plan(tmp_path)()
    plan = Plan(tmp_path)
    plan.letters["b"] = "B"
    plan.run.file("b.txt").unlink()
    assert plan() == ["b", "c"]
    assert plan.run.file("c.txt").read_text() == "aBc"


def test_each_step_records_the_checksums_of_the_files_it_read_and_wrote(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    plan()
    facts = plan.run.finished["c"]
    assert facts["read"] == {"b.txt": checksum(plan.run.file("b.txt"))}
    assert facts["made"] == {"c.txt": checksum(plan.run.file("c.txt"))}


def test_a_step_may_only_read_files_of_earlier_steps(tmp_path: Path) -> None:
    steps = Plan(tmp_path).steps()
    with pytest.raises(ValueError, match=r"step 'a' reads 'c\.txt', which no earlier step makes"):
        resolve_reads([steps[0]._replace(reads=["c.txt"])])
    assert resolve_reads([steps[0], steps[1]._replace(reads=None)])[1].reads == ("a.txt",), (
        "None means all earlier files"
    )


def test_a_plan_lists_remaining_steps_with_their_last_duration_and_changes_nothing(tmp_path: Path) -> None:
    """Durations come from the run of another seed if this one has not finished the step."""
    assert [p.seconds for p in Plan(tmp_path).run.plan(Plan(tmp_path).steps())] == [None] * 3
    assert not list(tmp_path.iterdir())
    first = Plan(tmp_path)
    first()
    other = Plan(tmp_path, seed=2)
    plan = other.run.plan(other.steps())
    assert [(p.name, p.done) for p in plan] == [("a", False), ("b", False), ("c", False)]
    assert [p.seconds for p in plan] == [first.run.finished[n]["seconds"] for n in "abc"]
    first.run.file("b.txt").unlink()
    assert [p.done for p in first.run.plan(first.steps())] == [True, False, False]
    assert not other.run.directory.exists()


def test_a_second_concurrent_run_is_refused_with_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    """Even with other inputs, because they share the workspace."""
    plan = Plan(tmp_path, seed=2)
    with locked(tmp_path / "lock"), pytest.raises(Locked, match=rf"is in use by process {os.getpid()} on .*wait"):
        plan()
    assert plan() == ["a", "b", "c"]


def test_after_a_failed_step_the_next_run_continues_with_it(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    plan.fails = "c"
    with pytest.raises(OSError, match="the disk is full"):
        plan()
    assert record(plan) == ["a", "b"]
    assert Plan(tmp_path)() == ["c"]


def test_a_file_derived_from_an_older_version_does_not_count_as_current(tmp_path: Path) -> None:
    """a now writes A, and b fails. The old b.txt and c.txt are complete, but derive from the old a.txt."""
    Plan(tmp_path)()
    plan = Plan(tmp_path)
    plan.letters["a"], plan.fails = "A", "b"
    plan.run.file("a.txt").unlink()
    with pytest.raises(OSError, match="the disk is full"):
        plan()
    assert Plan(tmp_path)() == ["b", "c"]
    assert plan.run.file("c.txt").read_text() == "Abc"


def test_running_only_the_first_steps_keeps_the_records_of_the_others(tmp_path: Path) -> None:
    """`evaluate` does not run the release step; a release made earlier stays recorded."""
    plan = Plan(tmp_path)
    plan()
    plan.run.do(plan.steps()[:2])
    assert record(plan) == ["a", "b", "c"]


def test_a_step_with_an_additional_file_runs_again(tmp_path: Path) -> None:
    Plan(tmp_path)()
    plan = Plan(tmp_path)
    *_, last = plan.steps()
    plan.run.file("d.txt").write_text("d")
    plan.run.do([*plan.steps()[:2], last._replace(makes=["c.txt", "d.txt"])])
    assert plan.done == ["c"]


def test_a_step_that_does_not_write_its_files_is_not_finished(tmp_path: Path) -> None:
    run = Run(tmp_path, {})
    with pytest.raises(RuntimeError, match=r"step 'idle' finished without writing .*made\.txt"):
        run.do([Step("idle", "Doing nothing", ["made.txt"], lambda on_progress: None)])
    assert run.finished == {}


def test_the_directory_depends_on_the_inputs(tmp_path: Path) -> None:
    """The order of keys does not matter; values do, at any depth."""
    first = Run(tmp_path, {"a": 1, "b": {"c": [1, 2]}})
    assert Run(tmp_path, {"b": {"c": [1, 2]}, "a": 1}).directory == first.directory
    others: list[dict[str, Any]] = [{"a": 1, "b": {"c": [2, 1]}}, {"a": "1", "b": {"c": [1, 2]}}, {"a": 1}, {}]
    assert len({Run(tmp_path, o).directory for o in others} | {first.directory}) == 5


@pytest.mark.parametrize("content", [b"", b'{"a": {"ma', b"[]", b'{"a": 3}', b"\xff\xfe", b'{"a": {"made": "x"}}'])
def test_a_damaged_record_is_reported_and_every_step_runs_again(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    first = Plan(tmp_path)
    first()
    first.run.file("steps.json").write_bytes(content)
    assert Plan(tmp_path)() == ["a", "b", "c"]
    if b"made" not in content:
        assert "steps.json is damaged; all steps run again" in capfd.readouterr().err


def test_a_run_killed_during_a_step_continues_with_that_step(tmp_path: Path) -> None:
    """SIGKILL leaves no time to clean up. A partial file does not count as complete."""
    assert exit_status(run_killed, tmp_path) == -signal.SIGKILL
    plan = Plan(tmp_path)
    assert plan.run.file("b.txt").read_text() == "half of "
    assert plan() == ["b", "c"]
    assert plan.run.file("c.txt").read_text() == "abc"


def test_json_files_are_written_atomically(tmp_path: Path) -> None:
    """A value that cannot be serialised leaves the old file, and no other file."""
    path = tmp_path / "facts.json"
    write_json(path, {"title": "Bücher"})
    with pytest.raises(TypeError):
        write_json(path, {"title": object()})
    assert json.loads(path.read_text("utf-8")) == {"title": "Bücher"}
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_a_checksum_depends_only_on_names_and_contents(tmp_path: Path) -> None:
    def tree(name: str, files: dict[str, str]) -> str:
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(content)
        return checksum(tmp_path / name)

    one = tree("one", {"x": "1", "sub/y": "2"})
    assert tree("two", {"sub/y": "2", "x": "1"}) == one
    assert len({one, tree("three", {"x": "2", "sub/y": "1"}), tree("four", {"x": "1", "sub/z": "2"})}) == 3
    assert checksum(tmp_path / "one" / "x") == checksum(tmp_path / "two" / "x")


def test_a_run_depends_on_the_source_of_every_package() -> None:
    """So that another version does not continue with the files of this one."""
    found = {str(path.relative_to(ROOT)) for path in sources()}
    some = (
        "features/table.py",
        "text_encoder/encoder.py",
        "ranker/train.py",
        "serving/app.py",
        "offline/nightly/run.py",
    )
    assert set(some) <= found


def test_the_last_run_that_differs_in_the_budget_only_is_found(tmp_path: Path) -> None:
    """A run with a budget of 45 s has a ranker. It is that of the default budget, but not of another seed."""
    simulate(SimulateConfig.model_validate({"items": 30, "users": 10, "days": 2}), tmp_path / "data")

    def night(**settings: Any) -> Night:
        return Night(load(None, workspace=tmp_path, **settings))

    made = night(encoder={"budget_s": 45})
    made.run.do([Step("ranker", "", ["ranker.txt"], lambda _: made.run.file("ranker.txt").touch())])
    assert night().budget_of_last_run() == 45
    assert night(seed=3).budget_of_last_run() is None
    own = night()
    own.run.do([Step("encoder", "", ["encoder.json"], lambda _: own.run.file("encoder.json").touch())])
    assert night().budget_of_last_run() is None, "it continues with its own encoder"
