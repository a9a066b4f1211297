"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["PatientInterrupt"]


class PatientInterrupt:
    """Inside, a first Ctrl-C is only noted, so that no step is broken off; a second one is not.

    Outside the main thread, and where someone else handles the signal, it does nothing.
    """

    def __init__(self) -> None:
        self.is_pending = False
        self._before: Any = None

    def __enter__(self) -> PatientInterrupt:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def raise_if_pending(self) -> None:
        """Raise what was noted.

        Raises:
            KeyboardInterrupt: There was one.
        """
        if self.is_pending:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_pending:
            raise KeyboardInterrupt
        self.is_pending = True
