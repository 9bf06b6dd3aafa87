"""Signals for processes that tests start."""

import signal


def heed_ctrl_c() -> None:
    """Let Ctrl-C have its effect in a new process, even if the tests themselves run where it has none."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
