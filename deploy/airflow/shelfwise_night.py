"""Example Airflow DAG for the nightly run (Airflow 2.9 or newer): collect, then nightly and earnings.

`shelfwise` must be on the worker's path, REDIS_URL in its environment, and the workspace on a disk that survives a
retry: a run that was killed continues where it stopped.
"""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta

from airflow.decorators import dag, task
from airflow.exceptions import AirflowFailException, AirflowSkipException

CONFIG = "/etc/shelfwise/shelfwise.yaml"
KEPT = 3
VERDICTS = {
    4: "the data checks failed",
    5: "another run is in progress",
    6: "the gate needs approval",
    7: "the disk is full",
}


def shelfwise(command: str) -> int:
    """Run a command and return its exit status. Its output goes to the task's log."""
    return subprocess.run(["shelfwise", command, "--config", CONFIG], check=False).returncode


@dag(
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=8),
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    tags=["shelfwise"],
)
def shelfwise_night() -> None:
    """Collect events, train a release, publish it if the gate allows, and add up what the lists brought."""

    @task
    def collect() -> None:
        if status := shelfwise("collect"):
            raise RuntimeError(f"shelfwise collect failed with status {status}")

    @task
    def nightly() -> None:
        status = shelfwise("nightly")
        if status == KEPT:
            raise AirflowSkipException("the gate kept the live release")
        if status in VERDICTS:
            raise AirflowFailException(f"{VERDICTS[status]}; a retry would not change that")
        if status:
            raise RuntimeError(f"shelfwise nightly failed with status {status}")

    @task
    def earnings() -> None:
        if status := shelfwise("earnings"):
            raise RuntimeError(f"shelfwise earnings failed with status {status}")

    # Side by side: the earnings need the collected events only. As the last task after a failed run, they would make
    # the whole DAG a success.
    collect() >> [nightly(), earnings()]


shelfwise_night()
