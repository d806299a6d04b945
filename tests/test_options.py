"""Every keyword is in the signature, is checked once, and is never ignored."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import importlib
import inspect
import pkgutil
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import anyio
import pytest
import trio
import uvloop

import bindsock
import bindsock.anyio
import bindsock.blocking
import bindsock.integrations
from bindsock.integrations import aiodns, aiohttp, aioquic, grpc, httpx
from bindsock.options import ConnectOptions, DatagramOptions, check_hook, connect_options, unknown_keyword
from bindsock.testing import SimulatedKernel, network

BoundUvloop = bindsock.loop_factory(uvloop.Loop)

OWN = {
    "interface",
    "better_path",
    "connect_timeout",
    "dead_after",
    "multipath",
    "drain_timeout",
    "reconnect_timeout",
    "on_reconnect",
    "limit",
    "all_errors",  # the standard library's since 3.12
    "local_port",  # anyio's since 4.14
}

STANDARD = [
    (bindsock.create_connection, asyncio.BaseEventLoop.create_connection),
    (bindsock.TransportFactory.create_connection, asyncio.BaseEventLoop.create_connection),
    (bindsock.EventLoop.create_connection, asyncio.BaseEventLoop.create_connection),
    (bindsock.open_connection, asyncio.BaseEventLoop.create_connection),
    (bindsock.open_connection, asyncio.open_connection),
    (bindsock.TransportFactory.open_connection, asyncio.open_connection),
    (bindsock.create_datagram_endpoint, asyncio.BaseEventLoop.create_datagram_endpoint),
    (bindsock.TransportFactory.create_datagram_endpoint, asyncio.BaseEventLoop.create_datagram_endpoint),
    (bindsock.EventLoop.create_datagram_endpoint, asyncio.BaseEventLoop.create_datagram_endpoint),
    (bindsock.EventLoop.start_tls, asyncio.BaseEventLoop.start_tls),
    (bindsock.EventLoop.sendfile, asyncio.BaseEventLoop.sendfile),
    (bindsock.EventLoop.getaddrinfo, asyncio.BaseEventLoop.getaddrinfo),
    (bindsock.EventLoop.sock_connect, asyncio.SelectorEventLoop.sock_connect),
    (bindsock.EventLoop.sock_sendto, asyncio.SelectorEventLoop.sock_sendto),
    (bindsock.anyio.connect_tcp, anyio.connect_tcp),
    (bindsock.anyio.create_udp_socket, anyio.create_udp_socket),
    (bindsock.anyio.create_connected_udp_socket, anyio.create_connected_udp_socket),
]
IGNORED = {"self", "protocol_factory", "kwds"}


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(function).parameters.items() if name not in IGNORED}


@pytest.mark.parametrize(("ours", "standard"), STANDARD, ids=lambda f: f"{f.__module__}.{f.__qualname__}")
def test_a_wrapped_function_has_each_keyword_of_the_original_with_its_default(
    ours: Callable[..., Any], standard: Callable[..., Any]
) -> None:
    mine = parameters(ours)
    for name, parameter in parameters(standard).items():
        assert name in mine, f"{standard.__qualname__} of this release has {name}="
        if (standard, name) not in OTHER_DEFAULTS:
            assert mine[name].default == parameter.default, name
    if standard is not asyncio.open_connection and ours is not bindsock.open_connection:
        assert mine.keys() - parameters(standard).keys() <= OWN


OTHER_DEFAULTS = {
    (asyncio.open_connection, "limit"),  # bindsock has it under another name
}


def test_the_readers_limit_is_asyncios() -> None:
    default = inspect.signature(asyncio.open_connection).parameters["limit"].default
    assert inspect.signature(bindsock.open_connection).parameters["limit"].default == default


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (bindsock.create_connection, ConnectOptions),
        (bindsock.open_connection, ConnectOptions),
        (bindsock.TransportFactory.create_connection, ConnectOptions),
        (bindsock.TransportFactory.open_connection, ConnectOptions),
        (bindsock.EventLoop.create_connection, ConnectOptions),
        (bindsock.create_datagram_endpoint, DatagramOptions),
        (bindsock.TransportFactory.create_datagram_endpoint, DatagramOptions),
    ],
)
def test_signatures_show_every_keyword_with_the_default_of_the_options(function: Callable[..., Any], options: type) -> None:
    shown = parameters(function)
    for field in dataclasses.fields(options):
        assert shown[field.name].default == field.default, field.name
        assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("function", [bindsock.open_connection, bindsock.connect, bindsock.create_datagram_endpoint])
def test_module_functions_are_documented_as_the_factorys_methods(function: Callable[..., Any]) -> None:
    method = getattr(bindsock.TransportFactory, function.__name__)
    assert inspect.getdoc(function) == inspect.getdoc(method)
    assert "self" not in inspect.signature(function).parameters
    assert inspect.signature(function).parameters.keys() == inspect.signature(method).parameters.keys() - {"self"}


def factory() -> bindsock.TransportFactory:
    return bindsock.TransportFactory(kernel=SimulatedKernel(network()))


UNUSED = cast("socket.socket", None)

MISSPELLED: list[tuple[str, Callable[[], Any], str | None]] = [
    ("open_connection", lambda: bindsock.open_connection("127.0.0.1", 1, interfase="eth0"), "interface"),  # type: ignore[call-arg]
    ("create_connection", lambda: bindsock.create_connection(asyncio.Protocol, "127.0.0.1", 1, better_pat="keep"), "better_path"),  # type: ignore[call-arg]
    ("connect", lambda: bindsock.connect("127.0.0.1", 1, dead_afer=1), "dead_after"),  # type: ignore[call-arg]
    ("create_datagram_endpoint", lambda: bindsock.create_datagram_endpoint(asyncio.DatagramProtocol, iface="eth0"), "interface"),  # type: ignore[call-arg]
    ("track", lambda: bindsock.track(UNUSED, bettter_path="keep"), "better_path"),  # type: ignore[call-arg]
    ("bind", lambda: bindsock.bind(UNUSED, interfce="eth0"), "interface"),  # type: ignore[call-arg]
    ("effective_interface", lambda: bindsock.effective_interface(preference=None), "preferences"),  # type: ignore[call-arg]
    ("explain", lambda: bindsock.explain("192.0.2.1", interfase="eth0"), "interface"),  # type: ignore[call-arg]
    ("TransportFactory", lambda: bindsock.TransportFactory(interfaces="eth0"), "interface"),  # type: ignore[call-arg]
    ("factory.open_connection", lambda: factory().open_connection("127.0.0.1", 1, interfase="eth0"), "interface"),  # type: ignore[call-arg]
    ("factory.connect", lambda: factory().connect("127.0.0.1", 1, multi_path=True), "multipath"),  # type: ignore[call-arg]
    ("loop_factory", lambda: bindsock.loop_factory(kernal=None), "kernel"),  # type: ignore[call-arg]
    ("Preferences", lambda: bindsock.Preferences(exlude=["docker*"]), "exclude"),  # type: ignore[call-arg]
    ("anyio.connect_tcp", lambda: bindsock.anyio.connect_tcp("127.0.0.1", 1, interfase="eth0"), "interface"),  # type: ignore[call-overload]
    ("anyio.create_udp_socket", lambda: bindsock.anyio.create_udp_socket(interfase="eth0"), "interface"),  # type: ignore[call-arg]
    (
        "anyio.create_connected_udp_socket",
        lambda: bindsock.anyio.create_connected_udp_socket("127.0.0.1", 1, local_hst="127.0.0.1"),  # type: ignore[call-arg]
        "local_host",
    ),
    ("anyio.TransportFactory", lambda: bindsock.anyio.TransportFactory(resolve=None), "resolver"),  # type: ignore[call-arg]
    ("blocking.create_connection", lambda: bindsock.blocking.create_connection(("127.0.0.1", 1), interfase="eth0"), "interface"),  # type: ignore[call-arg]
    ("blocking.BlockingConnector", lambda: bindsock.blocking.BlockingConnector(dead_afer=1), "dead_after"),  # type: ignore[call-arg]
    ("BlockingConnector.connect", lambda: bindsock.blocking.BlockingConnector().connect(UNUSED, None, conect=None), "connect"),  # type: ignore[call-arg]
    ("aioquic.connect", lambda: aioquic.connect("127.0.0.1", 1, configuraton=None), "configuration"),  # type: ignore[call-arg]
    ("grpc.insecure_channel", lambda: grpc.insecure_channel("127.0.0.1:1", factry=None), "factory"),  # type: ignore[call-arg]
    ("httpx.AsyncTransport", lambda: httpx.AsyncTransport(retrys=1), "retries"),  # type: ignore[call-arg]
    ("nothing like it", lambda: bindsock.open_connection("127.0.0.1", 1, qqqqqq=1), None),  # type: ignore[call-arg]
]


def check_misspelled(call: Callable[[], Any], meant: str | None) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument") as caught:
        call()
    suggestion = f"did you mean {meant!r}?" if meant is not None else ""
    assert str(caught.value).endswith(suggestion)
    assert ("did you mean" in str(caught.value)) == (meant is not None)


@pytest.mark.parametrize(("call", "meant"), [m[1:] for m in MISSPELLED], ids=[m[0] for m in MISSPELLED])
def test_a_misspelled_keyword_is_refused_with_the_nearest_known_one(call: Callable[[], Any], meant: str | None) -> None:
    check_misspelled(call, meant)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("call", "meant"), [m[1:] for m in MISSPELLED], ids=[m[0] for m in MISSPELLED])
def test_a_misspelled_keyword_is_refused_inside_a_run(call: Callable[[], Any], meant: str | None, backend: str) -> None:
    async def main() -> None:
        check_misspelled(call, meant)

    if backend == "trio":
        trio.run(main)
    else:
        asyncio.run(main())


PUBLIC = ["bindsock", "bindsock.anyio", "bindsock.blocking", "bindsock.proxy", "bindsock.resolvers", "bindsock.testing"]
PUBLIC += [f"bindsock.integrations.{m.name}" for m in pkgutil.iter_modules(bindsock.integrations.__path__)]
CONFIGURABLE = {"TransportFactory", "BlockingConnector", "Proxy", "EventLoop"}
"""The classes whose methods are called with keywords, too."""
MADE_BY_BINDSOCK = {"Adoption", "Changes", "DatagramTransport", "Installation", "Interface", "InterfaceAddress", "Statistics"}
"""Classes whose objects a program gets from bindsock."""


def public_callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function and constructor that takes options, and such methods of what makes connections."""
    for module in map(importlib.import_module, PUBLIC):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        for name in getattr(module, "__all__", [n for n in own if not n.startswith("_")]):
            value = getattr(module, name)
            if inspect.isroutine(value):
                yield f"{module.__name__}.{name}", value
            elif isinstance(value, type) and name not in MADE_BY_BINDSOCK and not is_value(value):
                constructor = inspect.getattr_static(value, "__init__")
                if getattr(constructor, "__module__", "").startswith("bindsock"):
                    yield f"{module.__name__}.{name}", constructor
                if name in CONFIGURABLE:
                    yield from ((f"{module.__name__}.{name}.{n}", method) for n, method in methods(value))


def methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods of a class, but for those of its bases in other packages."""
    for base in cls.__mro__:
        if base.__module__.startswith("bindsock"):
            yield from ((n, v) for n, v in vars(base).items() if inspect.isfunction(v) and not n.startswith("_"))


def is_value(cls: type) -> bool:
    """Whether a class is a value without checks, an error or a protocol: it has no options."""
    plain = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen and not hasattr(cls, "__post_init__")  # type: ignore[attr-defined]
    return plain or issubclass(cls, BaseException | enum.Enum) or getattr(cls, "_is_protocol", False)


def options_of(function: Callable[..., Any]) -> list[str]:
    """The keywords that may be left out."""
    return [
        p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY or p.default is not p.empty
    ]


CALLABLES = dict(public_callables())


@pytest.mark.parametrize("name", [name for name, function in CALLABLES.items() if options_of(function)])
def test_no_public_function_ignores_a_misspelled_keyword(name: str) -> None:
    function = CALLABLES[name]
    keyword = options_of(function)[-1]
    wrong = f"{keyword[:-1]}x{keyword[-1]}"
    required = [
        p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty
    ]
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{wrong}'") as caught:
        function(*[None for _ in required], **{wrong: None})
    assert name.startswith("bindsock.EventLoop.") or str(caught.value).endswith(f"did you mean {keyword!r}?")


def test_every_way_to_make_a_connection_is_among_the_public_functions() -> None:
    assert {
        f"bindsock.{n}" for n in ("open_connection", "connect", "track", "TransportFactory.track", "loop_factory")
    } <= CALLABLES.keys()
    assert {"bindsock.anyio.connect_tcp", "bindsock.anyio.TransportFactory.create_udp_socket"} <= CALLABLES.keys()
    assert {
        "bindsock.blocking.create_connection",
        "bindsock.integrations.paho.Client",
        "bindsock.proxy.Proxy",
    } <= CALLABLES.keys()


@pytest.mark.parametrize("loop_class", [bindsock.EventLoop, BoundUvloop])
def test_an_event_loop_refuses_an_unknown_keyword_as_the_plain_one_does(
    loop_class: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
            await asyncio.open_connection("127.0.0.1", 1, nonsense=1)
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
            await loop.create_connection(asyncio.Protocol, "127.0.0.1", 1, nonsense=1)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
            await loop.create_datagram_endpoint(asyncio.DatagramProtocol, nonsense=1)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
            await loop.start_tls(None, None, None, nonsense=1)  # type: ignore[arg-type,call-arg]

    with asyncio.Runner(loop_factory=loop_class) as runner:
        runner.run(main())


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"better_path": "abrot"}, ValueError, "better_path must be 'auto', 'keep' or 'abort', not 'abrot'"),
    ({"dead_after": 0}, ValueError, "dead_after must be a positive number of seconds, not 0"),
    ({"dead_after": "1"}, TypeError, "dead_after must be a number of seconds, not '1'"),
    ({"dead_after": True}, TypeError, "dead_after must be a number of seconds, not True"),
    ({"dead_after": float("nan")}, ValueError, "dead_after must be a positive number of seconds, not nan"),
    ({"dead_after": 65535}, ValueError, "dead_after must be at most 65534 seconds, not 65535"),
    ({"local_addr": "192.0.2.9"}, TypeError, "local_addr must be a pair of a host and a port, not '192.0.2.9'"),
    ({"local_addr": ("192.0.2.9",)}, TypeError, "local_addr must be a pair of a host and a port, not ('192.0.2.9',)"),
    ({"interleave": "1"}, TypeError, "interleave must be a number of addresses, not '1'"),
    ({"happy_eyeballs_delay": "1"}, TypeError, "happy_eyeballs_delay must be a number of seconds, not '1'"),
    ({"drain_timeout": -1}, ValueError, "drain_timeout must be a non-negative number of seconds, not -1"),
    ({"drain_timeout": None}, TypeError, "drain_timeout must be a number of seconds, not None"),
    ({"reconnect_timeout": 0}, ValueError, "reconnect_timeout must be a positive number of seconds, not 0"),
    ({"multipath": "yes"}, TypeError, "multipath must be True or False, not 'yes'"),
    ({"interface": 2}, TypeError, "interface must be the name of an interface, not 2"),
    ({"interface": ""}, ValueError, "interface must be the name of an interface, not an empty string"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
async def test_a_wrong_value_is_refused_before_anything_is_dialled(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    kernel = SimulatedKernel(network())
    for call in (
        bindsock.TransportFactory(kernel=kernel).open_connection,
        bindsock.TransportFactory(kernel=kernel).create_connection,
    ):
        arguments = (asyncio.Protocol, "192.0.2.1", 1) if call.__name__ == "create_connection" else ("192.0.2.1", 1)
        with pytest.raises(error) as caught:
            await call(*arguments, **options)
        assert str(caught.value) == message
    assert kernel.readings == 0


@pytest.mark.parametrize("make", [bindsock.TransportFactory, bindsock.anyio.TransportFactory, bindsock.loop_factory])
def test_a_factorys_own_choices_are_checked(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="better_path must be"):
        make(better_path="abrot")
    with pytest.raises(TypeError, match="interface must be"):
        make(interface=3)
    with pytest.raises(ValueError, match=r"resolver must be .*a resolver, not 'interfaces'"):
        make(resolver="interfaces")
    with pytest.raises(TypeError, match=r"resolver must be .*a resolver, not 3"):
        make(resolver=3)
    with pytest.raises(TypeError, match=r"preferences must be a bindsock.Preferences, not 'wifi0'"):
        make(preferences="wifi0")


@pytest.mark.parametrize("make", [bindsock.TransportFactory, bindsock.anyio.TransportFactory, bindsock.loop_factory])
def test_what_is_on_or_off_is_nothing_else(make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="repair_routes must be True or False, not 'no'"):
        make(repair_routes="no")


def test_preferences_of_another_type_are_refused() -> None:
    wrong: Any = {"exclude": ["wwan*"]}
    with pytest.raises(TypeError, match="preferences must be"):
        bindsock.explain("192.0.2.1", preferences=wrong)
    with pytest.raises(TypeError, match="preferences must be"):
        bindsock.blocking.create_connection(("192.0.2.1", 1), preferences=wrong)
    with pytest.raises(TypeError, match="preferences must be"):
        bindsock.run.install(preferences=wrong)


def test_a_resolver_of_asyncio_is_refused_for_trio() -> None:
    with pytest.raises(ValueError, match="resolver must be a resolver, not 'interface'"):
        bindsock.anyio.TransportFactory(resolver="interface")  # type: ignore[arg-type]


async def test_what_only_counts_for_replaced_connections_is_not_ignored_elsewhere() -> None:
    with pytest.raises(ValueError, match="drain_timeout and reconnect_timeout need on_reconnect"):
        await factory().open_connection("192.0.2.1", 1, drain_timeout=2.0)
    with pytest.raises(ValueError, match="cannot be connected anew"), socket.socket() as sock:

        async def on_reconnect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None: ...

        await factory().open_connection(sock=sock, on_reconnect=on_reconnect)


async def reader_and_writer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...


async def one_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes, more: object) -> None: ...


@pytest.mark.parametrize("hook", [5, reader_and_writer, one_more])
async def test_a_hook_that_could_not_be_called_later_is_refused_at_once(hook: Any) -> None:
    kernel = SimulatedKernel(network())
    with pytest.raises(TypeError, match="on_reconnect must be a coroutine function with the parameters reader, writer, unread"):
        await bindsock.TransportFactory(kernel=kernel).open_connection("192.0.2.1", 1, on_reconnect=hook)
    assert kernel.readings == 0


class Secretive:
    """A hook whose signature cannot be found out, like that of a function whose annotations cannot be evaluated (3.14)."""

    @property
    def __signature__(self) -> inspect.Signature:
        raise NameError("name 'StreamReader' is not defined")

    async def __call__(self, reader: object, writer: object, unread: bytes) -> None: ...


def test_a_hook_that_does_not_tell_its_signature_is_accepted() -> None:
    check_hook(Secretive(), "reader", "writer", "unread")


async def test_a_hook_for_anyio_that_could_not_be_called_later_is_refused_at_once() -> None:
    async def stream_only(stream: object) -> None: ...

    wrong: Any = stream_only
    with pytest.raises(TypeError, match=r"on_reconnect must be .* the parameters stream, unread: too many positional"):
        await bindsock.anyio.connect_tcp("192.0.2.1", 1, on_reconnect=wrong)


async def test_a_datagram_socket_is_no_connection() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="sock must be a stream socket"):
        await factory().open_connection(sock=sock)


def test_what_is_no_event_loop_is_no_base_of_one() -> None:
    wrong: Any = "uvloop"
    with pytest.raises(TypeError, match=r"base must be the class of an event loop, such as uvloop.Loop, not 'uvloop'"):
        bindsock.loop_factory(wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda factory: aiohttp.TCPConnector(factory=factory),
        lambda factory: httpx.NetworkBackend(factory),
        lambda factory: aiodns.DNSResolver(factory=factory),
        lambda factory: grpc.insecure_channel("192.0.2.1:1", factory=factory),
    ],
    ids=["aiohttp", "httpx", "aiodns", "grpc"],
)
async def test_what_is_no_factory_is_refused_by_the_integrations(make: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"factory must be a bindsock.*TransportFactory, not 'wifi0'"):
        make("wifi0")


async def test_a_connected_socket_cannot_become_multipath() -> None:
    with socket.socket() as sock, pytest.raises(ValueError, match="multipath=True cannot be given with sock="):
        await factory().open_connection(sock=sock, multipath=True)


@pytest.mark.parametrize("name", ["wifi0", "multipath"])
def test_the_nearest_keyword_is_only_named_when_it_is_near(name: str) -> None:
    known = frozenset({"multipath", "interface"})
    assert ("did you mean" in unknown_keyword("f", name, known)) == (name == "multipath")


def test_one_value_serves_all_calls_that_leave_everything_at_its_default() -> None:
    given: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(ConnectOptions)}
    assert connect_options(**given) is connect_options(**given)
    assert connect_options(**given) == ConnectOptions()
    assert connect_options(**{**given, "interface": "eth0"}) == ConnectOptions(interface="eth0")
    with pytest.raises(TypeError, match="multipath"):
        connect_options(**{**given, "multipath": 0})
