"""The rounds that the settings of the command line describe."""

from __future__ import annotations

from tests.chaos.__main__ import MODES, again, parse
from tests.chaos.networks import DRAWN, NETWORKS, draw
from tests.chaos.running import Failed


def test_each_network_meets_every_mode_before_the_next_comes() -> None:
    settings, _ = parse(["--seed", "1", "--network", "all"])
    rounds = range(1, len(MODES) * (len(NETWORKS) + 1) + 1)
    assert len({(settings.network(number), settings.mode(number)) for number in rounds}) == len(rounds)
    assert {settings.network(number) for number in rounds[: len(MODES)]} == {"two"}
    assert settings.network(rounds[-1] + 1) == settings.network(1)


def test_without_a_network_the_seed_determines_two_or_three_uplinks() -> None:
    found = {parse(["--seed", str(seed)])[0].network(1) for seed in range(20)}
    assert found == {"two", "three"}


def test_the_command_that_repeats_a_round_names_its_networks() -> None:
    settings, _ = parse(["--seed", "7", "--network", "shared", "--network", "nat64", "--vpn", "metric"])
    assert again(settings, Failed(2, (), ())).endswith("--seed 7 --round 2 --vpn metric --network shared --network nat64")


def test_a_network_is_drawn_for_each_turn_of_the_modes() -> None:
    settings, _ = parse(["--seed", "9", "--network", DRAWN])
    drawings = [settings.drawing(number) for number in range(1, len(MODES) * 10 + 1)]
    assert all(drawings[number] == drawings[number - number % len(MODES)] for number in range(len(drawings)))
    assert len({str(drawing) for drawing in drawings}) > 5
    assert settings.title(1) == f"round 1 (network {DRAWN} with {drawings[0]}, no VPN)"


def test_in_each_network_that_is_drawn_something_has_ipv4() -> None:
    drawings = [draw(str(number)) for number in range(300)]
    assert {kind for drawing in drawings for kind in drawing.kinds.values()} == {
        "shared",
        "point-to-point",
        "macvlan",
        "ipv6-only",
    }
    for drawing in drawings:
        kinds = [drawing.kinds.get(name) for name in drawing.uplinks]
        assert "shared" not in kinds or kinds[0] is None
        assert set(kinds) != {"ipv6-only"}
        assert drawing.nat64 == ("ipv6-only" in kinds)
