"""Pickles of plain values, read instruction by instruction, so that nothing in them can run."""

from __future__ import annotations

import pickletools
from typing import Any

from prdp.rewards.wire import VALUES
from prdp.rewards.wire_values import WireError, short

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_NUMBERS = ("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1")
_TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
_GIVEN = (*_NUMBERS, *_TEXTS)
"""Instructions whose argument is the value."""
_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT, _GET = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")


def plain_pickle(body: bytes) -> Any:
    """The value of a pickle of None, booleans, numbers, texts, bytes, lists, tuples and dicts of texts.

    Python's own reader is not asked. What is not known here, such as the instructions that name classes and call
    functions, is refused.

    Args:
        body: of protocol 2 or later.

    Raises:
        WireError: it holds more than plain values, or is no whole pickle.
    """
    try:
        return _value(body)
    except WireError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise WireError(f"the body is no whole pickle: {type(error).__name__}: {error}") from None


def _value(body: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for number, (instruction, argument, _) in enumerate(pickletools.genops(body)):
        name = instruction.name
        if number > VALUES:
            raise WireError(f"the pickle has more than {VALUES} instructions")
        if name in _GIVEN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "APPEND":
            item = stack.pop()
            _list(stack[-1]).append(item)
        elif name == "APPENDS":
            items = since_mark()
            _list(stack[-1]).extend(items)
        elif name in _SIZES:
            stack[-_SIZES[name] :] = [tuple(stack[-_SIZES[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "SETITEM":
            pair = [stack.pop(), stack.pop()][::-1]
            _set(stack[-1], pair)
        elif name == "SETITEMS":
            items = since_mark()
            _set(stack[-1], items)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _PUT:
            memo[int(str(argument))] = stack[-1]
        elif name in _GET:
            stack.append(memo[int(str(argument))])
        elif name == "STOP":
            [value] = stack
            return value
        elif name not in ("PROTO", "FRAME"):
            named = f" ({short(argument)})" if isinstance(argument, str) else ""
            raise WireError(
                f"the pickle holds {name}{named}, which is no plain value and may run code: the server has to send "
                "lists of Python's own numbers, as .tolist() gives them"
            )
    raise WireError("the body is no whole pickle: it has no end")


def _list(target: Any) -> list[Any]:
    if not isinstance(target, list):
        raise WireError(f"the pickle appends to {short(target)}")
    return target


def _set(target: Any, items: list[Any]) -> None:
    """Put keys and values, which take turns, into a dict."""
    if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
        raise WireError(f"the pickle sets {short(items[:1])} in {short(target)}, expected texts as keys of a dict")
    target.update(zip(items[::2], items[1::2], strict=True))
