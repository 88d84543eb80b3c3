"""Run the program on a CUDA device that is not there: tensors lie on the CPU, say `cuda:0`, and refuse what CUDA refuses.

    python tests/pretend_cuda.py --config exps/slca_demo.json --device cuda --out logs/pretended --set epochs=1 seed=0

The arguments are those of main.py (`predict` and `export` too). A `PretendTensor`, a wrapper subclass of device cuda:0, holds a CPU
tensor. A dispatch mode sees every operation below autograd and autocast, which so take their CUDA branches; it checks the operation,
counts it and computes it on the CPU.

Refused, in CUDA's words: operands on two devices (a CPU tensor without dimensions passes where TensorIterator takes it, and CPU indices
of a CUDA tensor do); a generator of another device; .numpy() of a device tensor; device work in a forked worker; under
torch.use_deterministic_algorithms an operation that has no deterministic CUDA kernel.

Counted by phase, with the project's line: launches (one for each operation that computes, a lower bound), waits (the host waits for the
stream), copies (bytes, type, pinned, non_blocking), operations in float64.

Not seen: what a kernel computes and how fast, memory, streams and races between them, NCCL, torch.compile, waits inside kernels that
WAITING does not name, gradients of another device handed to backward() (autograd does not check them for subclasses).

It relies on how torch is made inside, so on its version: see `unsupported`.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

TORCH = "2.14."
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
PID = os.getpid()
ROOT = str(Path(__file__).resolve().parents[1]) + os.sep
THIS_FILE = str(Path(__file__).resolve())

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted", "detach", "alias", "lift_fresh",
             "_local_scalar_dense", "resize_", "_reshape_alias", "_unsafe_view", "_linalg_check_errors"}
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_linalg_eigh", "_linalg_check_errors", "_linalg_svd", "_unique2",
           "unique_dim", "unique_consecutive", "bincount", "equal", "multinomial", "linalg_lstsq", "linalg_eig"}
INDEXING = {"index", "index_put_", "_index_put_impl_", "index_put"}
COPYING = {"_to_copy", "copy_"}
TAKES_CPU_SCALAR = {"where", "masked_fill", "masked_fill_", "fill_", *INDEXING}  # beside operations tagged pointwise
NOT_DETERMINISTIC = {  # from the list in torch.use_deterministic_algorithms
    "put_", "histc", "median.dim", "kthvalue", "nll_loss2d_forward", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward",
    "grid_sampler_2d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "reflection_pad2d_backward"}

# Phase: how many units a call is, of its arguments, and the functions that are the phase. What a function of another phase does
# inside counts for that one alone. Two more phases, "stage 1" and "end of epoch", are those of `counted_epoch`.
PHASES: dict[str, tuple[Any, ...]] = {
    "extraction": (lambda *_, **__: 0, "models.evaluation.extract_pass"),  # `counted_batches`
    "evaluation": (lambda *_, **__: 1, "models.evaluation.evaluate"),
    "fitting": (lambda gaussians, features, labels, classes: len(classes), "models.slca.gaussians.ClassGaussians.fit"),
    "drawing": (lambda gaussians, means, *_: len(means), "models.slca.gaussians.ClassGaussians.sample"),
    "alignment": (lambda learner, *_: learner.config.ca_epochs, "models.slca.slca.SLCA.train_heads",
                  "models.adapters.aligned.AlignedAdapters.train_heads"),
    "step of alignment": (lambda *_: 1, "models.slca.alignment.Alignment.step"),
    "drift": (lambda *_: 1, "models.slca.gaussian_learner.GaussianLearner.follow_backbone"),
    "read-out": (lambda *_: 1, "models.slca.readout.Discriminant.refresh", "models.slca.readout.tells_apart"),
    "temperature": (lambda *_: 1, "models.base.fit_temperature"),
    "herding": (lambda learner, task: learner.stream.task_sizes[task], "models.rehearsal.memory.Rehearsal.update_memory"),
    "checkpoint": (lambda *_, **__: 1, "utils.run.checkpoint.CheckpointStore.save"),
}


@dataclass
class Counts:
    """What one phase did."""

    calls: int = 0
    units: int = 0  # what the phase's figures are given for: steps, batches, classes
    launches: int = 0
    h2d_bytes: int = 0
    d2h_bytes: int = 0
    ops: Counter[str] = field(default_factory=Counter)  # launches by operation
    waits: Counter[str] = field(default_factory=Counter)  # by the project's line and cause
    h2d: Counter[str] = field(default_factory=Counter)
    d2h: Counter[str] = field(default_factory=Counter)
    fp64: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """What a test or a benchmark asks for."""
        return {"calls": self.calls, "units": self.units, "launches": self.launches, "waits": dict(+self.waits)}


phases: defaultdict[str, Counts] = defaultdict(Counts)
errors: list[str] = []  # what the device refused
at_hand = ["other"]  # the phases that are entered; the last one counts
claimed: dict[int, torch.device] = {}  # address of a generator -> the device that it says it draws on


def where() -> str:
    """The project's innermost line."""
    frame = sys._getframe(1)
    while frame is not None and (not frame.f_code.co_filename.startswith(ROOT) or frame.f_code.co_filename == THIS_FILE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.removeprefix(ROOT)}:{frame.f_lineno}" if frame else "torch"


def refuse(message: str, kind: type[Exception] = RuntimeError) -> None:
    errors.append(f"{where()}: {message}")
    raise kind(message)


# What a program holds: tensors and generators ---------------------------------------------------------------------


class PretendTensor(Tensor):
    """Says cuda:0; `inner`, on the CPU, holds the numbers."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        made = Tensor._make_wrapper_subclass(cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
                                             dtype=inner.dtype, layout=inner.layout, device=CUDA)
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # where the mode is off, as in autograd's own threads
        return dispatch(func, args, kwargs)

    def numpy(self):
        refuse("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.", TypeError)

    def __array__(self, dtype=None, copy=None):
        return self.numpy()

    def tolist(self):
        return self.cpu().tolist()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = copied = self.detach().clone().requires_grad_(self.requires_grad)
            copied.__dict__.update({key: value for key, value in self.__dict__.items() if key != "inner"})
        return memo[id(self)]

    def __repr__(self, *, tensor_contents=None):
        return f"pretended {CUDA}: {self.inner!r}"

    def __format__(self, spec):
        return format(self.item() if self.dim() == 0 else repr(self), spec)


class Generator(torch.Generator):
    """Draws on the CPU what it says it draws on its device."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        claimed[made._cdata] = CPU if torch.device(device).type == "cpu" else CUDA
        return made

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return claimed[self._cdata]


# One operation: check, count, compute -----------------------------------------------------------------------------


def check(func, name: str, args, kwargs, tensors: list[Tensor], on_device: bool) -> None:
    """Refuse what CUDA would refuse of one operation."""
    generator = kwargs.get("generator")
    expected, found = ("cuda", "cpu") if on_device else ("cpu", "cuda")
    if generator is not None and claimed.get(generator._cdata, CPU).type != expected:
        refuse(f"Expected a '{expected}' device type for generator but found '{found}' ({func})")
    if on_device and os.getpid() != PID:
        refuse("Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the 'spawn' start method")
    if on_device and torch.are_deterministic_algorithms_enabled() and NOT_DETERMINISTIC & {name, str(func).removeprefix("aten.")}:
        refuse(f"{name} does not have a deterministic implementation")
    strangers = [t for t in tensors if not isinstance(t, PretendTensor)]
    makes_like = name.endswith("_like") or name.startswith("new_")  # takes the other's shape and type alone
    if not on_device or not strangers or name in COPYING or makes_like:
        return
    if name in INDEXING and isinstance(args[0], PretendTensor):
        moved = [t for t in args[1] if t is not None and not isinstance(t, PretendTensor)]
        for index in moved:  # allowed, but each index is copied and waited for
            note_copy("h2d", index, "index on the CPU, blocking", waits=True)
        strangers = strangers[len(moved):]
    into_cpu = func._schema.is_mutable and isinstance(args[0], Tensor) and not isinstance(args[0], PretendTensor)
    takes_scalars = name in TAKES_CPU_SCALAR or torch.Tag.pointwise in func.tags
    if into_cpu or any(t.dim() or not takes_scalars for t in strangers):
        refuse("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
               f"({func}: {', '.join(f'{t.device} {tuple(t.shape)}' for t in tensors)})")


def note_copy(way: str, tensor: Tensor, how: str, waits: bool) -> None:
    counts, line = phases[at_hand[-1]], where()
    getattr(counts, way)[f"{line} {str(tensor.dtype).removeprefix('torch.')} {how}"] += 1
    setattr(counts, f"{way}_bytes", getattr(counts, f"{way}_bytes") + tensor.numel() * tensor.element_size())
    counts.waits[f"{line} {way} copy"] += waits


def count(func, name: str, args, kwargs, tensors: list[Tensor], target: torch.device | None) -> None:
    """Note what one operation of the device costs."""
    counts = phases[at_hand[-1]]
    if name in COPYING:
        host, source, to = (args[0], args[1], args[0].device) if name == "copy_" else (None, args[0], target or args[0].device)
        if source.device != to:
            free = bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            pinned = getattr(source if to.type == "cuda" else host, "pinned", False)
            how = f"{'pinned' if pinned else 'pageable'}, {'non_blocking' if free else 'blocking'}"
            return note_copy("h2d" if to.type == "cuda" else "d2h", source, how, waits=not free)
    by_mask = (name in INDEXING and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
               and not (len(args) > 2 and args[2].numel() == 1))  # one value is a masked_fill, which does not wait
    if name in WAITING or by_mask or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        counts.waits[f"{where()} {name}{' by a mask' * by_mask}"] += 1
    if name not in NO_KERNEL and not func.is_view:
        counts.launches += 1
        counts.ops[name] += 1
        if any(t.dtype == torch.float64 for t in tensors):
            matrix = name in ("mm", "addmm", "bmm") or "linalg" in name
            counts.fp64[f"{name} {tuple(max(tensors, key=Tensor.numel).shape)}" if matrix else "pointwise"] += 1


def attention(name: str, args, kwargs):
    """CUDA's memory-efficient attention, by the CPU's; None for any other operation."""
    ops = torch.ops.aten
    if name == "_scaled_dot_product_efficient_attention":
        out = ops._scaled_dot_product_flash_attention_for_cpu(*args[:3], 0.0, *args[6:7], attn_mask=args[3], scale=kwargs.get("scale"))
        return (*out, *torch.zeros(2, dtype=torch.int64).unbind())  # and the state of dropout's generator
    if name == "_scaled_dot_product_efficient_attention_backward":
        mask, causal, scale = args[4], args[11] if len(args) > 11 else False, kwargs.get("scale")
        return (*ops._scaled_dot_product_flash_attention_for_cpu_backward(*args[:4], *args[5:7], 0.0, causal, attn_mask=mask, scale=scale),
                None)
    return None


def plain(value: Any, tensors: list[Tensor]) -> Any:
    """An operation's arguments with the CPU's tensors in place of pretended ones; all tensors are added to `tensors`, as they came."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.inner if isinstance(value, PretendTensor) else value
    if isinstance(value, (list, tuple)):
        return type(value)([plain(each, tensors) for each in value])
    return {key: plain(each, tensors) for key, each in value.items()} if isinstance(value, dict) else value


def dispatch(func, args, kwargs):
    """Check, count and compute one operation."""
    kwargs = dict(kwargs or {})
    tensors: list[Tensor] = []
    plain_args, plain_kwargs = plain(args, tensors), plain(kwargs, tensors)
    target = kwargs.get("device") or next((x for x in args if isinstance(x, torch.device)), None)
    target = None if target is None else torch.device(target)
    ours, to_device = any(isinstance(t, PretendTensor) for t in tensors), target is not None and target.type == "cuda"
    if not ours and not to_device and kwargs.get("generator") is None:
        return func(*args, **kwargs)
    if torch.is_inference_mode_enabled() and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with Mode():  # in inference mode composite operations come here whole
            return func.decompose(*args, **kwargs)
    name, on_device = func._schema.name.removeprefix("aten::"), to_device or (ours and target is None)
    check(func, name, args, kwargs, tensors, on_device)
    if not ours and not to_device:
        return func(*args, **kwargs)
    count(func, name, args, kwargs, tensors, target)
    plain_kwargs = {**plain_kwargs, "device": CPU} if to_device else plain_kwargs
    out = attention(name, plain_args, plain_kwargs)
    out = func(*plain_args, **plain_kwargs) if out is None else out
    known = {id(t.inner): t for t in tensors if isinstance(t, PretendTensor)}  # what is written in place comes back as it was given
    stays = args[0] if name == "copy_" and not isinstance(args[0], PretendTensor) else None

    @torch.inference_mode(args[0].is_inference() if func.is_view else torch.is_inference_mode_enabled())
    def wrap(x):  # in inference mode a view of an ordinary tensor is ordinary
        as_it_is = not isinstance(x, Tensor) or x is stays
        return x if as_it_is else known[id(x)] if id(x) in known else PretendTensor(x)

    if not on_device:
        return out
    return wrap(out) if isinstance(out, Tensor) else pytree.tree_map(wrap, out)


class Mode(TorchDispatchMode):
    """Sees every operation of the thread, those that only make a tensor on the device too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs)


# Believe in the device --------------------------------------------------------------------------------------------


def unsupported() -> str | None:
    """Why this torch cannot be pretended with, if it cannot."""
    if not torch.__version__.startswith(TORCH):
        return f"pretending a CUDA device relies on the inside of torch {TORCH}x; this is torch {torch.__version__}"
    if torch.cuda.is_available():
        return "a CUDA device is there, so none has to be pretended"
    return None if sys.platform == "linux" else "pretending a CUDA device relies on torch for Linux"


def silence_cuda_hooks() -> None:
    """Autograd's engine asks libtorch's CUDA hooks for contexts, and they ask the driver: answer two of their virtual functions here."""
    library = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
    get = library._ZN2at6detail12getCUDAHooksEv
    get.restype = ctypes.c_void_p
    hooks = ctypes.cast(get(), ctypes.POINTER(ctypes.c_void_p))
    table = (ctypes.c_void_p * 96)(*ctypes.cast(hooks[0] - 16, ctypes.POINTER(ctypes.c_void_p * 96)).contents)
    answers = (ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda this, device: False),  # hasPrimaryContext
               ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda this: None))  # init
    for slot, answer in enumerate(answers, start=2 + 4):  # the fifth and sixth in ATen/detail/AcceleratorHooksInterface.h
        table[slot] = ctypes.cast(answer, ctypes.c_void_p).value

    def restore(alive=(table, answers), original=hooks[0]) -> None:  # libtorch's own end asks it again
        hooks[0] = original

    atexit.register(restore)
    hooks[0] = ctypes.addressof(table) + 16


def believe() -> None:
    """Make torch believe in one H100, for the rest of the process."""
    torch._C._ensureCUDADeviceGuardSet()
    silence_cuda_hooks()
    torch.__future__.set_swap_module_params_on_conversion(True)  # Module.to() keeps parameters the same objects, as on CUDA
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is made on the CPU and moved by an operation
    answers = {"is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True, "is_bf16_supported": True,
               "get_device_capability": (9, 0), "get_device_name": "pretended H100", "max_memory_allocated": 0, "_is_in_bad_fork": False}
    nothing = ("_lazy_init", "set_sync_debug_mode", "set_device", "synchronize", "reset_peak_memory_stats", "empty_cache", "manual_seed",
               "manual_seed_all")
    for name, answer in {**answers, **dict.fromkeys(nothing)}.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    torch._C._cuda_clearCublasWorkspaces = torch.accelerator.set_device_index = lambda *args: None
    torch.accelerator.is_available, torch.accelerator.current_device_index = (lambda: True), (lambda: 0)
    torch.Generator, Tensor.is_pinned, Tensor.pin_memory = Generator, lambda self, *args: getattr(self, "pinned", False), pinned_copy
    torch.cuda.Stream, torch.cuda.current_stream, torch.cuda.stream = Stream, Stream, nullcontext
    Tensor.record_stream = lambda self, stream: None
    believe_in_attention()
    for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
        importlib.import_module(module)._foreach_supported_types.append(PretendTensor)


class Stream:
    """Whatever is put on a stream is done at once; `torch.cuda.stream(...)` changes nothing."""

    def __init__(self, *args: Any) -> None: ...
    def record_event(self) -> None: ...
    def wait_event(self, event: None) -> None: ...

    def synchronize(self) -> None:
        phases[at_hand[-1]].waits[f"{where()} synchronize"] += 1


def pinned_copy(tensor: Tensor, *args: Any) -> Tensor:
    copied = tensor.clone()
    copied.pinned = True
    return copied


def believe_in_attention() -> None:
    """scaled_dot_product_attention chooses by device before any mode sees it: choose what CUDA chooses."""
    usual, fused = torch._C._nn.scaled_dot_product_attention, torch.ops.aten._scaled_dot_product_efficient_attention

    def chosen(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **named):
        if not isinstance(query, PretendTensor):
            return usual(query, key, value, attn_mask, dropout_p, is_causal, **named)
        return fused(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=named.get("scale"))[0]

    nn.functional.scaled_dot_product_attention = chosen


# Phases -----------------------------------------------------------------------------------------------------------


@contextmanager
def phase(name: str) -> Iterator[Counts]:
    """Count under `name` what happens inside."""
    at_hand.append(name)
    try:
        yield phases[name]
    finally:
        at_hand.pop()


def counted(inner: Callable, name: str, units: Callable[..., int]) -> Callable:
    """The function `inner` as (a part of) the phase `name`; `units` says of a call's arguments how many units it is."""
    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        phases[name].calls += 1
        phases[name].units += units(*args, **kwargs)
        with phase(name):
            return inner(*args, **kwargs)
    return call


def counted_epoch(inner: Callable) -> Callable:
    """stage1.train_epoch: its steps are the phase "stage 1", the sums after the last one "end of epoch"."""
    def steps(batches: Iterable) -> Iterator:
        for batch in batches:
            phases["stage 1"].units += 1
            yield batch
        phases["end of epoch"].calls += 1
        at_hand[-1] = "end of epoch"

    @functools.wraps(inner)
    def call(learner: Any, module: nn.Module, optimizer: Any, batches: Iterable, *rest: Any, **named: Any) -> Any:
        phases["stage 1"].calls += 1
        with phase("stage 1"):
            return inner(learner, module, optimizer, steps(batches), *rest, **named)
    return call


def counted_batches(inner: Callable) -> Callable:
    """check_stop of models/evaluation.py, which is called once per batch of an extraction."""
    def call() -> None:
        phases["extraction"].units += 1
        inner()
    return call


def instrument() -> None:
    """Count by phase what the functions of PHASES do."""
    wrappers = {"models.stage1.train_epoch": counted_epoch, "models.evaluation.check_stop": counted_batches,
                **{path: functools.partial(counted, name=name, units=units) for name, (units, *paths) in PHASES.items() for path in paths}}
    for path, wrapper in wrappers.items():
        *places, last = path.split(".")
        owner = importlib.import_module(".".join(part for part in places if part.islower()))
        for part in places:
            owner = owner if part.islower() else getattr(owner, part)
        setattr(owner, last, wrapper(getattr(owner, last)))


@contextmanager
def pretended_device() -> Iterator[None]:
    """A pretended device inside; torch and the project stay changed afterwards, but outside nothing is counted."""
    believe()
    instrument()
    with Mode():
        yield


def reset() -> None:
    """Forget what was counted."""
    phases.clear()
    errors.clear()


def summary() -> str:
    """One paragraph per phase: figures per unit, then the commonest waits and copies to the device."""
    lines = []
    for name, c in phases.items():
        n = c.units or c.calls or 1
        lines.append(f"{name:17} {c.calls:4} calls {c.units:5} units, a unit: {c.launches / n:7.1f} launches {c.waits.total() / n:7.2f} "
                     f"waits  H2D {c.h2d_bytes / n / 1e3:8.1f} KB  D2H {c.d2h_bytes / n / 1e3:8.1f} KB  {c.fp64.total() / n:6.1f} in "
                     "float64")
        lines += [f"      {kind} {times} x {what}" for kind, table in (("wait", +c.waits), ("H2D", c.h2d))
                  for what, times in table.most_common(8)]
    step = phases["stage 1"]
    n = max(step.units, 1)
    return "\n".join([*lines, *errors[:20], f"device errors: {len(errors)}, waits per step: {step.waits.total() / n:.2f}, launches per "
                      f"step: {step.launches / n:.1f}, H2D per step: {step.h2d_bytes / n / 1e3:.1f} KB"])


def main() -> int:
    sys.path[0] = ROOT  # where the project is, in place of this file's folder, whose packages have the same names
    reason = unsupported()
    if reason is not None:
        print(reason)
        return 2
    try:
        with pretended_device():
            return importlib.import_module("main").main(sys.argv[1:]) or bool(errors)
    finally:
        print(summary())


if __name__ == "__main__":
    sys.exit(main())
