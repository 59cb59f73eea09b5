"""Measuring at the end of an epoch, for the callbacks of trainers."""

from __future__ import annotations

from spectail.training.balancer import Balancer

EPOCH = "epoch"
"""The value of ``every`` for one measurement at the end of each epoch."""


class EndOfEpoch:
    """Measures once at the end of an epoch, whichever of a trainer's hooks comes first.

    A checkpoint of an epoch's last step is stored before the trainer says that the epoch has ended,
    and a run that is resumed from it begins with the next epoch. So the measurement has to follow
    the last step, and the hook of the epoch's end only makes up for it.
    """

    every: int | str | None
    balancer: Balancer | None = None
    _measured: int | None = None
    """The Balancer's step at the last measurement of an epoch."""

    def _measure_epoch(self) -> None:
        """Measure, if ``every`` is ``epoch`` and nothing was measured after this step."""
        if self.every != EPOCH or self.balancer is None:
            return
        if self._measured != self.balancer.steps:
            self.balancer.update()
        self._measured = self.balancer.steps
