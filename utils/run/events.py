"""What a run tells whoever wants to know, while it goes on; docs/trackers.md lists the events.

    from utils.run.events import subscribe

    @subscribe
    def show(event):
        if event["kind"] == "task":
            print(event["seed"], event["task"], event["top1"])

A subscriber only listens. It gets its own copy of each event, an error of it is told once and it hears nothing more of that run,
and of several processes the first alone tells. No event falls between a seeding of the global generators and their use.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from utils.errors import UserError
from utils.last_resort import one_sentence

log = logging.getLogger("slca")

Event = dict[str, Any]
Subscriber = Callable[[Event], object]
S = TypeVar("S", bound=Subscriber)

_subscribers: list[Subscriber] = []  # of every run of this process


def subscribe(subscriber: S) -> S:
    """Call `subscriber` with every event of the runs that start from now on. Also a decorator."""
    if not callable(subscriber):
        raise UserError(f"subscribe: got {type(subscriber).__name__}, allowed: a function (or an object with __call__) of one event")
    if subscriber not in _subscribers:
        _subscribers.append(subscriber)
    return subscriber


def unsubscribe(subscriber: Subscriber) -> None:
    """Runs that start from now on do not call it any more."""
    if subscriber in _subscribers:
        _subscribers.remove(subscriber)


class Events:
    """One run's events.

    Args:
        subscribers: of this run, beside those of all runs.
        tells: of several processes one tells.
        facts: what every event has.
    """

    def __init__(self, subscribers: Iterable[Subscriber] = (), tells: bool = True, **facts: Any) -> None:
        self.listening = [*_subscribers, *subscribers] if tells else []  # shared with what `of` gives
        self.facts = facts

    def of(self, **facts: Any) -> Events:
        """The same listeners, with more in each event."""
        inner = Events(tells=False, **self.facts, **facts)
        inner.listening = self.listening
        return inner

    def tell(self, kind: str, **facts: Any) -> None:
        """Call every subscriber, one after another."""
        for subscriber in list(self.listening):
            try:
                subscriber(copy.deepcopy({"kind": kind, **self.facts, **facts}))
            except (Exception, SystemExit) as error:
                self.listening.remove(subscriber)
                name = getattr(subscriber, "name", None) or getattr(subscriber, "__qualname__", type(subscriber).__name__)
                log.warning(f"{name} failed at the event {kind!r} and hears no more of this run, which goes on: {one_sentence(error)}")

    @contextmanager
    def during(self, what: str, **facts: Any) -> Iterator[Event]:
        """Tell that `what` starts, and that it ends: "finished" or with what "error", and what was put into the dict that this gives."""
        self.tell(f"{what}_start", **facts)
        end: Event = {}
        try:
            yield end
        except BaseException as error:
            self.tell(f"{what}_end", finished=False, error=one_sentence(error))
            raise
        self.tell(f"{what}_end", finished=True, error=None, **end)
