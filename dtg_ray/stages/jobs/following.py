"""The log of a job as it grows, over connections that may break."""

from __future__ import annotations

import re
import shutil
import sys
import time
from typing import TextIO

from ray.job_submission import JobDetails, JobStatus

from dtg_ray.stages.jobs.cluster import Cluster, Patience, UnreachableError

BAR = re.compile(r"(?P<title>.*?)(: )?\s*\d+%\|[^|]*\|\s*\S+/\S+ \[[^\]]*\]\s*")
"""A progress bar of tqdm. Its carriage return is a line break in the log that Ray gives."""
SECONDS_BETWEEN_BARS = 10.0
"""Where they cannot be drawn over each other."""
SECONDS_BETWEEN_LOOKS = 1.0
STOPPED = 130


class Unseen:
    """Tells what of a log is new, though every connection gives it from its beginning.

    It counts line breaks apart: a carriage return that is read before its line feed makes two of one.
    """

    def __init__(self) -> None:
        self._characters = self._breaks = 0
        self._to_skip = self._breaks_to_skip = 0

    def restart(self) -> None:
        """The log comes from its beginning again."""
        self._to_skip, self._breaks_to_skip = self._characters, self._breaks

    def __call__(self, text: str) -> str:
        """What of the next piece of the log was not there before."""
        start = 0
        while start < len(text) and (self._to_skip or (self._breaks_to_skip and text[start] == "\n")):
            if self._to_skip:
                self._to_skip -= text[start] != "\n"
            else:
                self._breaks_to_skip -= 1
            start += 1
        new = text[start:]
        if new:
            self._breaks_to_skip = 0
        body = new.rstrip("\n")
        self._characters += len(body) - body.count("\n")
        self._breaks = len(new) - len(body) + (0 if body else self._breaks)
        return new


class Screen:
    """Prints a log: every line as it is, but a progress bar is drawn over itself, or now and then in a file.

    Parameters
    ----------
    out : text file
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self._drawn_over = self.out.isatty()
        self._begun = ""
        """A line whose end has not come."""
        self._blank = False
        """An empty line that may be the carriage return before a bar."""
        self._bar = ""
        """The last bar, when it still has to be printed or ended."""
        self._shown = ""
        """The last bar in any case: it comes once before its line break, and once with it."""
        self._printed = 0.0

    def write(self, text: str) -> None:
        """Print a piece of the log."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._line(line)
        if BAR.fullmatch(self._begun):  # its end comes with the next one
            self._show(self._begun)
        self.out.flush()

    def pause(self) -> None:
        """Make room for a line of somebody else."""
        if self._drawn_over:
            self._end_bar()
        self.out.flush()

    def close(self) -> None:
        """Print what is held back."""
        if self._begun and not BAR.fullmatch(self._begun):
            self._line(self._begun)
        self._begun = ""
        self._end_bar()
        if self._blank:
            self.out.write("\n")
        self._blank = False
        self.out.flush()

    def _line(self, line: str) -> None:
        if BAR.fullmatch(line):
            self._show(line)
            return
        if self._blank:
            self._end_bar()
            self.out.write("\n")
        self._blank = not line
        if line:
            self._end_bar()
            self.out.write(f"{line}\n")

    def _show(self, bar: str) -> None:
        bar, self._blank = bar.rstrip(), False
        if bar == self._shown:
            return
        self._shown = bar
        if self._bar and _title(bar) != _title(self._bar):
            self._end_bar()
        self._bar = bar
        if self._drawn_over:
            width = shutil.get_terminal_size().columns
            self.out.write(f"\r{bar[: width - 1]}\x1b[K")
        elif time.monotonic() - self._printed >= SECONDS_BETWEEN_BARS:
            self._print_bar()

    def _print_bar(self) -> None:
        self.out.write(f"{self._bar}\n")
        self._bar, self._printed = "", time.monotonic()

    def _end_bar(self) -> None:
        """Go to the next line; in a file, print how far the bar has come."""
        if not self._bar:
            return
        if self._drawn_over:
            self.out.write("\n")
            self._bar = ""
        else:
            self._print_bar()


def _title(bar: str) -> str:
    match = BAR.fullmatch(bar)
    return match["title"] if match else ""


def follow(cluster: Cluster, job: str, screen: Screen, patience: Patience) -> JobDetails:
    """Print the log of a job until it has ended, every part of it once.

    Raises
    ------
    UnreachableError
        When the cluster is away for too long.
    UnknownJobError
        When the cluster does not know the job, or not any more.
    """
    unseen = Unseen()
    try:
        while True:
            unseen.restart()
            try:
                for text in cluster.tail(job):
                    patience.back()
                    screen.write(unseen(text))
                info = cluster.info(job)
            except UnreachableError as error:
                screen.pause()
                patience.lost(error)
                continue
            if info.status.is_terminal():
                return info
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        screen.close()


def wait(cluster: Cluster, job: str, patience: Patience) -> JobDetails:
    """Wait until a job has ended, for as long as its cluster may be away; what is known of it then."""
    deadline = time.monotonic() + patience.seconds
    while True:
        info = patience.insist(lambda: cluster.info(job))
        if info.status.is_terminal() or time.monotonic() > deadline:
            return info
        time.sleep(SECONDS_BETWEEN_LOOKS)


def exit_code(info: JobDetails) -> int | None:
    """That of the stage; 130 when it was stopped, 1 when it never began, None while it runs."""
    if not info.status.is_terminal():
        return None
    if info.status is JobStatus.STOPPED:
        return STOPPED
    code = info.driver_exit_code
    if code is None:
        return 0 if info.status is JobStatus.SUCCEEDED else 1
    return code if code >= 0 else 128 - code
