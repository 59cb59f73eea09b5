"""Log the measurements of a training run: W&B, TensorBoard, MLflow, trackio or any function."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from spectail.errors import TrainingError


class Log(Protocol):
    """A function of values by name and the step: ``wandb.log``, ``mlflow.log_metrics``, ..."""

    def __call__(self, values: dict[str, float], /, *, step: int) -> object:
        """Log ``values`` at ``step``, a number of optimizer steps."""


@runtime_checkable
class Writer(Protocol):
    """A TensorBoard writer, such as ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> object:
        """Log one value."""


def as_log(given: Log | Writer) -> Log:
    """Return the function to log with; a TensorBoard writer gets one ``add_scalar`` per value.

    Raises TrainingError for anything else.
    """
    if isinstance(given, Writer):
        return _of_writer(given)
    if not callable(given):
        raise TrainingError(
            "log must be a function that is called as log(values, step=...), such as wandb.log, "
            f"or a TensorBoard writer, not {given!r}"
        )
    return given


def _of_writer(writer: Writer) -> Log:
    def log(values: dict[str, float], /, *, step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log
