"""Pretend CUDA on a CPU build of PyTorch: what a run would do on a GPU, without one and without numbers.

`install()` gives this process a CUDA device without memory: tensors on it are fake, they have a shape and no values.
Within `FakeGPU()` a mixture of devices raises as on a GPU, and four things are counted: waits (what a GPU is
synchronised for), the bytes alive and their peak, FLOPs, and the FLOPs of products whose rows are not aligned.
No CUDA context and no fragmentation is in the bytes; no second is in any of it.

Ids, masks and what follows from them alone have real values, kept beside the fake ones: answers that depend on data
(how many positions are masked) are true. Where nothing is known, a check passes and one row in a hundred is rejected.

A process that has called `install` is good for nothing else: run it in one of its own, and leave it by `os._exit`,
since C++ would still ask the pretended device when all of Python is gone.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import re
import sys
import weakref
from pathlib import Path

import torch
import torch.cuda.amp.common
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import DefaultDeviceType
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
GPU = torch.device("cuda:0")
KNOWN = 2**16  # elements up to which values are kept
ALIGNED = 16  # bytes; tensor cores are fed in pieces of this size
BLOCK = 512  # bytes that PyTorch's allocator rounds up to
_KEEP = []  # what C++ points to


def install() -> None:
    """Makes this process believe in one CUDA device."""
    _register_guard()
    _register_hooks()
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    DefaultDeviceType.set_device_type("cuda")
    torch.nn.functional.scaled_dot_product_attention = _attention
    torch.nn.Module._apply = _apply
    torch.nn.ParameterDict._apply = _apply
    FakeTensor.tolist = _tolist


TORCH = Path(torch.__file__).parent
HEAD = 2  # entries in front of a table of virtual functions: the offset to the top, and the type
TABLE = 128  # entries, more than any class here has
CUDA, META = 1, 14  # of c10::DeviceType
DEVICE = CUDA  # cuda:0 as two bytes, its type and its index


def _virtual_functions(header: str) -> list[str]:
    """Names of a C++ class's virtual functions in the order of its table; a destructor has two entries."""
    text = (TORCH / "include" / header).read_text()
    names = re.findall(r"^  virtual [^(\n]*?(~?\w+)\(", text, re.MULTILINE)
    return [entry for name in names for entry in [name] * (1 + name.startswith("~"))]


def _override(place, names: list[str], answers: dict) -> int:
    """Address of a copy of an object's table of virtual functions, some of which return a constant instead.

    place: Pointer to the object, whose first word is the address of its table.
    """
    table = (ctypes.c_void_p * TABLE)()
    ctypes.memmove(table, place[0] - HEAD * 8, TABLE * 8)
    for name, value in answers.items():
        kind = {bool: ctypes.c_bool, int: ctypes.c_uint64}.get(type(value))
        function = ctypes.CFUNCTYPE(kind, ctypes.c_void_p)(lambda _, value=value: value)
        _KEEP.append(function)
        table[HEAD + names.index(name)] = ctypes.cast(function, ctypes.c_void_p).value
    _KEEP.append(table)
    return ctypes.addressof(table) + HEAD * 8


def _register_guard() -> None:
    """A device guard that does nothing, made from that of the device "meta"; its streams are all the same."""
    names = _virtual_functions("c10/core/impl/DeviceGuardImplInterface.h")
    answers = dict.fromkeys(("type", "exchangeDevice", "getDevice"), DEVICE)
    answers |= dict.fromkeys(("getStream", "getDefaultStream", "getNewStream", "exchangeStream"), DEVICE)
    answers |= dict.fromkeys(("record", "block", "destroyEvent", "synchronizeStream", "recordDataPtrOnStream"))
    answers |= {"queryEvent": True, "queryStream": True}
    c10 = ctypes.CDLL(str(TORCH / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * 32).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
    place = ctypes.cast(registry[META], ctypes.POINTER(ctypes.c_void_p))
    guard = (ctypes.c_void_p * 1)(_override(place, names, answers))
    _KEEP.append(guard)
    register = c10._ZN3c104impl19registerDeviceGuardENS_10DeviceTypeEPKNS0_24DeviceGuardImplInterfaceE
    register.argtypes = [ctypes.c_int8, ctypes.c_void_p]
    register.restype = None
    register(CUDA, ctypes.addressof(guard))


def _register_hooks() -> None:
    """CUDA hooks that say yes: PyTorch's stand-in for a build without CUDA, with some of its functions replaced."""
    names = [*_virtual_functions("ATen/detail/AcceleratorHooksInterface.h"), "hasCUDA"]  # the next class's first
    answers = {"isBuilt": True, "isAvailable": True, "hasPrimaryContext": False, "init": None, "deviceCount": 1}
    answers |= {"setCurrentDevice": None, "getCurrentDevice": 0, "exchangeDevice": 0, "maybeExchangeDevice": 0}
    get_hooks = ctypes.CDLL(str(TORCH / "lib" / "libtorch_cpu.so"))._ZN2at6detail12getCUDAHooksEv
    get_hooks.restype = ctypes.c_void_p
    place = ctypes.cast(get_hooks(), ctypes.POINTER(ctypes.c_void_p))
    place[0] = _override(place, names, answers | {"hasCUDA": True})


def _attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    plain=(torch.nn.functional.scaled_dot_product_attention),
):
    """The kernels that PyTorch chooses on a GPU: flash attention in half precision without a mask, else efficient."""
    if not isinstance(query, FakeTensor) or query.device != GPU:
        return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if query.dtype != torch.float32 and attn_mask is None:
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    groups = query.shape[1] // key.shape[1]
    key, value = (heads.repeat_interleave(groups, 1) if groups > 1 else heads for heads in (key, value))
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, query.requires_grad, dropout_p, is_causal, scale=scale)[0]


def _apply(module, function, recurse=True):
    """`Module._apply` without swapping tensors, which fake ones do not allow."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for name, weight in module._parameters.items():
        if weight is not None:
            moved = function(weight.data)
            if moved.device != weight.device or moved.dtype != weight.dtype:
                module._parameters[name] = torch.nn.Parameter(moved, requires_grad=weight.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def _tolist(tensor):
    return FakeGPU.current.answer(tensor, "tolist", lambda known: known.tolist(), [0] * tensor.numel())


def known(tensor):
    """A tensor's values, if they are kept; None where there are none."""
    return getattr(tensor, "known", None) if isinstance(tensor, FakeTensor) else tensor


# Where values begin, beside those that are given; what is random has none.
FACTORIES = {aten.arange, aten.zeros, aten.ones, aten.full, aten.scalar_tensor, aten.eye, aten.linspace}
VALUELESS = {aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided}
RANDOM = {aten.normal_, aten.uniform_, aten.rand, aten.randn, aten.rand_like, aten.randint, aten.bernoulli}


class FakeGPU(TorchDispatchMode):
    """`with FakeGPU() as gpu:` tensors are fake, and `gpu` counts.

    Attributes:
        waits: (function, place in the package) → how often the GPU was synchronised.
        now, peak: Bytes alive on the GPU.
        flops: Of matrix products and attention, forward and backward.
        unaligned: Those of products in half precision whose rows do not begin at whole pieces of `ALIGNED` bytes.
    """

    current: FakeGPU

    def __init__(self, is_detailed: bool = False):
        super().__init__()
        self.is_detailed = is_detailed  # keeps what was alive at the peak; slow
        self.waits = collections.Counter()
        self.now = self.peak = self.flops = self.unaligned = 0
        self.sizes = {}
        self.references = {}
        self.largest = {}
        self.at = ""
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        FakeGPU.current = self
        self.stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        return super().__enter__()

    def __exit__(self, *problem):
        super().__exit__(*problem)
        self.stack.close()

    def reset(self) -> None:
        """Counts from here."""
        self.waits.clear()
        self.peak = self.now
        self.flops = self.unaligned = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is aten._local_scalar_dense.default:
            kind = args[0].dtype
            default = True if kind == torch.bool else 1.0 if kind.is_floating_point else 0
            return self.answer(args[0], "item", lambda values: values.item(), default)
        if function is aten.equal.default:
            values = [known(tensor) for tensor in args]
            self.wait("equal", args[0])
            with unset_fake_temporarily():
                return all(value is not None for value in values) and torch.equal(*values)
        if function is aten.nonzero.default:
            return self.nonzero(args[0])
        if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], self.whole_indices(args[1]), *args[2:])
        out = function(*args, **kwargs)
        self.notice_copies(function, args, out)
        self.count_flops(function, args, kwargs, out)
        for tensor in tree_leaves(out):
            self.track(tensor, function)
        self.keep_values(function, args, kwargs, out)
        return out

    def wait(self, what: str, tensor) -> None:
        if tensor.device == GPU:
            self.waits[what, _place()] += 1

    def answer(self, tensor, what: str, read, default):
        """What a read of values gives."""
        self.wait(what, tensor)
        values = known(tensor)
        with unset_fake_temporarily():
            return default if values is None else read(values)

    def nonzero(self, tensor):
        self.wait("nonzero", tensor)
        values = known(tensor)
        if values is None:
            return tensor.new_empty((-(-len(tensor) // 100), tensor.dim()), dtype=torch.long)
        with unset_fake_temporarily():
            values = values.nonzero()
        return self.with_values(tensor.new_empty(values.shape, dtype=torch.long), values)

    def whole_indices(self, indices):
        """Masks in an index as the ids they stand for."""
        found = []
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                found += self.nonzero(index).unbind(1)
            else:
                found.append(index)
        return found

    def notice_copies(self, function, args, out) -> None:
        """A copy from or to ordinary memory waits."""
        if function.overloadpacket is aten._to_copy:
            devices = (args[0].device.type, out.device.type)
        elif function.overloadpacket is aten.copy_:
            devices = (args[1].device.type, args[0].device.type)
        else:
            return
        if set(devices) == {"cpu", "cuda"}:
            self.waits["copy", _place()] += 1

    def count_flops(self, function, args, kwargs, out) -> None:
        count = flop_registry.get(function.overloadpacket)
        if count is None or not any(_is_on_gpu(tensor) for tensor in tree_leaves(out)):
            return
        flops = count(*args, **kwargs, out_val=out)
        self.flops += flops
        if function.overloadpacket in (aten.mm, aten.addmm):
            matrices = [tensor for tensor in (*args, out) if isinstance(tensor, torch.Tensor) and tensor.dim() == 2]
            if not all(_is_aligned(matrix) for matrix in matrices):
                self.unaligned += flops

    def track(self, tensor, function) -> None:
        if not _is_on_gpu(tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self.sizes[key] = (size, str(function), tuple(tensor.shape), str(tensor.dtype))
        self.now += size
        self.references[key] = weakref.ref(storage, lambda _: self.free(key))
        if self.now > self.peak:
            self.peak = self.now
            if self.is_detailed:
                self.largest = dict(self.sizes)
                self.at = f"{function} {tuple(tensor.shape)} in {_place()}"

    def free(self, key: int) -> None:
        self.references.pop(key)
        self.now -= self.sizes.pop(key)[0]

    def keep_values(self, function, args, kwargs, out) -> None:
        packet = function.overloadpacket
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, FakeTensor)]
        has_values = packet not in VALUELESS | RANDOM and all(known(tensor) is not None for tensor in given)
        has_values &= bool(given) or packet in FACTORIES
        if not has_values or any(tensor.numel() > KNOWN for tensor in outs):
            for tensor in outs if function._schema.is_mutable else ():
                tensor.known = None
            return
        values = {name: tree_map(_values, value) for name, value in kwargs.items() if name != "pin_memory"}
        if "device" in values:
            values["device"] = torch.device("cpu")
        with unset_fake_temporarily(), torch.no_grad():
            result = function(*tree_map(_values, args), **values)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for tensor, value in zip(outs, results, strict=True):
            tensor.known = value

    def with_values(self, tensor, values):
        tensor.known = values
        return tensor

    def top(self, count: int = 12):
        """The kinds of tensors that take most at the peak: (shape, dtype, MB)."""
        sums = collections.Counter()
        for size, _, shape, dtype in self.largest.values():
            sums[shape, dtype] += size
        return [(*kind, round(size / 1e6)) for kind, size in sums.most_common(count)]


def _values(leaf):
    return known(leaf) if isinstance(leaf, torch.Tensor) else leaf


def _is_on_gpu(tensor) -> bool:
    return isinstance(tensor, FakeTensor) and tensor.device == GPU


def _is_aligned(matrix) -> bool:
    """Whether a matrix in half precision can be read by tensor cores at their full speed."""
    return matrix.element_size() > 2 or max(matrix.stride()) * matrix.element_size() % ALIGNED == 0


def _place() -> str:
    """The line of the package that is being run, or of whoever calls."""
    frame = sys._getframe(1)
    outermost = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if "tess2lite" in Path(name).parts[-4:] or "/tess2lite/" in name and "/tests/" not in name:
            return f"{Path(name).name}:{frame.f_code.co_name}"
        if not outermost and "/torch/" not in name and "fake_cuda" not in name:
            outermost = f"{Path(name).name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return outermost
