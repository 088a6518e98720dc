"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal

import pytest

from pipeline.execution import interrupt


@pytest.fixture(autouse=True)
def as_python_starts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("first", interrupt.SIGNALS)
@pytest.mark.parametrize("second", interrupt.SIGNALS)
def test_the_first_asks_and_the_second_raises(
    first: signal.Signals, second: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with interrupt.deferred() as stopping:
        assert not stopping()
        signal.raise_signal(first)
        assert stopping()
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert capsys.readouterr().err.count("Stopping") == 1


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    with interrupt.deferred():
        assert [signal.getsignal(number) for number in interrupt.SIGNALS] != before
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before


def test_handlers_are_put_back_where_a_run_fails() -> None:
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    with pytest.raises(RuntimeError), interrupt.deferred():
        raise RuntimeError
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before
