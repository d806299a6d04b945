"""The structures and constants agree with Apple's headers, and the check fails if they do not."""

from __future__ import annotations

from ctypes import Structure

import pytest

from bindsock.kernel.darwin import abi
from tests.abi.check import TARGETS, compile_with_zig, constants, source

pytest.importorskip("ziglang")


@pytest.mark.parametrize("target", TARGETS)
def test_structures_and_constants_are_those_of_apples_headers(target: str) -> None:
    assert compile_with_zig(source(), target) is None


def test_a_wrong_offset_fails_the_check() -> None:
    fields = list(abi.if_msghdr2._fields_)
    index = [name for name, *_ in fields].index("ifm_index")
    fields[index], fields[index - 1] = fields[index - 1], fields[index]
    wrong = type("if_msghdr2", (Structure,), {"_fields_": tuple(fields)})
    complaint = compile_with_zig(source(structures=[wrong], values={}), TARGETS[0])
    assert complaint is not None
    assert "offset of if_msghdr2.ifm_index" in complaint


def test_a_wrong_constant_fails_the_check() -> None:
    complaint = compile_with_zig(source(structures=[], values={"IP_BOUND_IF": 26}), TARGETS[0])
    assert complaint is not None
    assert "IP_BOUND_IF" in complaint


def test_every_name_is_public_private_or_missing_from_the_shipped_headers() -> None:
    structures = {
        value.__name__
        for value in vars(abi).values()
        if isinstance(value, type) and issubclass(value, Structure) and value is not Structure
    }
    assert structures - {"timeval32"} == {structure.__name__ for structure in abi.STRUCTURES}
    known = {name for name in vars(abi) if name.isupper()} | structures
    assert set(abi.PRIVATE) <= known
    assert set(abi.UNSHIPPED) <= known
    assert not set(abi.PRIVATE) & set(abi.UNSHIPPED)
    assert {"IP_BOUND_IF", "RTM_ADD", "SIOCGIFFLAGS", "IFRTYPE_FUNCTIONAL_CELLULAR"} <= set(constants())
