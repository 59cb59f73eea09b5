"""The errors that a user can mend: each message says what was expected, what came and what to do."""


class SpectailError(Exception):
    """Base of every error raised on purpose; the command line prints its text as one line and exits with 2."""


class SourceError(SpectailError):
    """A model or checkpoint that cannot be found, read or trusted."""


class SourceChangedError(SourceError):
    """A file that was written while it was being read: what was read and what would be read are two models."""


class SpecError(SpectailError, ValueError):
    """A measurement setting that makes no sense, or does not fit the matrices at hand."""


class RunError(SpectailError):
    """An output folder, or two runs, that do not go together."""


class AllocationError(SpectailError, ValueError):
    """An allocation that cannot be made or read: a budget out of reach, a missing alpha, a rule that makes no sense."""


class PruneError(SpectailError, ValueError):
    """A model, allocation or calibration text that cannot be pruned with, or settings that do not go together."""


class EvaluationError(SpectailError, ValueError):
    """A model that cannot be evaluated as asked: too little text, a block that is too long, logits that are NaN."""


class ExportError(SpectailError, ValueError):
    """An allocation that the other tool has no way to say."""


class TrainingError(SpectailError, ValueError):
    """A model, optimizer or stored state that a Balancer cannot work with, or settings that do not go together."""
