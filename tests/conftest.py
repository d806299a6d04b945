"""Every asynchronous test runs on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import hypothesis
import pytest
import uvloop

from bindsock.testing.lab import LabUnavailable, available, enter_user_namespace
from bindsock.testing.lab._child import shared_helper
from bindsock.testing.lab.fixtures import lab

__all__ = ["lab"]

with contextlib.suppress(LabUnavailable):
    enter_user_namespace()  # for users who are not root; only a process with a single thread can do it


# The duration of an example depends on the machine, not on the code.
_EXAMPLES = {} if os.access(".", os.W_OK) else {"database": None}
hypothesis.settings.register_profile(
    "bindsock", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], **_EXAMPLES
)
hypothesis.settings.load_profile("bindsock")

_IGNORES_INTERRUPTS = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C end the programs that tests start, even if the tests themselves ignore it.

    A command in a shell's background (``nohup make test &``) ignores SIGINT, and its child processes inherit that. A signal with
    a handler is reset to its default in a new program (``execve(2)``), so the tests ignore SIGINT by a handler.
    """
    inherited: dict[str, bool] = getattr(config, "workerinput", {})  # from the main process of pytest-xdist
    ignores = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    config.stash[_IGNORES_INTERRUPTS] = ignores or inherited.get("ignores_interrupts", False)
    if config.stash[_IGNORES_INTERRUPTS]:
        signal.signal(signal.SIGINT, lambda number, frame: None)


def pytest_collection_finish() -> None:
    """Keep garbage collections short: hundreds of tests collect, and need not look at all modules and test items again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["ignores_interrupts"] = node.config.stash[_IGNORES_INTERRUPTS]


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.stash.get(_IGNORES_INTERRUPTS, False):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class Uvloop(uvloop.Loop):
    """A uvloop that tells of handles that are still open once it has closed them.

    A warning that is an error stops uvloop from closing the handle, for which it then waits for ever
    (``uvloop/handles/handle.pyx``, __uv_walk_close_all_handles_cb).
    """

    def close(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().close()
        for warning in caught:
            warnings.warn(warning.message, stacklevel=2)


LoopFactory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]
LOOP_FACTORIES: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": Uvloop}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--eager-tasks", action="store_true", help="test with asyncio.eager_task_factory (Python 3.12)")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    if config.getoption("--eager-tasks"):
        return {name: functools.partial(_eager, factory) for name, factory in LOOP_FACTORIES.items()}
    return LOOP_FACTORIES


def _eager(factory: LoopFactory) -> asyncio.AbstractEventLoop:
    loop = factory()
    eager: Any = asyncio.eager_task_factory  # type: ignore[attr-defined]
    loop.set_task_factory(eager)
    return loop


@pytest.fixture(params=LOOP_FACTORIES)
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    """The loop factory for tests that run their own loop."""
    return LOOP_FACTORIES[request.param]


@pytest.fixture(scope="session", autouse=True)
def lab_processes() -> Iterator[None]:
    """Build a laboratory in two thirds of the time, more than a thousand times."""
    if available() is not None:
        yield
        return
    with shared_helper():
        yield


@pytest.fixture
def vpn() -> None:
    """Skip the test, with the reason, if the laboratory cannot have a VPN."""
    if (reason := available(vpn=True)) is not None:
        pytest.skip(reason)


@pytest.fixture
def descriptors() -> Any:
    """Fail the test if it leaves descriptors open."""
    # The first uvloop in a process opens two descriptors that stay open (libuv src/unix/signal.c, uv__signal_global_init).
    uvloop.new_event_loop().close()
    gc.collect()
    before = set(os.listdir("/dev/fd"))
    yield
    gc.collect()
    after = set(os.listdir("/dev/fd"))
    assert after - before == set() or len(after) <= len(before)
