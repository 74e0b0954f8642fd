"""Finds plugins by name: rewards, objectives, proposals, tasks and metrics.

Knows: modules, files, entry points of installed packages, and their faults. Must not know: what a plugin does.
A name is looked up in this order: built in; `package.module:function`; `path/to/file.py:function`; an entry point of the
group `rl_warmup.rewards` (`.objectives`, `.proposals`, `.tasks`, `.metrics`) of any installed package.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

NOUNS = ("reward", "objective", "proposal", "task", "metric")
BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
OWN = "Own ones are named `package.module:function` or `path/to/file.py:function`."


class ProcessExit(Exception):
    """A plugin tried to end the process, by `sys.exit`, `os._exit` or the like."""


class _Ended(BaseException):
    """Raised instead of `os._exit` and `os.exec*`."""


_inside: ContextVar[bool] = ContextVar("inside a plugin", default=False)
# The exit code of the command that this process is: 2 until it has finished, None for any other program.
exit_code: int | None = None


@functools.cache
def _guard_exits() -> None:
    """Make `os._exit` and `os.exec*` raise where a plugin calls them.

    Forked child processes keep the real functions, as they end by `os._exit`. So does what a plugin left behind (a thread, an
    atexit handler, a finalizer, a signal handler), but it cannot end an unfinished or failed command with code 0: that would
    look like a finished run.
    """
    process, real_exit = os.getpid(), os._exit

    def guarded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def function(*args: Any, **kwargs: Any) -> Any:
            if os.getpid() != process:
                return real(*args, **kwargs)
            if _inside.get():
                raise _Ended(f"os.{name}")
            in_thread = threading.current_thread() is not threading.main_thread()
            code = exit_code or (2 if in_thread and exit_code is None else 0)
            if code and (real is not real_exit or not any((*args, *kwargs.values()))):
                print(f"rl-warmup: os.{name} was called before the run was finished: code {code}.", file=sys.stderr)
                return real_exit(code)
            return real(*args, **kwargs)

        return function

    for name in ("_exit", "execv", "execve"):
        function = guarded(name, getattr(os, name))
        for module in (os, sys.modules[os.name]):  # os has them from posix
            setattr(module, name, function)


@contextmanager
def contained(cancels: bool = True) -> Iterator[None]:
    """Run code of a plugin: an attempt to end the process becomes an ordinary Exception. Ctrl-C still interrupts.

    Args:
        cancels: whether asyncio's CancelledError counts; False if the caller may cancel the coroutine.

    Raises:
        ProcessExit: instead of SystemExit, a KeyboardInterrupt without Ctrl-C, and other BaseExceptions.
    """
    typed: list[int] = []

    def hear(number: int, frame: Any) -> None:
        typed.append(number)
        raise KeyboardInterrupt

    _guard_exits()
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    listens = main and handler is signal.default_int_handler
    deaf = handler is signal.SIG_IGN  # a background job: nobody can type
    if listens:
        signal.signal(signal.SIGINT, hear)
    before = _inside.set(True)
    folder = working_folder() if main else None  # other threads may end long after they were given up
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        cancelled = type(error).__name__ == "CancelledError" and not cancels
        interrupted = isinstance(error, KeyboardInterrupt) and (typed or (main and not listens and not deaf))
        if cancelled or interrupted or getattr(error, "of_rl_warmup", False):
            raise
        what = str(error) if isinstance(error, _Ended) else f"{type(error).__name__}({str(error)!s})"
        raise ProcessExit(f"it tried to end the process by {what}; let it return, or raise an error") from error
    finally:
        _inside.reset(before)
        return_to(folder)
        if listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def working_folder() -> str | None:
    """The working directory of the process, or None if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def return_to(folder: str | None) -> None:
    """Undo a plugin's change of the working directory: paths of the run are relative to it."""
    if folder and working_folder() != folder:
        os.chdir(folder)


def find_plugin(noun: str, name: str, built_in: Mapping[str, Any]) -> tuple[Any, str]:
    """The object of that name, and its short name for logs: after the colon, if there is one.

    Args:
        noun: one of NOUNS.
        name: see the module.
        built_in: name -> object.

    Raises:
        ValueError: nothing has that name, or it cannot be imported; with what was given, what exists, what to do.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"A {noun} is named by a text, and {name!r:.80} is none. Known are {', '.join(built_in)}. {OWN}"
        )
    if name in built_in:
        return built_in[name], name
    place, colon, attribute = name.rpartition(":")
    if colon and place and attribute:
        module = _file(noun, place, name) if place.endswith(".py") else _module(noun, place, name)
        if not hasattr(module, attribute):
            hint = nearest(attribute, [known for known in vars(module) if not known.startswith("__")])
            raise ValueError(f"The {noun} {name!r}: {place} has no {attribute!r}.{hint}")
        try:
            with contained():
                return getattr(module, attribute), attribute
        except ProcessExit as error:
            raise ValueError(f"The {noun} {name!r}: {place} cannot be read ({error}).") from error
    points = {point.name: point for point in entry_points(group=f"rl_warmup.{noun}s")}
    if name not in points:
        raise ValueError(no_such(noun, name, built_in))
    try:
        with contained():
            return points[name].load(), name
    except Exception as error:
        raise ValueError(
            f"The {noun} {name!r} is the entry point {points[name].value!r}, which fails to load "
            f"({type(error).__name__}: {error}). Repair or reinstall that package."
        ) from error


def no_such(noun: str, name: str, built_in: Iterable[str]) -> str:
    """The sentence for an unknown name."""
    known = list(dict.fromkeys([*built_in, *(point.name for point in entry_points(group=f"rl_warmup.{noun}s"))]))
    return f"There is no {noun} {name!r:.80}.{nearest(name, known)} Known are {', '.join(known)}. {OWN}"


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest known name; empty if none is near."""
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def build_plugin(
    noun: str, name: str, found: Any, kwargs: Mapping[str, Any] | None = None, offered: Iterable[str] = ()
) -> Any:
    """An instance of a class, or a function with its kwargs bound.

    Args:
        offered: names of the arguments of later calls. A function that takes none of them, and needs no others than kwargs,
            is a factory (such as TRL's `get_soft_overlong_punishment`): it is called.

    Raises:
        ValueError: not callable, an argument it does not take, or a class that cannot be made.
    """
    kwargs = dict(kwargs or {})
    if not callable(found):
        raise ValueError(f"The {noun} {name!r} is {found!r:.80}, which cannot be called; name a function or a class.")
    parameters = _check_kwargs(noun, name, found, kwargs)
    is_factory = False
    if parameters is not None and offered:
        free = [p for p in parameters if p.name not in kwargs]
        is_factory = all(p.kind not in VARIADIC and p.name not in offered and p.default is not p.empty for p in free)
    if inspect.isclass(found) or is_factory:
        return _made(noun, name, found, kwargs)
    return functools.partial(found, **kwargs) if kwargs else found


def code_hashes(names: Iterable[Any]) -> dict[str, str]:
    """Path or module -> hash of its file, for every `path/to/file.py:function` and `module:function` among the names (or
    mappings with a `name`). What these files import is not looked at."""
    found = {}
    for given in names:
        name = given.get("name") if isinstance(given, Mapping) else given
        named = name.rpartition(":")[0] if isinstance(name, str) else ""
        place = Path(named).expanduser()
        if place.suffix != ".py":
            place = Path(getattr(sys.modules.get(named), "__file__", None) or "")  # it is loaded already
        if place.is_file():
            found[str(Path(named).expanduser())] = hashlib.sha256(place.read_bytes()).hexdigest()[:16]
    return found


def spelled(given: Iterable[Any] | None) -> list[Any] | None:
    """Names, mappings and callables, in a form for files: callables by name."""
    if given is None:
        return None
    return [
        {key: short_name(value) if callable(value) else value for key, value in one.items()}
        if isinstance(one, Mapping)
        else short_name(one) if callable(one) else one
        for one in given
    ]  # fmt: skip


def short_name(function: Any) -> str:
    """The name of a callable for logs."""
    if isinstance(function, functools.partial):
        return short_name(function.func)
    return getattr(function, "__name__", type(function).__name__)


def _check_kwargs(noun: str, name: str, found: Any, kwargs: Mapping[str, Any]) -> list[inspect.Parameter] | None:
    """The parameters, or None if they are unknown."""
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except ValueError:  # some functions written in C have no signature
        return None
    named = [p.name for p in parameters if p.kind in BY_KEYWORD]
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        for key in kwargs:
            if key not in named:
                raise ValueError(
                    f"The {noun} {name!r} takes no argument {key!r}.{nearest(key, named)} It takes "
                    f"{', '.join(named) or 'none'}. Correct its `kwargs`."
                )
    return parameters


def _made(noun: str, name: str, found: Any, kwargs: Mapping[str, Any]) -> Any:
    try:
        with contained():
            return found(**kwargs)
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "none"
        cause = f"{type(error).__name__}: {error}"
        raise ValueError(f"The {noun} {name!r} cannot be made with the kwargs given ({given}): {cause}") from error


def _module(noun: str, place: str, name: str) -> ModuleType:
    try:
        with contained():
            return importlib.import_module(place)
    except Exception as error:
        raise ValueError(
            f"The {noun} {name!r}: the module {place!r} cannot be imported ({type(error).__name__}: {error}). Install it or "
            f"put it on PYTHONPATH; for a file give its path, `path/to/file.py:function`."
        ) from error


def _file(noun: str, place: str, name: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"The {noun} {name!r}: no file {path}. Give a path relative to the working directory.")
    # Several plugins may be in one file, so its module is made once.
    stamp = path.stat()
    module_name = f"rl_warmup_plugin_{path.stem}_{abs(hash((path, stamp.st_mtime_ns, stamp.st_size))):x}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # for dataclasses and pickle
    try:
        with contained():
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ValueError(f"The {noun} {name!r}: {path} fails to run ({type(error).__name__}: {error}).") from error
    return module
