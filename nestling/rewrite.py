"""Rewritten methods: for code that holds sizes as literal numbers.

Where a module's own code says `x.view(-1, 400)`, no attribute can be set. In a subnet such a module
keeps its class, its weights, its parts, its hooks and its state; only the method is another one:
the same code with other constants. Nothing is traced or written anew, so whatever else the code
does (branches, modes, random numbers, errors with their lines) it still does. A file holds no code:
it says which number of which method follows which axes, and what the number is in the full net.
"""

from __future__ import annotations

import copy
import dis
import inspect
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from nestling import extent as extents
from nestling.errors import ModelError
from nestling.extent import Counts, Extent

CONSTANT, SMALL, WIDE = "LOAD_CONST", "LOAD_SMALL_INT", "EXTENDED_ARG"  # of Python's byte code


@dataclass(frozen=True, slots=True)
class Edit:
    """A literal number that follows axes.

    Attributes:
        method: name of the method whose code holds it.
        number: which of the whole numbers in that code it is, in the order of the code.
        extent: what the number is.
    """

    method: str
    number: int
    extent: Extent


@dataclass(frozen=True)
class Rewrite:
    """The literals of one module's own code that follow axes.

    Attributes:
        module: its path.
        edits: which numbers follow which axes.
    """

    module: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Literal:
    """A whole number in a method's code.

    Attributes:
        value: the number.
        instruction: the instruction that loads it.
        way: where it stands in the constant that is loaded: places in tuples, ends of slices.
    """

    value: int
    instruction: dis.Instruction
    way: tuple[int | str, ...]


class Method:
    """A method of one module whose code has other numbers; it can be copied and pickled.

    Args:
        module: whose method it is.
        name: of the method of its class.
        numbers: which number of the code has which value.
    """

    def __init__(self, module: nn.Module, name: str, numbers: Mapping[int, int]) -> None:
        self._bind(module, name, dict(numbers))

    def _bind(self, module: nn.Module, name: str, numbers: dict[int, int]) -> None:
        function = method_of(type(module), name)
        assert function is not None
        self.module = weakref.ref(module)  # the module holds this: a cycle would keep both
        self.numbers = numbers
        self.__func__ = _with_numbers(function, numbers)
        self.__name__ = name
        self.__code__ = self.__func__.__code__  # what torch.export looks at
        self.__signature__ = inspect.signature(function.__get__(module))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the code on the module."""
        return self.__func__(self.module(), *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Method:
        module = copy.deepcopy(self.module(), memo)
        assert module is not None  # it holds this
        return Method(module, self.__name__, self.numbers)

    def __getstate__(self) -> Any:
        return self.module(), self.__name__, self.numbers

    def __setstate__(self, state: Any) -> None:
        self._bind(*state)


def rewrite(twin: nn.Module, given: Rewrite, counts: Counts) -> None:
    """Give a subnet's module methods whose literals follow a spec.

    Args:
        twin: the module of the subnet.
        given: which literals follow which axes.
        counts: kept units by axis name.

    Raises:
        ModelError: the module's code is another one than when the supernet was made.
    """
    check(twin, given)
    methods: dict[str, dict[int, int]] = {}
    for edit in given.edits:
        value = extents.count(edit.extent, counts)
        methods.setdefault(edit.method, {})[edit.number] = value
    for name, numbers in methods.items():
        twin.__dict__[name] = Method(twin, name, numbers)


def check(module: nn.Module, given: Rewrite) -> None:
    """Check that a module's code holds the numbers that a rewrite changes.

    Raises:
        ModelError: it does not.
    """
    for edit in given.edits:
        function = method_of(type(module), edit.method)
        found = [] if function is None or edit.method in vars(module) else literals(function)
        if edit.number >= len(found) or found[edit.number].value != edit.extent.size:
            raise ModelError(
                f"the code of {given.module or 'the model'} ({type(module).__name__}."
                f"{edit.method}) is not the one that the supernet was made from: the number "
                f"{edit.extent.size}, which follows an axis, is not where it was; use the same "
                "code, or make the supernet again"
            )


def method_of(kind: type, name: str) -> FunctionType | None:
    """Return the plain function behind a method of a module's class; None if there is none.

    A decorated method is another function than its own code, and torch's methods are no one's own.
    """
    found = inspect.getattr_static(kind, name, None)
    if not isinstance(found, FunctionType) or hasattr(found, "__wrapped__"):
        return None
    return None if inspect.getattr_static(nn.Module, name, None) is found else found


def literals(function: FunctionType) -> list[Literal]:
    """Return the whole numbers in a function's own code, in the order of the code."""
    found = []
    for each in dis.get_instructions(function.__code__):
        if each.opname in (CONSTANT, SMALL):
            found += [Literal(value, each, way) for way, value in _inside(each.argval, ())]
    return found


def _inside(value: Any, way: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], int]]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield way, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _inside(item, (*way, index))
    elif isinstance(value, slice):  # a constant since Python 3.14
        yield from _inside(value.start, (*way, "start"))
        yield from _inside(value.stop, (*way, "stop"))


def _with_numbers(function: FunctionType, numbers: Mapping[int, int]) -> FunctionType:
    """Return a function of the same code but for some of its numbers."""
    found = literals(function)
    loads: dict[int, tuple[dis.Instruction, Any]] = {}
    for number, value in numbers.items():
        literal = found[number]
        offset = literal.instruction.offset
        known = loads.get(offset, (literal.instruction, literal.instruction.argval))
        loads[offset] = literal.instruction, _put(known[1], literal.way, value)
    code = function.__code__
    for instruction, constant in loads.values():
        code = _loading(code, instruction, constant)
    twin = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__dict__.update(function.__dict__)
    return twin


def _loading(code: CodeType, instruction: dis.Instruction, constant: Any) -> CodeType:
    """Return the code with another constant loaded by an instruction."""
    place = len(code.co_consts)
    high, low = divmod(place, 256)
    raw = bytearray(code.co_code)
    at = instruction.offset
    wide = at >= 2 and raw[at - 2] == dis.opmap[WIDE]
    if high and not wide:
        raise ModelError(
            f"{code.co_qualname} holds more than 256 constants, so that a number of its code "
            "cannot be changed; split the method, or read sizes from tensors"
        )
    raw[at], raw[at + 1] = dis.opmap[CONSTANT], low
    if wide:
        raw[at - 1] = high
    return code.replace(co_code=bytes(raw), co_consts=(*code.co_consts, constant))


def _put(value: Any, way: Sequence[int | str], number: int) -> Any:
    if not way:
        return number
    key, rest = way[0], way[1:]
    if isinstance(value, slice):
        ends = {"start": value.start, "stop": value.stop, str(key): number}
        return slice(ends["start"], ends["stop"], value.step)
    items = list(value)
    items[int(key)] = _put(items[int(key)], rest, number)
    return tuple(items)
