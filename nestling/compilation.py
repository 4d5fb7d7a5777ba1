"""Compilation: the passes of a training step through `torch.compile`, once for every spec.

A subnet's parameters are slices of the shared weights, and the compiler takes them as they are:
strides and all. Their gradients come out of the compiled backward pass as those of an ordinary net
do, so the hooks that put them into the shared gradients run as ever. What the compiler must not see
are the hooks before a forward pass, which look at version counters: they run before it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from nestling import batch as batches
from nestling.binding import Hook, binding
from nestling.errors import FileError, ModelError, brief
from nestling.skeleton import Hooks

INDUCTOR = "inductor"  # the backend of torch.compile that makes code of its own
# Specs that are compiled in one stage: each takes from seconds to a minute. More than the list that
# a search leaves to train (79 for ResNet-20), so that it is only reached by random draws.
MOST = 128
SINGLE = "alone"  # the key of a module that a stage trains by itself

Key: TypeAlias = "tuple[tuple[str, int], ...] | str"


def backend_of(compile: bool | str) -> str:
    """Return the backend that `compile=` asks for; "" for none.

    Args:
        compile: whether to compile, or the name of a backend of `torch.compile`.

    Raises:
        ModelError: there is no such backend.
    """
    if isinstance(compile, bool):
        return INDUCTOR if compile else ""
    if not isinstance(compile, str):
        raise ModelError(
            f"compile= is True, False or the name of a torch.compile backend, not {compile!r}"
        )
    known = torch.compiler.list_backends(exclude_tags=())
    if compile not in known:
        raise ModelError(
            f"compile= is True, False or a torch.compile backend, not {compile!r}; choose one of "
            f"{', '.join(sorted(known))}"
        )
    return compile


def check_compiler(backend: str, device: torch.device) -> None:
    """Check that the compiler works here, on a sum of two numbers.

    Raises:
        ModelError: it does not, mostly because there is no C++ compiler.
    """
    try:
        plus_one = torch.compile(fresh("check", _plus_one), dynamic=False, backend=backend)
        plus_one(torch.zeros(1, device=device))
    except Exception as error:
        raise ModelError(
            f"compile= needs a compiler that works here, but {backend!r} fails on {device}: "
            f"{_reason(error)}; install a C++ compiler such as g++ (for a GPU also Triton), or "
            "leave compile= out"
        ) from error


class Compilation:
    """The compiled passes of one stage of a training.

    Every spec is compiled when it is first run, as one graph without breaks, for the shape of the
    stage's first batch. Other shapes, such as a last smaller batch, and what is neither a subnet
    nor trained alone run eagerly; so does all, once something could not be compiled. Which of it
    happens depends on the order of specs alone, which a checkpoint keeps (`state`).

    Args:
        backend: of `torch.compile`; "" compiles nothing.
        say: shows a line of text; called once for each reason to run eagerly.
        alone: the module that the stage trains by itself, if it does.
        apart: makes the context of each pass that is new, forward and backward: those compile, and
            their time is to be told from that of the others.

    Example:
        >>> run = Compilation("inductor", print)
        >>> outputs = run(net.pooled(spec), images)
    """

    def __init__(
        self,
        backend: str,
        say: Callable[[str], None],
        alone: nn.Module | None = None,
        apart: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.backend = backend
        self.alone = alone
        self._say = say
        self._apart = apart
        self._new = False  # whether the last pass was the first of its spec
        self._said: set[str] = set()
        self._shape = ""  # of the batches that are compiled for
        self._specs: list[Key] = []  # those that are compiled, in the order in which they came
        self._passes: dict[Key, Callable[..., Any]] = {}
        self._failure = ""  # why nothing is compiled any more

    def __call__(self, module: nn.Module, inputs: Any) -> Any:
        """Run a module on the inputs of a batch, compiled where that can be."""
        key = self._key(module, inputs)
        self._new = key is not None and key not in self._passes
        if key is None:
            return batches.forward(module, inputs)
        try:
            with self._around():
                return _run(self._passes.get(key) or self._compiled(key), module, inputs)
        except Exception as error:  # noqa: BLE001  (the compiler runs the user's code)
            outputs = batches.forward(module, inputs)  # what is wrong with the inputs shows here
            self._failure = _reason(error)
            self._eagerly("the training", self._failure)
            return outputs

    def backward(self, loss: torch.Tensor) -> None:
        """Run a loss of the last pass backward; the first time, this compiles too."""
        with self._around():
            loss.backward()  # type: ignore[no-untyped-call]
        self._new = False

    def _around(self) -> AbstractContextManager[None]:
        return self._apart() if self._new else nullcontext()

    def _compiled(self, key: Key) -> Callable[..., Any]:
        """Return the pass of a spec, which is compiled at its first call."""
        self._once(
            "compiling the passes of a step, which takes a while for each subnet that is new"
        )
        made = torch.compile(
            fresh(f"pass_{len(self._passes)}", _call),
            fullgraph=True,
            dynamic=False,
            backend=self.backend,
        )
        self._passes[key] = made
        return made

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed stage must know to compile the same, as JSON values."""
        return {"shape": self._shape, "specs": self._specs, "failure": self._failure}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the stage that had this state.

        Raises:
            FileError: it is none.
        """
        try:
            self._shape, self._failure = str(state["shape"]), str(state["failure"])
            self._specs = [
                spec if isinstance(spec, str) else tuple((name, count) for name, count in spec)
                for spec in state["specs"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(
                f"the checkpoint does not say what is compiled ({error!r:.80}); start the training "
                "anew"
            ) from error
        if self._failure:
            self._eagerly("the training", self._failure)

    def _key(self, module: nn.Module, inputs: Any) -> Key | None:
        """Return under which name a module is compiled; None if it runs eagerly, which is said."""
        if self._failure or not self.backend:
            return None
        tie = binding(module)
        if tie is None and module is not self.alone:
            kind = type(module).__name__
            self._eagerly(kind, "only subnets are compiled, and nets that train alone")
            return None
        shape = batches.shapes(inputs)
        self._shape = self._shape or shape
        if shape != self._shape:
            self._eagerly(
                f"a batch of {shape}", f"steps are compiled for the first batch, of {self._shape}"
            )
            return None
        key: Key = SINGLE if tie is None else tuple(sorted(tie.counts.items()))
        if key not in self._specs:
            if len(self._specs) >= MOST:
                self._eagerly(
                    "every further spec", f"{MOST} are compiled, and the objective draws more"
                )
                return None
            self._specs.append(key)
        return key

    def _eagerly(self, what: str, why: str) -> None:
        """Say, once for each reason, that something runs eagerly."""
        self._once(f"{what} runs eagerly, not compiled: {why}", why)

    def _once(self, text: str, about: str = "") -> None:
        if about not in self._said:
            self._said.add(about)
            self._say(text)


def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


def _reason(error: Exception) -> str:
    """Return in a line why something could not be compiled."""
    inner = getattr(error, "inner_exception", None)  # the backend's own, behind a long text
    return brief(inner if isinstance(inner, Exception) else error)


def _plus_one(number: torch.Tensor) -> torch.Tensor:
    return number + 1


def fresh(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with code of its own; what it closes over is shared.

    The compiler keeps what it has compiled with the code object, tries all of it in turn, and gives
    up, silently, after eight. All specs run the same code, so each gets a copy.
    """
    code = function.__code__.replace(co_name=name)
    closure = getattr(function, "__closure__", None)
    return types.FunctionType(code, function.__globals__, name, None, closure)


def _run(compiled: Callable[..., Any], module: nn.Module, inputs: Any) -> Any:
    with _without_hooks(module):
        return batches.forward(functools.partial(compiled, module), inputs)


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Run the hooks of ours that stand before a subnet's forward pass, then the block without any.

    The subnet's own hooks look after all of it: they fill every gathered copy, and refuse a subnet
    that is out of date. Those of its parts are for parts that are run by themselves.
    """
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, Hook):
            hook(module)
    tie = binding(module)
    gathered = tie is not None and any(tie.gathers())
    parts = module.modules() if gathered else (module,)
    found = [(part, part._forward_pre_hooks) for part in parts if part._forward_pre_hooks]
    try:
        for part, hooks in found:
            others = {key: hook for key, hook in hooks.items() if not isinstance(hook, Hook)}
            part.__dict__["_forward_pre_hooks"] = Hooks(others)
        yield
    finally:
        for part, hooks in found:
            part.__dict__["_forward_pre_hooks"] = hooks
