"""How long a registry that is not there is waited for."""

from __future__ import annotations

import logging
import random
import time

from compiler.errors import StepError
from compiler.registries import Broken
from compiler.registries.workers import current

PATIENCE_S = 60.0
"""Since the registry last got further: longer than one stall (`timed.ANSWER_S`), so that another attempt follows it."""
MOST_RETRY_AFTER_S = 300.0
"""Of all the time that a registry asks to be left alone without getting further."""
SLOWEST_PER_S = 1024
"""Bytes a second: a registry that gives or takes less counts as one that is not there."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 8.0
QUIET_S = 3.0
"""Who waits for longer is told why."""
logger = logging.getLogger(__name__)


class Patience:
    """Pauses between attempts, longer each time, until it has lasted too long."""

    def __init__(self, where: str, seconds: float = PATIENCE_S) -> None:
        self._where, self._seconds = where, seconds
        self.got_further()

    def gained(self, count: int) -> None:
        """So many more bytes are there: patience starts again where they come fast enough.

        A registry that gives a byte a connection would be waited for until the last one.
        """
        self._gained += count
        if self._gained >= SLOWEST_PER_S * (time.monotonic() - self._since):
            self.got_further()

    def got_further(self) -> None:
        """The registry has done something: patience starts again."""
        self._gained = 0
        self._since, self._pause, self._said = time.monotonic(), FIRST_PAUSE_S, False
        self._until = self._since + self._seconds
        self._asked_until = self._since + MOST_RETRY_AFTER_S

    def wait(self, error: Broken) -> None:
        """Sleeps before the next attempt.

        Raises:
            StepError: it has lasted too long.
            Stopped: the transfer has ended meanwhile.
        """
        current().check()
        now = time.monotonic()
        if error.retry_after_s:
            self._wait_as_asked(error, error.retry_after_s, now)
            return
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

    def _wait_as_asked(self, error: Broken, asked_s: float, now: float) -> None:
        """Sleeps for as long as the registry asks; then it has as much time to answer as at first."""
        if now + asked_s > self._asked_until:
            raise StepError(
                f"{self._where} asks to be left alone for {asked_s:.0f} s ({error}); at most "
                f"{MOST_RETRY_AFTER_S:.0f} s are waited in all",
                fix="give the same command again after that time: it goes on where it was",
            ) from error
        logger.warning("waiting %.0f s for %s, as it asks: %s", asked_s, self._where, error)
        current().pause(asked_s * random.uniform(1.0, 1.05))  # noqa: S311 - clients are not to come back at once
        self._until = time.monotonic() + self._seconds
