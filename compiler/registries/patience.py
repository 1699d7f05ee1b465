"""How long a registry that is not there is waited for."""

from __future__ import annotations

import random
import time

from compiler.errors import StepError
from compiler.registries import Broken

PATIENCE_S = 60.0
"""Since the registry last answered."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 8.0


class Patience:
    """Pauses between attempts, longer each time, until it has lasted too long."""

    def __init__(self, where: str, seconds: float = PATIENCE_S) -> None:
        self._where, self._seconds = where, seconds
        self.got_further()

    def got_further(self) -> None:
        """The registry has answered: patience begins anew."""
        self._until, self._pause = time.monotonic() + self._seconds, FIRST_PAUSE_S

    def wait(self, error: Broken) -> None:
        """Sleeps before the next attempt.

        Raises:
            StepError: it has lasted too long.
        """
        if time.monotonic() + self._pause > self._until:
            raise StepError(
                f"{self._where} cannot be reached: {error}",
                fix="check that the registry runs, then give the same command again: it goes on where it was",
            ) from error
        time.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - so that many clients do not come back at once
        self._pause = min(self._pause * 2, LAST_PAUSE_S)
