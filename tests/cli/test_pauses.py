"""Ctrl-C while something is watched."""

import signal

import pytest

from dllm_sweep.cli.pauses import heeding_ctrl_c


def test_ctrl_c_in_the_middle_of_a_look_is_heeded_in_the_pause_after_it():
    looked = []
    with heeding_ctrl_c() as pause:
        signal.raise_signal(signal.SIGINT)
        looked.append("to its end")
        with pytest.raises(KeyboardInterrupt):
            pause(60.0)
    assert looked == ["to its end"]


def test_a_second_ctrl_c_does_not_wait_for_the_pause():
    with heeding_ctrl_c():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handler_of_before_is_back_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with heeding_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
