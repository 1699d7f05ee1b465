"""How long a registry that is not there is waited for."""

from __future__ import annotations

import logging
import random
import time

from compiler.errors import StepError
from compiler.registries import Broken
from compiler.registries.workers import current

PATIENCE_S = 60.0
"""Since the registry last got further: longer than one stall (`http.ANSWER_S`), so that another attempt follows it."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 8.0
QUIET_S = 3.0
"""Who waits for longer is told why."""
logger = logging.getLogger(__name__)


class Patience:
    """Pauses between attempts, longer each time, until it has lasted too long."""

    def __init__(self, where: str, seconds: float = PATIENCE_S) -> None:
        self._where, self._seconds = where, seconds
        self.got_further()

    def got_further(self) -> None:
        """The registry has done something: patience begins anew."""
        self._since, self._pause, self._said = time.monotonic(), FIRST_PAUSE_S, False
        self._until = self._since + self._seconds

    def wait(self, error: Broken) -> None:
        """Sleeps before the next attempt.

        Raises:
            StepError: it has lasted too long.
            Stopped: the transfer has ended meanwhile.
        """
        current().check()
        now = time.monotonic()
        if now + self._pause > self._until:
            raise StepError(
                f"{self._where} cannot be reached: {error}",
                fix="check that the registry runs, then give the same command again: it goes on where it was",
            ) from error
        if not self._said and now - self._since >= QUIET_S:
            self._said = True
            logger.warning("waiting for %s: %s", self._where, error)
        current().pause(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - clients are not to come back at once
        self._pause = min(self._pause * 2, LAST_PAUSE_S)
