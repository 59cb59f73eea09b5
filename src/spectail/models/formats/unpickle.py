"""Read a pickle as data: no name in it is imported or called; foreign objects become inert.

A pickle reaches code only through ``find_class``. The one here returns plain containers,
descriptions of tensors (torch's serialization notes describe the functions that rebuild one) and,
for every other name, a class that only remembers its arguments. Everything that it returns has a
``__setstate__`` or refuses new attributes, so that the opcode BUILD cannot change it either.
"""

from __future__ import annotations

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from spectail.models.formats.pickled import ArrayRef, Inert, NumpyType, Storage, TensorRef

_RUNS_CODE = frozenset(
    {"exec", "eval", "compile", "execfile", "__import__", "open", "input", "breakpoint"}
)
"""Built-in functions that no checkpoint needs and that attacks use."""
_RUNS_CODE_MODULES = frozenset(
    {
        "os",
        "posix",
        "nt",
        "sys",
        "subprocess",
        "importlib",
        "runpy",
        "pty",
        "socket",
        "shutil",
        "ctypes",
        "commands",
        "webbrowser",
        "marshal",
        "pip",
    }
)
"""Modules that no checkpoint needs and that attacks use. Their names would be as inert as all
others; the file is refused so that the user knows."""
_HARMLESS = (
    "argparse",
    "collections",
    "datetime",
    "enum",
    "numpy",
    "omegaconf",
    "pathlib",
    "torch.device",
    "torch.nn.parameter",
    "torch.distributed",
    "torch.optim",
    "torch.random",
    "torch._utils",
    "typing",
    "uuid",
    "builtins",
    "copyreg",
    "transformers.trainer_utils",
    "transformers.training_args",
    "accelerate",
    "yacs",
)
"""Packages whose objects are settings and the like. They are left out without a note."""


class CodeInPickleError(pickle.UnpicklingError):
    """The pickle names a function whose only use is to run code; ``args[0]`` is its name."""


class PlainUnpickler(pickle._Unpickler):
    """Reads a pickle without running anything in it.

    ``load_storage`` returns the storage for a persistent id, ``load_bytes`` reads a nested file.
    """

    # Python's own unpickler, not that in C, which fills 16 bytes for every number below the one of
    # a memo place: five bytes of a file make it fill gigabytes. It costs 0.04 ms a tensor.

    def __init__(
        self, stream: Any, load_storage: Callable[[Any], Any], load_bytes: Callable[[bytes], Any]
    ) -> None:
        """Read from ``stream``, with functions that find storages and nested files."""
        super().__init__(stream, encoding="latin1")  # pickles of Python 2 hold bytes as texts
        self._load_storage = load_storage
        self._known = _KNOWN | {"torch.storage._load_from_bytes": _Call(load_bytes)}
        self.foreign: dict[str, None] = {}
        """Names of what was left out, in order (a dict serves as an ordered set)."""
        self._classes: dict[str, type[Inert]] = {}

    def persistent_load(self, pid: Any) -> Any:
        """Return what an id of torch's stands for."""
        return self._load_storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name; nothing is imported."""
        # Protocol 2, which torch uses, writes the names of Python 2.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        # numpy 2 renamed its core.
        module = module.replace("numpy.core.", "numpy._core.")
        full = f"{module}.{name}"
        # Names with a harmless meaning come first, then those that are refused, then all others.
        if full in self._known:
            return self._known[full]
        if (
            module in {"torch", "torch.storage", "torch.cuda"}
            and (known := _torch_name(name)) is not None
        ):
            return known
        root = module.partition(".")[0]
        if root in _RUNS_CODE_MODULES or (module == "builtins" and name in _RUNS_CODE):
            raise CodeInPickleError(full)
        if root not in _HARMLESS and not full.startswith(_HARMLESS):
            self.foreign[full] = None
        if full not in self._classes:
            # A class per name, so that an object still knows what it was.
            self._classes[full] = type(
                name.rpartition(".")[2] or "Inert", (Inert,), {"global_name": full}
            )
        return self._classes[full]


class _Call:
    """A function that a pickle may call. It has no attributes, so that BUILD cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        """Refuse a state."""
        raise pickle.UnpicklingError("a function has no state")


class _Dict(OrderedDict[Any, Any]):
    """A dict whose attributes (``_metadata`` of a state dict) are ignored."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the attributes."""


class _DefaultDict(_Dict):
    """A defaultdict without its factory."""

    def __init__(self, *factory: Any) -> None:
        """Ignore the factory, which is a function of the pickle's."""
        super().__init__()


class _StorageType:
    """A storage class of torch, which stands for a type of number."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        """Refuse a state."""
        raise pickle.UnpicklingError("a storage class has no state")


def _frombuffer(raw: Any, dtype: NumpyType, shape: Any, order: Any) -> ArrayRef:
    """Stand for numpy's ``_frombuffer``."""
    return ArrayRef().fill(raw, dtype, shape, order)


_STORAGES: dict[str, torch.dtype] = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
    "Untyped": torch.uint8,
    "_Untyped": torch.uint8,
}
"""The types that torch's storage classes stand for."""


def _torch_name(name: str) -> Any:
    """Return the stand-in for a dtype, a storage class or a quantisation scheme of torch."""
    # Not by getattr, which imports some modules of torch when they are asked for.
    value = vars(torch).get(name)
    if isinstance(value, torch.dtype):
        return value
    if name.endswith("Storage") and name.removesuffix("Storage") in _STORAGES:
        return _StorageType(_STORAGES[name.removesuffix("Storage")])
    # A quantisation scheme is only shown, never used.
    return str(value).removeprefix("torch.") if isinstance(value, torch.qscheme) else None


def _tensor(
    storage: Storage, first: int, shape: Sequence[int], strides: Sequence[int], *rest: Any
) -> TensorRef:
    """Stand for ``_rebuild_tensor`` and ``_rebuild_tensor_v2``; the last argument is metadata."""
    metadata = rest[2] if len(rest) > 2 else None
    return _view(storage, first, shape, strides, storage.dtype, metadata)


def _tensor_v3(
    storage: Storage, first: int, shape: Sequence[int], strides: Sequence[int], *rest: Any
) -> TensorRef:
    """Stand for ``_rebuild_tensor_v3``: the storage is of bytes and the type is given."""
    return _view(storage, first, shape, strides, rest[2], rest[3] if len(rest) > 3 else None)


def _view(
    storage: Storage,
    first: int,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: torch.dtype,
    metadata: Any,
) -> TensorRef:
    """Describe a view of a storage."""
    problem = storage.problem
    # The stored bytes are those before the conjugation or negation.
    if isinstance(metadata, dict) and any(metadata.get(key) for key in ("conj", "neg")):
        problem = (
            "a lazily conjugated or negated tensor; save it after resolve_conj() and resolve_neg()"
        )
    return TensorRef(tuple(shape), dtype, storage, first, tuple(strides), problem)


def _quantised(
    storage: Storage,
    first: int,
    shape: Sequence[int],
    strides: Sequence[int],
    scales: Any,
    *rest: Any,
) -> TensorRef:
    """Stand for ``_rebuild_qtensor``; torch calls the integers qint8, quint8 and qint32."""
    # torch has no arithmetic for these types; their bytes are plain integers.
    integers = {"torch.qint8": torch.int8, "torch.quint8": torch.uint8, "torch.qint32": torch.int32}
    dtype = integers.get(str(storage.dtype))
    problem = (
        storage.problem if dtype else f"stored as {storage.dtype}, which is not dequantised here"
    )
    return TensorRef(
        tuple(shape),
        dtype or torch.uint8,
        storage,
        first,
        tuple(strides),
        problem,
        tuple(scales[1:]),
    )


def _sparse(layout: Any, data: Any) -> TensorRef:
    """Stand for ``_rebuild_sparse_tensor``: a tensor that is described but not read."""
    shape = next((tuple(part) for part in data if isinstance(part, tuple)), ())
    values = next((part for part in reversed(data) if isinstance(part, TensorRef)), None)
    kind = str(layout).removeprefix("torch.")
    dtype = values.dtype if values else torch.float32
    return TensorRef(shape, dtype, problem=f"stored as a {kind} tensor, only dense ones are read")


def _without_values(dtype: torch.dtype, shape: Sequence[int], *rest: Any) -> TensorRef:
    """Stand for the function that rebuilds a tensor on the meta device."""
    return TensorRef(
        tuple(shape), dtype, problem="on the meta device, its values were never loaded"
    )


def _subclass(kind: Any, dtype: torch.dtype, shape: Sequence[int], *rest: Any) -> TensorRef:
    """Stand for the function that rebuilds a tensor subclass."""
    name = getattr(kind, "global_name", "a tensor subclass")
    return TensorRef(
        tuple(shape), dtype, problem=f"stored as {name}, which is not read from a file"
    )


def _of_type(function: Any, kind: Any, args: Sequence[Any], state: Any) -> Any:
    """Stand for ``_rebuild_from_type_v2``: the tensor without its class and attributes."""
    return function(*args)


def _from_numpy(array: ArrayRef, dtype: torch.dtype, *rest: Any) -> ArrayRef:
    """Stand for the functions that put an array on a device."""
    return array


def _bytes(text: Any = b"", *encoding: Any) -> bytes:
    """Stand for ``bytes``, ``bytearray`` and ``_codecs.encode(text, 'latin1')``.

    Protocol 2 writes bytes as an encoded text.
    """
    return (
        text.encode("latin1")
        if isinstance(text, str)
        else bytes(text)
        if not isinstance(text, int)
        else b""
    )


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": _Dict,
    "collections.Counter": _Dict,
    "collections.defaultdict": _DefaultDict,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.bytearray": _Call(_bytes),
    "builtins.bytes": _Call(_bytes),
    "_codecs.encode": _Call(_bytes),
    "torch.Size": tuple,
    "torch.serialization._get_layout": _Call(str),
    "torch._utils._rebuild_tensor": _Call(_tensor),
    "torch._utils._rebuild_tensor_v2": _Call(_tensor),
    "torch._utils._rebuild_tensor_v3": _Call(_tensor_v3),
    # A parameter is read as its data.
    "torch._utils._rebuild_parameter": _Call(lambda data, *rest: data),
    "torch._utils._rebuild_parameter_with_state": _Call(lambda data, *rest: data),
    "torch._utils._rebuild_qtensor": _Call(_quantised),
    "torch._utils._rebuild_sparse_tensor": _Call(_sparse),
    "torch._utils._rebuild_meta_tensor_no_storage": _Call(_without_values),
    "torch._utils._rebuild_wrapper_subclass": _Call(_subclass),
    "torch._utils._rebuild_device_tensor_from_numpy": _Call(_from_numpy),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _Call(lambda data, *rest: data),
    "torch._utils._rebuild_xla_tensor": _Call(_from_numpy),
    "torch._tensor._rebuild_from_type_v2": _Call(_of_type),
    "numpy._core.multiarray._reconstruct": _Call(lambda *args: ArrayRef()),
    "numpy._core.numeric._frombuffer": _Call(_frombuffer),
    "numpy.dtype": NumpyType,
}
"""What a pickle may use, by its full name."""
