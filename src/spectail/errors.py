"""Errors that a user can fix; messages say what was expected, what came and what to do."""


class SpectailError(Exception):
    """The base class of all errors that spectail raises on purpose.

    The command line prints the message as one line and exits with code 2.
    """


class SourceError(SpectailError):
    """A model or checkpoint cannot be found, read or trusted."""


class SourceChangedError(SourceError):
    """A file was written while it was being read, so its parts belong to two models."""


class SourceUnreachableError(SourceError):
    """A server did not deliver a part of a source, although it was asked several times."""


class SpecError(SpectailError, ValueError):
    """A measurement setting is invalid, or does not fit the matrices."""


class RunError(SpectailError):
    """An output folder cannot be used for this run, or two runs cannot be compared."""


class AllocationError(SpectailError, ValueError):
    """An allocation cannot be made or read.

    Examples are a budget out of reach, a missing alpha, and a rule that contradicts itself.
    """


class PruneError(SpectailError, ValueError):
    """A model, allocation or calibration text cannot be used for pruning, or settings conflict."""


class EvaluationError(SpectailError, ValueError):
    """A model cannot be evaluated as asked.

    Examples are too little text, a block that is too long, and logits that are NaN.
    """


class ExportError(SpectailError, ValueError):
    """The other tool cannot express this allocation."""


class TrainingError(SpectailError, ValueError):
    """A Balancer cannot work with a model, optimizer or stored state, or settings conflict."""
