"""A run directory: what is done is not done again, what changed is, and a night that was killed goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from offline.run import Run, Step, checksum, write_json

ROOT = Path(__file__).parent.parent


class Plan:
    """Three steps, each copying the last one's file and adding its letter; says which were done."""

    def __init__(self, root: Path, **inputs: object) -> None:
        self.run = Run(root, inputs or {"seed": 1})
        self.done: list[str] = []
        self.fails: str | None = None

    def steps(self) -> list[Step]:
        return [Step(n, f"Step {n}", [f"{n}.txt"], self._work(n, before)) for n, before in ("a ", "ba", "cb")]

    def _work(self, name: str, before: str) -> Callable[..., None]:
        def work(on_progress: object) -> None:
            if self.fails == name:
                raise OSError("the disk is full")
            self.done.append(name)
            so_far = self.run.file(f"{before}.txt").read_text() if before != " " else ""
            self.run.file(f"{name}.txt").write_text(so_far + name)

        return work

    def __call__(self) -> list[str]:
        """The names of the steps that were done now."""
        self.done.clear()
        self.run.do(self.steps())
        return list(self.done)


def record(plan: Plan) -> list[str]:
    return list(json.loads(plan.run.file("steps.json").read_text()))


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    assert Plan(tmp_path)() == ["a", "b", "c"]
    again = Plan(tmp_path)
    assert again() == []
    assert again.run.file("c.txt").read_text() == "abc"
    assert again() == []


def test_time_memory_and_what_was_made_are_recorded(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    plan()
    kept = Run(tmp_path, {"seed": 1}).finished["b"]
    assert kept["made"] == {"b.txt": checksum(plan.run.file("b.txt"))}
    assert kept["seconds"] >= 0
    assert kept["peak_mb"] > 1


@pytest.mark.parametrize("harm", [lambda f: f.write_text("x"), lambda f: f.unlink()])
@pytest.mark.parametrize(("name", "again"), [("a", ["a", "b", "c"]), ("b", ["b", "c"]), ("c", ["c"])])
def test_a_changed_or_lost_file_makes_its_step_and_all_later_ones_run_again(
    tmp_path: Path, harm: Callable[[Path], None], name: str, again: list[str]
) -> None:
    Plan(tmp_path)()
    plan = Plan(tmp_path)
    harm(plan.run.file(f"{name}.txt"))
    assert plan() == again
    assert plan.run.file("c.txt").read_text() == "abc"


def test_a_step_that_fails_leaves_the_record_as_it_was_and_the_next_run_goes_on_there(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    plan.fails = "c"
    with pytest.raises(OSError, match="the disk is full"):
        plan()
    assert record(plan) == ["a", "b"]
    assert Plan(tmp_path)() == ["c"]


def test_what_later_steps_made_of_an_earlier_file_is_forgotten_before_that_is_made_again(tmp_path: Path) -> None:
    """Lost in a, failed in b: though the old b.txt and c.txt are whole, they are of the old a.txt."""
    Plan(tmp_path)()
    plan = Plan(tmp_path)
    plan.run.file("a.txt").unlink()
    plan.fails = "b"
    with pytest.raises(OSError, match="the disk is full"):
        plan()
    assert record(plan) == ["a"]
    assert Plan(tmp_path)() == ["b", "c"]


def test_a_beginning_of_the_plan_can_be_done_alone_and_forgets_nothing(tmp_path: Path) -> None:
    """`evaluate` leaves the release out; a release made before stays recorded as long as nothing before it changed."""
    plan = Plan(tmp_path)
    plan()
    plan.run.do(plan.steps()[:2])
    assert record(plan) == ["a", "b", "c"]
    plan.run.file("b.txt").unlink()
    plan.run.do(plan.steps()[:2])
    assert record(plan) == ["a", "b"]


def test_a_step_that_makes_more_than_it_did_is_done_again(tmp_path: Path) -> None:
    Plan(tmp_path)()
    plan = Plan(tmp_path)
    *_, last = plan.steps()
    plan.run.file("d.txt").write_text("d")
    plan.run.do([*plan.steps()[:2], last._replace(makes=["c.txt", "d.txt"])])
    assert plan.done == ["c"]


def test_a_step_that_does_not_make_what_it_was_to_make_is_not_finished(tmp_path: Path) -> None:
    run = Run(tmp_path, {})
    with pytest.raises(RuntimeError, match=r"step 'idle' is over, but .*made\.txt is not there"):
        run.do([Step("idle", "Doing nothing", ["made.txt"], lambda on_progress: None)])
    assert run.finished == {}


def test_other_inputs_meet_another_directory_and_the_same_ones_the_same(tmp_path: Path) -> None:
    """The order of the keys is no difference; a value, however deep, is."""
    first = Run(tmp_path, {"a": 1, "b": {"c": [1, 2]}})
    assert Run(tmp_path, {"b": {"c": [1, 2]}, "a": 1}).directory == first.directory
    others = [{"a": 1, "b": {"c": [2, 1]}}, {"a": "1", "b": {"c": [1, 2]}}, {"a": 1}, {}]
    assert len({Run(tmp_path, o).directory for o in others} | {first.directory}) == 5


@pytest.mark.parametrize("content", [b"", b'{"a": {"ma', b"[]", b'{"a": 3}', b"\xff\xfe", b'{"a": {"made": "x"}}'])
def test_a_damaged_record_is_said_and_every_step_done_again(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    first = Plan(tmp_path)
    first()
    first.run.file("steps.json").write_bytes(content)
    assert Plan(tmp_path)() == ["a", "b", "c"]
    if b"made" not in content:
        assert "steps.json is damaged: every step of the run is done again" in capfd.readouterr().err


KILLED = """
import os, signal, sys
from pathlib import Path
from offline.run import Run, Step

run = Run(Path(sys.argv[1]), {"seed": 1})
def a(on_progress):
    run.file("a.txt").write_text("a")
def b(on_progress):
    run.file("b.txt").write_text("half of ")
    os.kill(os.getpid(), signal.SIGKILL)
run.do([Step("a", "Step a", ["a.txt"], a), Step("b", "Step b", ["b.txt"], b)])
"""


def test_a_night_killed_in_the_middle_of_a_step_goes_on_with_that_step(tmp_path: Path) -> None:
    """SIGKILL leaves no time to tidy up; half a file is not taken for a whole one."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    plan = Plan(tmp_path)
    assert plan.run.file("b.txt").read_text() == "half of "
    assert plan() == ["b", "c"]
    assert plan.run.file("c.txt").read_text() == "abc"


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What cannot be written leaves the old file and nothing beside it."""
    path = tmp_path / "facts.json"
    write_json(path, {"title": "Bücher"})
    with pytest.raises(TypeError):
        write_json(path, {"title": object()})
    assert json.loads(path.read_text("utf-8")) == {"title": "Bücher"}
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_a_checksum_is_of_names_and_contents_and_of_nothing_else(tmp_path: Path) -> None:
    def tree(name: str, files: dict[str, str]) -> str:
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(content)
        return checksum(tmp_path / name)

    one = tree("one", {"x": "1", "sub/y": "2"})
    assert tree("two", {"sub/y": "2", "x": "1"}) == one
    assert len({one, tree("three", {"x": "2", "sub/y": "1"}), tree("four", {"x": "1", "sub/z": "2"})}) == 3
    assert checksum(tmp_path / "one" / "x") == checksum(tmp_path / "two" / "x")
