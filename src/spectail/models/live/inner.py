"""The language model inside of a larger model, such as the decoder with its head in BLIP-2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from spectail.errors import SourceError
from spectail.models.naming.select import check_globs, is_selected


def inner_language_model(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> nn.Module:
    """Return the smallest module with a language-model head that holds all the named layers.

    Args:
        model: a model of transformers. Without globs it is returned as it is.
        include: globs over names of parameters or layers, such as ``language_model.*``.
        exclude: globs over names that do not count although an ``include`` glob matches them.

    Raises:
        SourceError: a glob matches nothing, or no module with a head holds what they name.

    """
    if not (include or exclude):
        return model
    names = [name for name, _ in model.named_parameters()]
    for option, globs in (("--include", include), ("--exclude", exclude)):
        check_globs(option, globs, names, SourceError, what="parameters")
    named = [name for name in names if is_selected(name, include, exclude)]
    # named_modules lists outer modules first, so that the last one that fits is the smallest.
    fitting: list[nn.Module] = [
        module
        for path, module in model.named_modules()
        if _has_head(module) and all(_lies_in(name, path) for name in named)
    ]
    if not named or not fitting or not _holds_language(fitting[-1], model, named):
        raise SourceError(
            "--include and --exclude name no language model of this model: name the layers of the "
            f"one to evaluate; those with a head are {_listed(model)}"
        )
    return fitting[-1]


def _has_head(module: nn.Module) -> bool:
    """Whether a module of transformers turns token ids into logits."""
    head = getattr(module, "get_output_embeddings", None)
    try:
        return callable(head) and head() is not None
    except (AttributeError, NotImplementedError):
        return False


def _holds_language(module: nn.Module, model: nn.Module, named: Sequence[str]) -> bool:
    """Whether some named parameter belongs to the stack of the module that reads token ids."""
    decoder = getattr(module, "get_decoder", lambda: None)()
    if not isinstance(decoder, nn.Module):
        return True
    inside = {id(parameter) for parameter in decoder.parameters()}
    return any(id(p) in inside for name, p in model.named_parameters() if name in set(named))


def _lies_in(name: str, path: str) -> bool:
    """Whether a parameter lies in the module at a path; everything lies in the root."""
    return not path or name.startswith(f"{path}.")


def _listed(model: nn.Module) -> str:
    """Name the modules with a head."""
    paths = [path or "the whole model" for path, m in model.named_modules() if _has_head(m)]
    return ", ".join(paths) or "none"
