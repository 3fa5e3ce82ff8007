"""What a training says while it runs: a line per epoch, warnings, and TensorBoard's event file."""

from __future__ import annotations

import functools
import struct
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from dtg_ray.stages.runtime import Options, duration
from dtg_ray.stages.telemetry import watch
from dtg_ray.store.files import Storage

SHOWN = {
    "loss": "loss",
    "validation_loss": "validation loss",
    "validation_r": "r",
    "validation_diagonality": "diagonality",
    "validation_identification": "identification",
}
AXES = ("epoch", "ended")
RECENT = 5
"""Epochs whose mean duration tells when training will end."""


class Herald:
    """Tells people and TensorBoard.

    Parameters
    ----------
    title : str
        Of the stage.
    epochs : int
        At most.
    events : tuple of Storage and str, optional
        Where TensorBoard's file is kept.
    options : Options
    gpus : int
        That it is done on.
    """

    def __init__(
        self, title: str, epochs: int, events: tuple[Storage, str] | None, options: Options, *, gpus: int = 0
    ) -> None:
        self.title, self.epochs, self.events, self.quiet, self.gpus = title, epochs, events, options.quiet, gpus
        self.error: tuple[str, str] | None = None
        """Message and hint of a worker that could not go on."""

    def __call__(self, message: Mapping[str, Any]) -> None:
        """Take a message of `dtg_ray.stages.training.loop.train`, or `{"error": (message, hint)}`."""
        if "error" in message:
            self.error = message["error"]
        if "warning" in message:
            self.say(message["warning"])
        if "history" in message:
            if not self.quiet:
                self.say(epoch_line(message["history"], self.epochs))
            self._log(message["history"])
            watch.epoch(message["history"][-1], self.gpus)

    def _log(self, history: Sequence[Mapping[str, float]]) -> None:
        """TensorBoard is a convenience: without its file training goes on."""
        if self.events is None:
            return
        try:
            storage, name = self.events
            storage.write(name, event_file(history))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the training
            self.say(f"TensorBoard's file could not be written ({error}); training goes on without it")
            self.events = None

    def say(self, text: str) -> None:
        """One line."""
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)


def epoch_line(history: Sequence[Mapping[str, float]], epochs: int) -> str:
    """The last epoch of a history in words: its steps, validation and all, by the clock of the worker."""
    line = history[-1]
    ends = [before["ended"] for before in history[-RECENT - 1 :]]
    lasted = [after - before for before, after in pairwise(ends)] or [line["seconds"]]
    number, each = int(line["epoch"]) + 1, sum(lasted) / len(lasted)
    figures = ", ".join(f"{words} {line[key]:.4g}" for key, words in SHOWN.items() if key in line)
    left = f", {duration((epochs - number) * each)} to go" if number < epochs else ""
    return f"epoch {number}/{epochs}, {figures}, {duration(lasted[-1])}, waiting {line['waiting']:.0%}{left}"


def event_file(history: Sequence[Mapping[str, float]]) -> bytes:
    """TensorBoard's view of a history, whole: a training that was resumed shows no epoch twice."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    events = [Event(wall_time=history[0]["ended"], file_version="brain.Event:2")]
    for line in history:
        values = [Summary.Value(tag=key, simple_value=value) for key, value in line.items() if key not in AXES]
        events.append(Event(wall_time=line["ended"], step=int(line["epoch"]), summary=Summary(value=values)))
    return b"".join(_record(event.SerializeToString()) for event in events)


@functools.lru_cache(maxsize=10_000)  # the checksum is slow, and every epoch asks for all of them again
def _record(data: bytes) -> bytes:
    """One record of an event file: length, checksum, data, checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


class Post:
    """A mailbox for workers anywhere in the cluster, read out to a herald.

    Parameters
    ----------
    herald : Herald
    """

    def __init__(self, herald: Herald) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()  # other nodes may be lost
        self._herald, self._lock = herald, threading.Lock()

    def read(self) -> None:
        """Take what has come, and tell it before anybody else asks."""
        import ray

        with self._lock:
            for message in ray.get(self.mailbox.take.remote()):
                self._herald(message)


@contextmanager
def listening(herald: Herald) -> Iterator[Post]:
    """A mailbox, and a thread that reads it while the block runs."""
    import ray

    post, stop = Post(herald), threading.Event()

    def wait() -> None:
        while not stop.wait(0.5):
            post.read()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield post
        post.read()
    finally:
        stop.set()
        thread.join(timeout=60)
        ray.kill(post.mailbox)


class Mailbox:
    """Holds messages until somebody takes them."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def put(self, message: dict[str, Any]) -> None:
        """Add a message."""
        self.messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        """All messages since the last call."""
        messages, self.messages = self.messages, []
        return messages
