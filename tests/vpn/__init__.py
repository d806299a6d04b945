import pytest

pytest.register_assert_rewrite("tests.vpn.checks", "tests.vpn.journey")
