"""The state machine of a connection that is replaced when its path is lost: one table, without sockets, tasks or a clock.

The program holds one stable transport. The transport has a *current* connection, and during a replacement also a *new* one. For
each :class:`Event`, :data:`TABLE` gives the next state and the actions, which
:class:`~bindsock.reconnect.controller.Controller` carries out in order. For example, if the program's hook raises
(:attr:`Event.HOOK_FAILED`), the connection is given up. The rules behind the table:

1. What the program writes goes to the current connection. From the *cut* on it is held until the hook has run on the new
   connection. It never goes to both, and nothing goes to the current connection after the cut.
2. If the current path works, the new connection is made first. The cut comes when it is ready, and the old connection is
   half-closed and drained. If no new connection can be made, the old one stays untouched.
3. If the current path is dead, the cut comes at once.
4. If the current path is stalled (no carrier, no route), the new connection is dialled at once. The cut comes when it is ready
   and the path is still stalled. If the path comes back first, the old connection stays untouched.
5. If the new connection fails before the hook is done, the replacement starts over. The deadline does not, so the replacement
   ends: with a live connection or with one error.
6. Once either side has sent its end of file, the connection is not replaced any more.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.Enum):
    """The state of a connection."""

    LIVE = "live"
    DIALLING = "dialling"
    """The current connection works and is used; a better one is being dialled."""
    STALLED = "stalled"
    """The current connection has no carrier or no route, and is still used; a new one is being dialled."""
    WAITING = "waiting"
    """The new connection is ready; the stalled path of the current one may still come back for a moment."""
    DRAINING = "draining"
    """The new connection is ready. Nothing more is written to the current one; data in flight from the peer is received."""
    RECONNECTING = "reconnecting"
    """The current connection is dead; a new one is being dialled, or will be dialled after a pause."""
    RESUMING = "resuming"
    """The program's hook runs on the new connection."""
    FINISHING = "finishing"
    """One side has sent its end of file, or the program has closed. The connection will not be replaced."""
    CLOSED = "closed"


class Event(enum.Enum):
    """An event in the life of a connection."""

    LOST = "lost"
    """The current connection cannot work any more, and another could be made."""
    BETTER = "better"
    """The current connection works, and a new one would leave by another interface."""
    STAYS = "stays"
    """The current connection works, and a new one would leave by the same interface."""
    STALLED = "stalled"
    """The current connection has no carrier or no route, and another could be made."""
    OVERDUE = "overdue"
    """The current connection has been stalled for the longest allowed time."""
    GRACE_OVER = "grace over"
    """The stalled path has not come back in time. The new connection is ready."""
    BROKE = "broke"
    """The current connection has ended with an error of its path: no answer, or nothing could be sent."""
    ENDED = "ended"
    """The current connection has ended for another reason."""
    FINISHED = "finished"
    """The peer has sent its end of file over the current connection."""
    USABLE = "usable"
    """The network has changed, and a connection could be made."""
    DIALLED = "dialled"
    """The new connection is ready, including its TLS handshake."""
    DIAL_FAILED = "dial failed"
    RETRY = "retry"
    """The pause after a failed dial is over."""
    DRAINED = "drained"
    """No more data arrives from the current connection, or draining has taken too long."""
    NEW_LOST = "new lost"
    """The new connection has ended, or cannot work any more."""
    RESUMED = "resumed"
    """The hook has returned."""
    HOOK_FAILED = "hook failed"
    """The hook has raised an error that is not the fault of the new connection."""
    EXPIRED = "expired"
    """The time for the replacement is over."""
    CLOSE = "close"
    """The program closes. All that it wrote has been passed to the current connection, or is discarded."""
    ABORT = "abort"
    """The program aborts."""


class Action(enum.Enum):
    """An action of the controller."""

    CUT = "cut"
    """Hold what the program writes, from now on."""
    DIAL = "dial"
    PAUSE = "pause"
    """Dial again after a pause, which grows each time."""
    END_PAUSE = "end pause"
    """End the pause, if there is one, and dial now."""
    STOP_DIALLING = "stop dialling"
    """Cancel the dial, or the pause."""
    START_CLOCK = "start clock"
    """Start the time limit for the replacement, or start it again."""
    STOP_CLOCK = "stop clock"
    WAIT_FOR_PATH = "wait for path"
    """Wait for the path of the current connection to come back, until its grace is over."""
    DRAIN = "drain"
    """Half-close the current connection, and receive the data in flight."""
    STOP_WAITING = "stop waiting"
    """Cancel WAIT_FOR_PATH or DRAIN."""
    DROP = "drop"
    """Drop the current connection."""
    RUN_HOOK = "run hook"
    """Start the hook on the new connection."""
    STOP_HOOK = "stop hook"
    DROP_NEW = "drop new"
    """Drop the new connection."""
    SWITCH = "switch"
    """Make the new connection the current one, and send what was held."""
    REFRESH = "refresh"
    """Process the newest reading of the network, because the events since then have passed already."""
    TELL_FINISHED = "tell finished"
    """Pass the peer's end of file to the program."""
    CLOSE = "close"
    """Let the current connection send its buffered data, and close it."""
    TELL_ENDED = "tell ended"
    """Tell the program how the current connection ended."""
    TELL_CLOSED = "tell closed"
    """Tell the program that the connection is closed."""
    GIVE_UP = "give up"
    """Tell the program that the connection is lost, and why."""


Outcome = tuple[State, tuple[Action, ...]]

_S, _E, _A = State, Event, Action

_CLEAN_UP = {
    _S.LIVE: (),
    _S.DIALLING: (_A.STOP_CLOCK, _A.STOP_DIALLING),
    _S.STALLED: (_A.STOP_CLOCK, _A.STOP_DIALLING),
    _S.WAITING: (_A.STOP_CLOCK, _A.STOP_WAITING, _A.DROP_NEW),
    _S.DRAINING: (_A.STOP_CLOCK, _A.STOP_WAITING, _A.DROP_NEW),
    _S.RECONNECTING: (_A.STOP_CLOCK, _A.STOP_DIALLING),
    _S.RESUMING: (_A.STOP_CLOCK, _A.STOP_HOOK, _A.DROP_NEW),
    _S.FINISHING: (),
}
"""The actions that end what is in progress in each state."""


def _closed(state: State, *actions: Action) -> Outcome:
    return _S.CLOSED, (*_CLEAN_UP[state], _A.DROP, *actions)


_START_OVER: Outcome = (_S.RECONNECTING, (_A.STOP_HOOK, _A.DROP_NEW, _A.PAUSE))
_LOSE: Outcome = (_S.RECONNECTING, (_A.CUT, _A.START_CLOCK, _A.DIAL))
_LOSE_WHILE_DIALLING: Outcome = (_S.RECONNECTING, (_A.CUT, _A.START_CLOCK))
_SWITCH: Outcome = (_S.RESUMING, (_A.DROP, _A.RUN_HOOK))
_SWITCH_AFTER_DRAINING: Outcome = (_S.RESUMING, (_A.STOP_WAITING, _A.DROP, _A.RUN_HOOK))
_CUT_AND_SWITCH: Outcome = (_S.RESUMING, (_A.STOP_WAITING, _A.CUT, _A.DROP, _A.RUN_HOOK))

_ROWS: dict[State, dict[Event, Outcome]] = {
    _S.LIVE: {
        _E.LOST: _LOSE,
        _E.BROKE: _LOSE,
        _E.BETTER: (_S.DIALLING, (_A.START_CLOCK, _A.DIAL)),
        _E.STALLED: (_S.STALLED, (_A.START_CLOCK, _A.DIAL)),
        _E.FINISHED: (_S.FINISHING, (_A.TELL_FINISHED,)),
        _E.ENDED: _closed(_S.LIVE, _A.TELL_ENDED),
        _E.CLOSE: (_S.FINISHING, (_A.CLOSE,)),
        _E.ABORT: _closed(_S.LIVE, _A.TELL_CLOSED),
    },
    _S.DIALLING: {
        # The dial goes on, to whatever interface is effective.
        _E.LOST: _LOSE_WHILE_DIALLING,
        _E.BROKE: _LOSE_WHILE_DIALLING,
        _E.STALLED: (_S.STALLED, ()),
        _E.STAYS: (_S.LIVE, _CLEAN_UP[_S.DIALLING]),
        _E.FINISHED: (_S.FINISHING, (*_CLEAN_UP[_S.DIALLING], _A.TELL_FINISHED)),
        _E.ENDED: _closed(_S.DIALLING, _A.TELL_ENDED),
        _E.DIALLED: (_S.DRAINING, (_A.CUT, _A.DRAIN)),
        _E.DIAL_FAILED: (_S.DIALLING, (_A.PAUSE,)),
        _E.RETRY: (_S.DIALLING, (_A.DIAL,)),
        # The current connection works. The next change of the network starts another attempt.
        _E.EXPIRED: (_S.LIVE, _CLEAN_UP[_S.DIALLING]),
        _E.CLOSE: (_S.FINISHING, (*_CLEAN_UP[_S.DIALLING], _A.CLOSE)),
        _E.ABORT: _closed(_S.DIALLING, _A.TELL_CLOSED),
    },
    _S.STALLED: {
        _E.LOST: _LOSE_WHILE_DIALLING,
        _E.BROKE: _LOSE_WHILE_DIALLING,
        _E.STAYS: (_S.LIVE, _CLEAN_UP[_S.STALLED]),
        _E.BETTER: (_S.DIALLING, ()),
        _E.FINISHED: (_S.FINISHING, (*_CLEAN_UP[_S.STALLED], _A.TELL_FINISHED)),
        _E.ENDED: _closed(_S.STALLED, _A.TELL_ENDED),
        _E.DIALLED: (_S.WAITING, (_A.WAIT_FOR_PATH,)),
        _E.DIAL_FAILED: (_S.STALLED, (_A.PAUSE,)),
        _E.RETRY: (_S.STALLED, (_A.DIAL,)),
        _E.EXPIRED: _closed(_S.STALLED, _A.GIVE_UP),
        _E.CLOSE: (_S.FINISHING, (*_CLEAN_UP[_S.STALLED], _A.CLOSE)),
        _E.ABORT: _closed(_S.STALLED, _A.TELL_CLOSED),
    },
    _S.WAITING: {
        _E.LOST: _CUT_AND_SWITCH,
        _E.BROKE: _CUT_AND_SWITCH,
        _E.GRACE_OVER: _CUT_AND_SWITCH,
        _E.STALLED: (_S.WAITING, (_A.WAIT_FOR_PATH,)),
        _E.EXPIRED: _closed(_S.WAITING, _A.GIVE_UP),
        _E.STAYS: (_S.LIVE, _CLEAN_UP[_S.WAITING]),
        _E.BETTER: (_S.DRAINING, (_A.STOP_WAITING, _A.CUT, _A.DRAIN)),
        _E.FINISHED: (_S.FINISHING, (*_CLEAN_UP[_S.WAITING], _A.TELL_FINISHED)),
        _E.ENDED: _closed(_S.WAITING, _A.TELL_ENDED),
        _E.NEW_LOST: (_S.STALLED, (_A.STOP_WAITING, _A.DROP_NEW, _A.PAUSE)),
        _E.CLOSE: (_S.FINISHING, (*_CLEAN_UP[_S.WAITING], _A.CLOSE)),
        _E.ABORT: _closed(_S.WAITING, _A.TELL_CLOSED),
    },
    _S.DRAINING: {
        _E.LOST: _SWITCH_AFTER_DRAINING,
        _E.BROKE: _SWITCH_AFTER_DRAINING,
        _E.ENDED: _SWITCH_AFTER_DRAINING,
        _E.FINISHED: _SWITCH_AFTER_DRAINING,
        _E.DRAINED: _SWITCH_AFTER_DRAINING,
        # The current connection is half-closed already, so it cannot be used again.
        _E.NEW_LOST: (_S.RECONNECTING, (_A.STOP_WAITING, _A.DROP_NEW, _A.PAUSE)),
        _E.EXPIRED: _closed(_S.DRAINING, _A.GIVE_UP),
        _E.CLOSE: _closed(_S.DRAINING, _A.TELL_CLOSED),
        _E.ABORT: _closed(_S.DRAINING, _A.TELL_CLOSED),
    },
    _S.RECONNECTING: {
        _E.USABLE: (_S.RECONNECTING, (_A.END_PAUSE,)),
        _E.DIALLED: _SWITCH,
        _E.DIAL_FAILED: (_S.RECONNECTING, (_A.PAUSE,)),
        _E.RETRY: (_S.RECONNECTING, (_A.DIAL,)),
        _E.EXPIRED: _closed(_S.RECONNECTING, _A.GIVE_UP),
        _E.CLOSE: _closed(_S.RECONNECTING, _A.TELL_CLOSED),
        _E.ABORT: _closed(_S.RECONNECTING, _A.TELL_CLOSED),
    },
    _S.RESUMING: {
        _E.RESUMED: (_S.LIVE, (_A.STOP_CLOCK, _A.SWITCH, _A.REFRESH)),
        _E.HOOK_FAILED: _closed(_S.RESUMING, _A.GIVE_UP),
        _E.NEW_LOST: _START_OVER,
        _E.EXPIRED: _closed(_S.RESUMING, _A.GIVE_UP),
        _E.CLOSE: _closed(_S.RESUMING, _A.TELL_CLOSED),
        _E.ABORT: _closed(_S.RESUMING, _A.TELL_CLOSED),
    },
    _S.FINISHING: {
        _E.LOST: _closed(_S.FINISHING, _A.GIVE_UP),
        _E.OVERDUE: _closed(_S.FINISHING, _A.GIVE_UP),
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
"""The next state and the actions for each event in each state. An event that is not listed above comes too late and is
ignored."""


class Machine:
    """The state of one connection."""

    def __init__(self) -> None:
        self.state: State = State.LIVE

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Process an event.

        :return: the actions, in order
        """
        self.state, actions = TABLE[self.state, event]
        return actions
