"""Logging of training metrics per epoch, to TensorBoard, Weights & Biases or MLflow.

TensorBoard event files are written by this module: a scalar is about 30 bytes, while the tensorboard package is 60 MB.
It is only needed to view the files, not to train. The packages of the other two are imported when they are used.
"""

from __future__ import annotations

import importlib
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from text_encoder.errors import EncoderError

LogTo = Literal["none", "tensorboard", "wandb", "mlflow"]

_PROJECT = "shelfwise"


class Scalars(Protocol):
    """A logger of scalar metrics per epoch."""

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of an epoch, by name."""

    def close(self) -> None:
        """Finishes the log. `add` must not be called afterwards."""


class NoScalars:
    """Logs nothing."""

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """See `Scalars`."""

    def close(self) -> None:
        """See `Scalars`."""


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC32C = _crc32c_table()


def _masked_crc(data: bytes) -> bytes:
    """Four bytes: CRC-32C (RFC 3720), masked as the TFRecord format requires."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


class TensorBoard:
    """Logs to a TensorBoard event file, one per run. TensorBoard shows all runs in a directory as one curve."""

    def __init__(self, directory: Path) -> None:
        """directory: created with the first scalar if it does not exist."""
        self._directory = directory
        self._file: BinaryIO | None = None

    def _write(self, event: bytes) -> None:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = (self._directory / f"events.out.tfevents.{time.time_ns()}.shelfwise").open("xb")
            self._write(_field(3, b"brain.Event:2"))
        event = b"\x09" + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
        self._file.flush()

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """See `Scalars`."""
        summary = b"".join(
            _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", value)) for name, value in values.items()
        )
        self._write(b"\x10" + _varint(epoch) + _field(5, summary))

    def close(self) -> None:
        """See `Scalars`."""
        if self._file:
            self._file.close()


class WeightsAndBiases:
    """Logs to a run of Weights & Biases, which has settings of its own (`WANDB_MODE`, `WANDB_API_KEY`, ...)."""

    def __init__(self, directory: Path | None, settings: Mapping[str, Any]) -> None:
        """directory: for the files of wandb; None for its default. settings: shown with the run."""
        location = {"dir": str(directory)} if directory else {}
        self._run = _import_package("wandb").init(project=_PROJECT, config=dict(settings), **location)

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """See `Scalars`."""
        self._run.log(dict(values), step=epoch)

    def close(self) -> None:
        """See `Scalars`."""
        self._run.finish()


class MLflow:
    """Logs to a run of MLflow, which has settings of its own (`MLFLOW_TRACKING_URI`, ...)."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """settings: logged as parameters of the run."""
        self._mlflow = _import_package("mlflow")
        self._mlflow.set_experiment(_PROJECT)
        self._mlflow.start_run()
        self._mlflow.log_params(dict(settings))

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """See `Scalars`."""
        # MLflow does not allow "@" in names.
        self._mlflow.log_metrics({name.replace("@", "_at_"): value for name, value in values.items()}, step=epoch)

    def close(self) -> None:
        """See `Scalars`."""
        self._mlflow.end_run()


def _import_package(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EncoderError(
            f"encoder.log_to is '{package}', but the package {package} is not installed; run `pip install {package}`, "
            "or set encoder.log_to to 'tensorboard' or 'none'"
        ) from error


def check_package(log_to: LogTo) -> None:
    """Raises `EncoderError` if the package of `log_to` is not installed."""
    if log_to in ("wandb", "mlflow"):
        _import_package(log_to)


def scalars(log_to: LogTo, directory: Path | None, settings: Mapping[str, Any]) -> Scalars:
    """Opens the logger of a training run. The caller must call `close` at the end.

    directory: for files; without it, no TensorBoard files are written. settings: of the training, logged with the run.
    Raises `EncoderError` if the package of `log_to` is not installed, or if it cannot start a run.
    """
    check_package(log_to)
    try:
        if log_to == "wandb":
            return WeightsAndBiases(directory, settings)
        if log_to == "mlflow":
            return MLflow(settings)
    # The packages have errors of many types, for a missing key, a server that does not respond, and so on.
    except Exception as error:
        raise EncoderError(
            f"encoder.log_to is '{log_to}', but {log_to} could not start a run ({type(error).__name__}: {error}); "
            "correct its settings, or set encoder.log_to to 'tensorboard' or 'none'"
        ) from error
    return TensorBoard(directory) if log_to == "tensorboard" and directory else NoScalars()
