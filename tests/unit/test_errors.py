"""netprofiler.errors: one line, one status."""

import pytest

from netprofiler.errors import CommandError, ExitCode, NetprofilerError


def test_message_carries_its_remedy() -> None:
    error = CommandError("BCC is not installed", ExitCode.HOST, remedy="apt-get install python3-bpfcc")
    assert str(error) == "BCC is not installed (to mend it: apt-get install python3-bpfcc)"
    assert error.exit_code == 3
    assert error.remedy == "apt-get install python3-bpfcc"


def test_a_message_of_many_lines_becomes_one() -> None:
    assert str(CommandError("first\n  second\r\n\tthird\n")) == "first second third"


def test_the_agent_failed_is_the_default_status() -> None:
    with pytest.raises(NetprofilerError) as raised:
        raise CommandError("x")
    assert isinstance(raised.value, CommandError)
    assert raised.value.exit_code == 1
    assert raised.value.remedy is None
