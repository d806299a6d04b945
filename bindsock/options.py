"""The keywords of the functions that make connections: defaults and checks. Misspelled keywords are refused here.

The functions spell out their keywords, so that ``help()`` shows them; a test compares their defaults with those here. The
keywords of a call become one frozen value, :class:`ConnectOptions` or :class:`DatagramOptions`, which is passed on unchanged.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import operator
import socket
import ssl as ssl_module
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, cast, get_args

F = TypeVar("F", bound=Callable[..., Any])
K = ParamSpec("K")
V = TypeVar("V")

BetterPath: TypeAlias = Literal["auto", "keep", "abort"]
"""What to do with a working stream when the effective interface has changed: see ``TransportFactory``."""

CONNECT_TIMEOUT = 20.0
"""Seconds within which an address must answer. TCP sends five SYNs in that time (Linux: after 0, 1, 3, 7 and 15 s)."""
DRAIN_TIMEOUT = 1.0
"""Seconds to wait for data in flight on the old connection when it is replaced."""
LONGEST_DEAD_AFTER = 65534.0
"""The kernel probes an idle connection after half of the time, and waits at most 32,767 s before (linux ``include/net/tcp.h``,
MAX_TCP_KEEPIDLE)."""
RECONNECT_TIMEOUT = 30.0
"""Seconds after which bindsock gives up replacing a connection."""
LIMIT = 2**16
"""The buffer limit of a stream reader in bytes, as in asyncio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectOptions:
    """The keywords of ``loop.create_connection``, and bindsock's own.

    :raises TypeError: a value has the wrong type
    :raises ValueError: a value is not one of the choices or out of range, or two keywords contradict each other
    """

    ssl: ssl_module.SSLContext | bool | None = None
    family: int = 0
    proto: int = 0
    flags: int = 0
    sock: socket.socket | None = None
    local_addr: tuple[str, int] | None = None
    server_hostname: str | None = None
    ssl_handshake_timeout: float | None = None
    ssl_shutdown_timeout: float | None = None
    happy_eyeballs_delay: float | None = None
    interleave: int | None = None
    all_errors: bool = False
    interface: str | None = None
    better_path: BetterPath | None = None
    connect_timeout: float | None = CONNECT_TIMEOUT
    dead_after: float | None = None
    multipath: bool = False
    drain_timeout: float = DRAIN_TIMEOUT
    reconnect_timeout: float | None = RECONNECT_TIMEOUT

    def __post_init__(self) -> None:
        # One of these is made for each connection. Default values need no check.
        if self.interface is not None:
            check_interface(self.interface)
        if self.better_path is not None:
            check_better_path(self.better_path)
        if self.connect_timeout is not CONNECT_TIMEOUT:
            _check_seconds("connect_timeout", self.connect_timeout)
        if self.dead_after is not None:
            _check_seconds("dead_after", self.dead_after)
            if self.dead_after > LONGEST_DEAD_AFTER:
                raise ValueError(f"dead_after must be at most {LONGEST_DEAD_AFTER:g} seconds, not {self.dead_after!r}")
        if self.drain_timeout is not DRAIN_TIMEOUT:
            _check_seconds("drain_timeout", self.drain_timeout, zero=True)
        if self.reconnect_timeout is not RECONNECT_TIMEOUT:
            _check_seconds("reconnect_timeout", self.reconnect_timeout)
        _check_flag("multipath", self.multipath)
        if self.drain_timeout is None:
            raise TypeError("drain_timeout must be a number of seconds, not None")
        if self.sock is not None and self.connect_timeout != CONNECT_TIMEOUT:
            raise ValueError("connect_timeout cannot be given with sock=: the socket is connected already")
        if self.local_addr is not None:
            _check_address("local_addr", self.local_addr)
        if self.interleave is not None and not isinstance(self.interleave, int):
            raise TypeError(f"interleave must be a number of addresses, not {self.interleave!r}")
        if self.happy_eyeballs_delay is not None:
            _check_seconds("happy_eyeballs_delay", self.happy_eyeballs_delay, zero=True)
        if self.sock is not None and self.sock.type != socket.SOCK_STREAM:
            raise ValueError(f"sock must be a stream socket, not {self.sock!r}")
        if self.sock is not None and self.multipath:
            raise ValueError("multipath=True cannot be given with sock=: a connected socket cannot become multipath")

    @property
    def concerns_replacement(self) -> bool:
        """Whether a keyword is set that only applies to connections that are replaced."""
        return self.drain_timeout != DRAIN_TIMEOUT or self.reconnect_timeout != RECONNECT_TIMEOUT

    def tls(self, host: str | None) -> dict[str, Any]:
        """The TLS keywords, checked and completed as ``loop.create_connection`` does.

        :param host: the name that the server's certificate is checked against, unless ``server_hostname`` is given
        :raises ValueError: a TLS keyword is given without ``ssl``, or there is no name to check the certificate against
        """
        given: dict[str, Any] = {}
        if self.server_hostname is not None:
            given["server_hostname"] = self.server_hostname
        if self.ssl_handshake_timeout is not None:
            given["ssl_handshake_timeout"] = self.ssl_handshake_timeout
        if self.ssl_shutdown_timeout is not None:
            given["ssl_shutdown_timeout"] = self.ssl_shutdown_timeout
        if not self.ssl:
            for name in given:
                raise ValueError(f"{name} is only meaningful with ssl")
            return {}
        if "server_hostname" not in given:
            if not host:
                raise ValueError("You must set server_hostname when using ssl without a host")
            given["server_hostname"] = host
        return {"ssl": self.ssl, **given}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramOptions:
    """The keywords of ``loop.create_datagram_endpoint``, and bindsock's own.

    :raises TypeError: a value has the wrong type
    :raises ValueError: ``interface`` is empty
    """

    family: int = 0
    proto: int = 0
    flags: int = 0
    reuse_port: bool | None = None
    allow_broadcast: bool | None = None
    sock: socket.socket | None = None
    interface: str | None = None

    def __post_init__(self) -> None:
        check_interface(self.interface)


def check_factory(
    interface: object, better_path: object, resolver: object, repair_routes: object, *, resolver_by_name: bool = True
) -> None:
    """Check the keywords that all factories have.

    :param resolver_by_name: whether ``"interface"`` is one of the choices for the resolver
    :raises TypeError: a value is of another type
    :raises ValueError: a value is not one of the choices
    """
    check_interface(interface)
    check_better_path(better_path)
    _check_resolver(resolver, by_name=resolver_by_name)
    _check_flag("repair_routes", repair_routes)


def check_interface(interface: object) -> None:
    """Check the name of the only interface to use.

    :raises TypeError: it is neither a string nor ``None``
    :raises ValueError: it is empty
    """
    if interface is not None and not isinstance(interface, str):
        raise TypeError(f"interface must be the name of an interface, not {interface!r}")
    if interface == "":
        raise ValueError("interface must be the name of an interface, not an empty string")


def check_better_path(choice: object) -> None:
    """Check a value of ``better_path``.

    :raises ValueError: it is not one of the choices
    """
    choices = get_args(BetterPath)
    if choice not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"better_path must be {', '.join(others)} or {last}, not {choice!r}")


def _check_resolver(resolver: object, *, by_name: bool) -> None:
    """Check what is to resolve names.

    :param by_name: whether ``"interface"`` is one of the choices
    :raises TypeError: it is no resolver
    :raises ValueError: it is another name
    """
    choices = "'interface' or a resolver" if by_name else "a resolver"
    if isinstance(resolver, str) and not (by_name and resolver == "interface"):
        raise ValueError(f"resolver must be {choices}, not {resolver!r}")
    if not (resolver is None or isinstance(resolver, str) or callable(resolver) or hasattr(resolver, "on")):
        raise TypeError(f"resolver must be {choices}, not {resolver!r}")


def _check_flag(name: str, value: object) -> None:
    if value is not False and value is not True:
        raise TypeError(f"{name} must be True or False, not {value!r}")


def _check_seconds(name: str, value: object, *, zero: bool = False) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if math.isnan(value) or not (value > 0 or (zero and value == 0)):
        raise ValueError(f"{name} must be a {'non-negative' if zero else 'positive'} number of seconds, not {value!r}")


def _check_address(name: str, value: object) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of a host and a port, not {value!r}")


def check_hook(hook: object, *parameters: str) -> None:
    """Check a value of ``on_reconnect``, which is only called when the first connection is lost.

    :param parameters: the names of what the hook is called with
    :raises TypeError: it cannot be called with them
    """
    wanted = f"on_reconnect must be a coroutine function with the parameters {', '.join(parameters)}"
    if not callable(hook):
        raise TypeError(f"{wanted}, not {hook!r}")
    try:
        signature = inspect.signature(hook)
    except Exception:  # noqa: BLE001 - some functions do not tell, and Python 3.14 evaluates annotations, which may fail
        return
    try:
        signature.bind(*parameters)
    except TypeError as error:
        raise TypeError(f"{wanted}: {error}") from None


def buffer_limits(high: int | None, low: int | None, default: int) -> tuple[int, int]:
    """The high and the low water mark of a write buffer, as ``set_write_buffer_limits()`` of asyncio completes them.

    :param default: the high water mark if neither is given
    :raises ValueError: the low one is above the high one, or negative
    """
    if high is None:
        high = default if low is None else 4 * low
    if low is None:
        low = high // 4
    if not high >= low >= 0:
        raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
    return high, low


def known_keywords_only(function: F) -> F:
    """Decorate a function so that an unknown keyword raises a :class:`TypeError` that names the nearest known keyword.

    :param function: a function that spells out its keywords
    """
    return _refuse_others(function, _keywords(function))


def known_keywords_of(*originals: Callable[..., Any], also: Iterable[str] = ()) -> Callable[[F], F]:
    """Like :func:`known_keywords_only`, for a function that hands ``**options`` on: the keywords of the originals are known, too.

    :param originals: the functions that get the options
    :param also: further keywords that they take, but do not spell out
    """
    return lambda function: _refuse_others(function, _keywords(function).union(also, *map(_keywords, originals)))


def _keywords(function: Callable[..., Any]) -> frozenset[str]:
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "self")


def _refuse_others(function: F, known: frozenset[str]) -> F:
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not known.issuperset(kwargs):
            unknown = next(name for name in kwargs if name not in known)
            raise TypeError(unknown_keyword(function.__qualname__, unknown, known))
        return function(*args, **kwargs)

    if inspect.iscoroutinefunction(function) and hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(checked)
    return cast("F", checked)


def unknown_keyword(function: str, unknown: str, known: frozenset[str]) -> str:
    """The error message for an unknown keyword.

    :param function: the qualified name of the function
    :param unknown: the keyword that was given
    :param known: the keywords of the function
    """
    message = f"{function}() got an unexpected keyword argument {unknown!r}"
    nearest = difflib.get_close_matches(unknown, sorted(known), n=1, cutoff=0.5)
    return f"{message}; did you mean {nearest[0]!r}?" if nearest else message


def _share_defaults(kind: Callable[K, V], *defaults: object) -> Callable[K, V]:
    """Make a function that makes values of a class. All calls with only default values return the same object.

    :param kind: the class
    :param defaults: the default values, in the order of the keywords in the calls
    """
    shared = kind()  # type: ignore[call-arg]

    def make(*args: K.args, **kwargs: K.kwargs) -> V:
        if len(kwargs) == len(defaults) and all(map(operator.is_, kwargs.values(), defaults)):
            return shared
        return kind(*args, **kwargs)

    return make


connect_options: Callable[..., ConnectOptions] = _share_defaults(
    ConnectOptions, *(field.default for field in dataclasses.fields(ConnectOptions))
)
"""Makes :class:`ConnectOptions`, for each connection."""
datagram_options: Callable[..., DatagramOptions] = _share_defaults(
    DatagramOptions, *(field.default for field in dataclasses.fields(DatagramOptions))
)
"""Makes :class:`DatagramOptions`, for each endpoint."""
