"""The states of a replaceable connection, as a table."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsock.reconnect.machine import TABLE, Action, Event, Machine, State

A, E, S = Action, Event, State


def walk(*events: Event) -> tuple[State, list[Action]]:
    machine = Machine()
    done = [action for event in events for action in machine.feed(event)]
    return machine.state, done


def test_every_event_is_answered_in_every_state() -> None:
    assert set(TABLE) == set(itertools.product(State, Event))


def test_a_dead_path_is_cut_at_once() -> None:
    state, done = walk(E.LOST)
    assert state is S.RECONNECTING
    assert done.index(A.CUT) < done.index(A.DIAL)


def test_a_better_path_is_made_before_the_old_one_is_touched() -> None:
    state, done = walk(E.BETTER)
    assert (state, A.CUT in done) == (S.DIALLING, False)
    state, done = walk(E.BETTER, E.DIALLED)
    assert state is S.DRAINING
    assert done.index(A.DIAL) < done.index(A.CUT) < done.index(A.DRAIN)


@pytest.mark.parametrize("end", [E.STAYS, E.EXPIRED])
def test_a_better_path_that_comes_to_nothing_leaves_the_old_one_untouched(end: Event) -> None:
    state, done = walk(E.BETTER, E.DIAL_FAILED, E.RETRY, E.DIAL_FAILED, end)
    assert state is S.LIVE
    assert not {A.CUT, A.DRAIN, A.DROP, A.GIVE_UP} & set(done)
    assert done[-2:] == [A.STOP_CLOCK, A.STOP_DIALLING]


def test_the_whole_way() -> None:
    state, done = walk(E.BETTER, E.DIALLED, E.DRAINED, E.RESUMED)
    assert state is S.LIVE
    assert done == [A.START_CLOCK, A.DIAL, A.CUT, A.DRAIN, A.STOP_WAITING, A.DROP, A.RUN_HOOK, A.STOP_CLOCK, A.SWITCH, A.REFRESH]


def test_a_dial_that_is_under_way_when_the_old_path_dies_goes_on() -> None:
    state, done = walk(E.BETTER, E.LOST)
    assert (state, done.count(A.DIAL)) == (S.RECONNECTING, 1)
    assert A.CUT in done


@pytest.mark.parametrize("way", [(E.LOST, E.DIALLED), (E.BETTER, E.DIALLED), (E.BETTER, E.DIALLED, E.DRAINED)])
def test_a_second_change_during_a_replacement_starts_over(way: tuple[Event, ...]) -> None:
    machine = Machine()
    for event in way:
        machine.feed(event)
    done = machine.feed(E.NEW_LOST)
    assert machine.state is S.RECONNECTING
    assert A.DROP_NEW in done
    assert A.START_CLOCK not in done, "a replacement could be started over for ever"


@pytest.mark.parametrize("event", [E.FINISHED, E.CLOSE])
def test_nothing_is_replaced_once_one_side_has_finished(event: Event) -> None:
    assert walk(event, E.BETTER)[0] is S.FINISHING
    state, done = walk(event, E.LOST)
    assert state is S.CLOSED
    assert done[-1] is A.GIVE_UP


def test_a_hook_that_fails_ends_it() -> None:
    state, done = walk(E.LOST, E.DIALLED, E.HOOK_FAILED)
    assert state is S.CLOSED
    assert A.DROP_NEW in done
    assert done[-1] is A.GIVE_UP


def test_off_a_stalled_path_the_new_connection_is_made_before_the_old_one_is_touched() -> None:
    state, done = walk(E.STALLED)
    assert (state, done) == (S.STALLED, [A.START_CLOCK, A.DIAL])
    state, done = walk(E.STALLED, E.DIALLED)
    assert (state, done[-1]) == (S.WAITING, A.WAIT_FOR_PATH)
    state, done = walk(E.STALLED, E.DIALLED, E.GRACE_OVER)
    assert state is S.RESUMING
    assert done[-3:] == [A.CUT, A.DROP, A.RUN_HOOK], "nothing can be drained from it"


@pytest.mark.parametrize("way", [(E.STALLED,), (E.STALLED, E.DIAL_FAILED), (E.STALLED, E.DIALLED)])
def test_a_stalled_path_that_comes_back_first_costs_nothing(way: tuple[Event, ...]) -> None:
    state, done = walk(*way, E.STAYS)
    assert state is S.LIVE
    assert not {A.CUT, A.DRAIN, A.DROP, A.GIVE_UP, A.RUN_HOOK} & set(done)


def test_a_stalled_path_that_comes_back_as_the_worse_one_is_drained() -> None:
    state, done = walk(E.STALLED, E.DIALLED, E.BETTER)
    assert state is S.DRAINING
    assert done[-2:] == [A.CUT, A.DRAIN]


def test_what_cannot_be_replaced_any_more_ends_when_it_is_stalled_for_long() -> None:
    assert walk(E.CLOSE, E.STALLED)[0] is S.FINISHING
    assert walk(E.CLOSE, E.STALLED, E.OVERDUE)[1][-1] is A.GIVE_UP
    assert walk(E.STALLED, E.OVERDUE)[0] is S.STALLED


def test_a_new_network_ends_the_pause() -> None:
    assert A.END_PAUSE in walk(E.LOST, E.DIAL_FAILED, E.USABLE)[1]


# Ends are rare, so that the sequences are long.
events = st.lists(
    st.one_of(
        st.sampled_from([e for e in Event if e not in (E.CLOSE, E.ABORT, E.ENDED, E.FINISHED, E.EXPIRED)]),
        st.sampled_from([E.LOST, E.BETTER, E.DIALLED, E.DRAINED, E.RESUMED]),
        st.sampled_from(Event),
    ),
    max_size=40,
)


@settings(max_examples=500)
@given(events)
def test_whatever_happens_nothing_is_left_running_behind(happened: list[Event]) -> None:
    machine = Machine()
    clock = dialling = hook = cut = waiting = False
    new = False
    for event in happened:
        if event is E.DIALLED and machine.state in (S.DIALLING, S.STALLED, S.RECONNECTING):
            dialling, new = False, True
        for action in machine.feed(event):
            match action:
                case A.START_CLOCK:
                    clock = True
                case A.STOP_CLOCK:
                    clock = False
                case A.DIAL | A.PAUSE:
                    dialling = True
                case A.STOP_DIALLING:
                    dialling = False
                case A.WAIT_FOR_PATH | A.DRAIN:
                    waiting = True
                case A.STOP_WAITING:
                    waiting = False
                case A.RUN_HOOK:
                    assert new
                    assert cut
                    hook = True
                case A.STOP_HOOK:
                    hook = False
                case A.DROP_NEW:
                    new = False
                case A.CUT:
                    assert not cut
                    cut = True
                case A.SWITCH:
                    assert cut
                    hook = new = cut = False
                case _:
                    pass
        state = machine.state
        assert clock == (state not in (S.LIVE, S.FINISHING, S.CLOSED))
        assert dialling == (state in (S.DIALLING, S.STALLED, S.RECONNECTING))
        assert waiting == (state in (S.WAITING, S.DRAINING))
        assert hook == (state is S.RESUMING)
        assert new == (state in (S.WAITING, S.DRAINING, S.RESUMING))
        assert cut == (state in (S.DRAINING, S.RECONNECTING, S.RESUMING)) or state is S.CLOSED


@settings(max_examples=500)
@given(events)
def test_the_application_is_told_of_the_end_once(happened: list[Event]) -> None:
    state, done = walk(*happened)
    assert sum(done.count(a) for a in (A.TELL_ENDED, A.TELL_CLOSED, A.GIVE_UP)) == (state is S.CLOSED)


@pytest.mark.parametrize("state", [s for s in State if s is not S.CLOSED])
def test_an_abort_ends_everything_in_every_state(state: State) -> None:
    after, actions = TABLE[state, E.ABORT]
    assert after is S.CLOSED
    assert actions[-1] is A.TELL_CLOSED
