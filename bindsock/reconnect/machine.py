"""The life of a connection that is replaced when its path is lost: one table, without sockets, tasks or a clock.

The application holds one stable transport; beneath it is the *current* connection, and for some time the *new* one. What happens
is an :class:`Event`; :data:`TABLE` says what comes of it: the next state, and the actions for
:class:`~bindsock.reconnect.controller.Replacer` to take, in order. The rules behind the table:

1. What the application wrote goes either to the current connection or, from the cut on, to none until the hook has run on the new
   one. It never goes to both, and nothing goes to the current one after the cut.
2. Off a path that still works, the new connection is made before the old one is broken: the cut comes when it stands, and the old
   one is half-closed and drained. If it cannot be made, the old one was never touched.
3. Off a path that is dead the cut comes at once.
4. Whatever befalls the new connection before the hook is done, the replacement starts over. The deadline does not, so that it
   ends: in a live connection or one error.
5. Once either side has said all it has to say there is nothing to be continued, and nothing is replaced any more.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.Enum):
    """Where in its life a connection is."""

    LIVE = "live"
    DIALLING = "dialling"
    """The current connection works and is used, a better one is being dialled."""
    DRAINING = "draining"
    """The new connection stands; the current one is written to no more, but what is on its way from it is still received."""
    RECONNECTING = "reconnecting"
    """The current connection is dead; a new one is being dialled, or will be after a pause."""
    RESUMING = "resuming"
    """The application's hook runs on the new connection."""
    FINISHING = "finishing"
    """One side has said all it has to say. There will be no replacement."""
    CLOSED = "closed"


class Event(enum.Enum):
    """What can happen to it."""

    LOST = "lost"
    """The current connection cannot work any more, and another could."""
    BETTER = "better"
    """The current connection works, and a new one would leave by another interface."""
    STAYS = "stays"
    """The current connection is where a new one would be."""
    BROKE = "broke"
    """The current connection has ended with an error of the path: nobody answered, or nothing could be sent."""
    ENDED = "ended"
    """The current connection has ended for another reason, or without one."""
    FINISHED = "finished"
    """The peer has sent its end of file over the current connection."""
    USABLE = "usable"
    """The network has changed, and a connection could be made."""
    DIALLED = "dialled"
    """The new connection stands, TLS and all."""
    DIAL_FAILED = "dial failed"
    RETRY = "retry"
    """The pause after a failed dial is over."""
    DRAINED = "drained"
    """Nothing more will come from the current connection, or nothing more is waited for."""
    NEW_LOST = "new lost"
    """The new connection has ended, or cannot work any more."""
    RESUMED = "resumed"
    """The hook is done."""
    HOOK_FAILED = "hook failed"
    """The hook has raised."""
    EXPIRED = "expired"
    """The time for the replacement is over."""
    CLOSE = "close"
    """The application closes, and everything it wrote has been handed to the current connection, or will never be."""
    ABORT = "abort"


class Action(enum.Enum):
    """What is to be done."""

    CUT = "cut"
    """From now on, hold what the application writes."""
    DIAL = "dial"
    PAUSE = "pause"
    """Dial again after a pause, longer each time."""
    HURRY = "hurry"
    """End the pause, if there is one."""
    STOP_DIALLING = "stop dialling"
    """Forget the dial, or the pause, that is under way."""
    START_CLOCK = "start clock"
    """The time for the replacement begins to run, anew if it does already."""
    STOP_CLOCK = "stop clock"
    DRAIN = "drain"
    """Half-close the current connection, and receive what comes."""
    DROP = "drop"
    """Forget the current connection."""
    RUN_HOOK = "run hook"
    """Start the hook on the new connection."""
    STOP_HOOK = "stop hook"
    DROP_NEW = "drop new"
    GO_ON = "go on"
    """The new connection becomes the current one; send what was held."""
    LOOK = "look"
    """Compare with the newest reading of the network: what happened meanwhile raises no further event."""
    TELL_FINISHED = "tell finished"
    """Pass the peer's end of file on."""
    CLOSE = "close"
    """Let the current connection send what it has, and close it."""
    TELL_ENDED = "tell ended"
    """Tell the application how the current connection ended."""
    TELL_CLOSED = "tell closed"
    """Tell the application that its wish to close is fulfilled."""
    GIVE_UP = "give up"
    """Tell the application that the connection is lost, and why."""


Outcome = tuple[State, tuple[Action, ...]]

_S, _E, _A = State, Event, Action

_CLEAN_UP = {
    _S.LIVE: (),
    _S.DIALLING: (_A.STOP_CLOCK, _A.STOP_DIALLING),
    _S.DRAINING: (_A.STOP_CLOCK, _A.DROP_NEW),
    _S.RECONNECTING: (_A.STOP_CLOCK, _A.STOP_DIALLING),
    _S.RESUMING: (_A.STOP_CLOCK, _A.STOP_HOOK, _A.DROP_NEW),
    _S.FINISHING: (),
}
"""What is under way in each state, and must be ended with it."""


def _closed(state: State, *actions: Action) -> Outcome:
    return _S.CLOSED, (*_CLEAN_UP[state], _A.DROP, *actions)


_START_OVER: Outcome = (_S.RECONNECTING, (_A.STOP_HOOK, _A.DROP_NEW, _A.PAUSE))
_LOSE: Outcome = (_S.RECONNECTING, (_A.CUT, _A.START_CLOCK, _A.DIAL))
_LOSE_WHILE_DIALLING: Outcome = (_S.RECONNECTING, (_A.CUT, _A.START_CLOCK))
_SWITCH: Outcome = (_S.RESUMING, (_A.DROP, _A.RUN_HOOK))

_ROWS: dict[State, dict[Event, Outcome]] = {
    _S.LIVE: {
        _E.LOST: _LOSE,
        _E.BROKE: _LOSE,
        _E.BETTER: (_S.DIALLING, (_A.START_CLOCK, _A.DIAL)),
        _E.FINISHED: (_S.FINISHING, (_A.TELL_FINISHED,)),
        _E.ENDED: _closed(_S.LIVE, _A.TELL_ENDED),
        _E.CLOSE: (_S.FINISHING, (_A.CLOSE,)),
        _E.ABORT: _closed(_S.LIVE, _A.TELL_CLOSED),
    },
    _S.DIALLING: {
        # The dial goes on; it leads to wherever a connection can be made.
        _E.LOST: _LOSE_WHILE_DIALLING,
        _E.BROKE: _LOSE_WHILE_DIALLING,
        _E.STAYS: (_S.LIVE, _CLEAN_UP[_S.DIALLING]),
        _E.FINISHED: (_S.FINISHING, (*_CLEAN_UP[_S.DIALLING], _A.TELL_FINISHED)),
        _E.ENDED: _closed(_S.DIALLING, _A.TELL_ENDED),
        _E.DIALLED: (_S.DRAINING, (_A.CUT, _A.DRAIN)),
        _E.DIAL_FAILED: (_S.DIALLING, (_A.PAUSE,)),
        _E.RETRY: (_S.DIALLING, (_A.DIAL,)),
        # The current connection works. The next change of the network is another occasion.
        _E.EXPIRED: (_S.LIVE, _CLEAN_UP[_S.DIALLING]),
        _E.CLOSE: (_S.FINISHING, (*_CLEAN_UP[_S.DIALLING], _A.CLOSE)),
        _E.ABORT: _closed(_S.DIALLING, _A.TELL_CLOSED),
    },
    _S.DRAINING: {
        _E.LOST: _SWITCH,
        _E.BROKE: _SWITCH,
        _E.ENDED: _SWITCH,
        _E.FINISHED: _SWITCH,
        _E.DRAINED: _SWITCH,
        # The current connection is half-closed already: there is no way back to it.
        _E.NEW_LOST: (_S.RECONNECTING, (_A.DROP_NEW, _A.PAUSE)),
        _E.EXPIRED: _closed(_S.DRAINING, _A.GIVE_UP),
        _E.CLOSE: _closed(_S.DRAINING, _A.TELL_CLOSED),
        _E.ABORT: _closed(_S.DRAINING, _A.TELL_CLOSED),
    },
    _S.RECONNECTING: {
        _E.USABLE: (_S.RECONNECTING, (_A.HURRY,)),
        _E.DIALLED: _SWITCH,
        _E.DIAL_FAILED: (_S.RECONNECTING, (_A.PAUSE,)),
        _E.RETRY: (_S.RECONNECTING, (_A.DIAL,)),
        _E.EXPIRED: _closed(_S.RECONNECTING, _A.GIVE_UP),
        _E.CLOSE: _closed(_S.RECONNECTING, _A.TELL_CLOSED),
        _E.ABORT: _closed(_S.RECONNECTING, _A.TELL_CLOSED),
    },
    _S.RESUMING: {
        _E.RESUMED: (_S.LIVE, (_A.STOP_CLOCK, _A.GO_ON, _A.LOOK)),
        _E.HOOK_FAILED: _closed(_S.RESUMING, _A.GIVE_UP),
        _E.NEW_LOST: _START_OVER,
        _E.EXPIRED: _closed(_S.RESUMING, _A.GIVE_UP),
        _E.CLOSE: _closed(_S.RESUMING, _A.TELL_CLOSED),
        _E.ABORT: _closed(_S.RESUMING, _A.TELL_CLOSED),
    },
    _S.FINISHING: {
        _E.LOST: _closed(_S.FINISHING, _A.GIVE_UP),
        _E.BROKE: _closed(_S.FINISHING, _A.TELL_ENDED),
        _E.ENDED: _closed(_S.FINISHING, _A.TELL_ENDED),
        _E.FINISHED: (_S.FINISHING, (_A.TELL_FINISHED,)),
        _E.CLOSE: (_S.FINISHING, (_A.CLOSE,)),
        _E.ABORT: _closed(_S.FINISHING, _A.TELL_CLOSED),
    },
    _S.CLOSED: {},
}

TABLE: Mapping[tuple[State, Event], Outcome] = MappingProxyType(
    {(state, event): row.get(event, (state, ())) for state, row in _ROWS.items() for event in Event}
)
"""What comes of each event in each state. Most that is not listed above comes too late to matter, and changes nothing."""


class Machine:
    """One connection's way through the table."""

    def __init__(self) -> None:
        self.state = State.LIVE

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Take an event in.

        :return: what is to be done, in this order
        """
        self.state, actions = TABLE[self.state, event]
        return actions


def pause(failures: int, chance: float) -> float:
    """How long to wait before the next dial.

    :param failures: how many new connections have failed in a row
    :param chance: between 0 and 1, so that many who failed together do not come back together
    :return: seconds: none without a failure, 0.1 after the first, twice as long each time up to 5, less up to a half by chance
    """
    if failures == 0:
        return 0.0
    return float(min(0.1 * 2 ** min(failures - 1, 10), 5.0) * (1.0 - chance / 2))
