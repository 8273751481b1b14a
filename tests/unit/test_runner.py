"""The runner drives a core by events and timers, and a recording replays to the same effects."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from meseta.errors import StoreError
from meseta.runner import CoreRunner, Recorder, replay


class Init(msgspec.Struct, frozen=True):
    """How fast the counter below rings, and from what number on."""

    first: int
    period_s: float


class Add(msgspec.Struct, frozen=True, tag=True):
    amount: int


class Said(msgspec.Struct, frozen=True):
    total: int


class Counter:
    """Adds what it is told, and one each period."""

    def __init__(self, init: Init) -> None:
        self.total = init.first
        self.period_s = init.period_s
        self.due: float | None = None

    def handle(self, event: Add, now: float) -> list[Said]:
        self.total += event.amount
        self.due = now + self.period_s
        return [Said(self.total)]

    def tick(self, now: float) -> list[Said]:
        assert self.due is not None
        assert now >= self.due
        self.total += 1
        self.due = now + self.period_s
        return [Said(self.total)]

    def next_deadline(self) -> float | None:
        return self.due


async def run_until(path: Path | None, wanted: int, period_s: float) -> list[int]:
    init = Init(first=10, period_s=period_s)
    said: list[int] = []
    reached = asyncio.Event()

    def perform(effect: Said) -> None:
        said.append(effect.total)
        if effect.total >= wanted:
            reached.set()

    with CoreRunner(Counter(init), perform, recorder=Recorder(path, init) if path else None) as runner:
        runner.start()
        runner.handle(Add(5))
        await asyncio.wait_for(reached.wait(), 10)
    return said


def test_timer_calls_tick_never_before_its_deadline() -> None:
    assert asyncio.run(run_until(None, 20, 0.01))[:6] == [15, 16, 17, 18, 19, 20]


def test_an_event_raised_by_an_effect_is_handled_after_all_effects() -> None:
    order: list[str] = []

    class Twice:
        def handle(self, event: Add, now: float) -> list[Said]:
            order.append(f"handle {event.amount}")
            return [Said(event.amount), Said(event.amount + 100)] if event.amount < 2 else []

        def tick(self, now: float) -> list[Said]:
            raise AssertionError("nothing is ever due")

        def next_deadline(self) -> float | None:
            return None

    async def drive() -> None:
        def perform(effect: Said) -> None:
            order.append(f"perform {effect.total}")
            if effect.total < 100:
                runner.handle(Add(effect.total + 1))

        runner: CoreRunner[Add, Said] = CoreRunner(Twice(), perform)
        runner.handle(Add(1))
        runner.close()

    asyncio.run(drive())
    assert order == ["handle 1", "perform 1", "perform 101", "handle 2"]


def test_a_recording_replays_to_the_same_effects(tmp_path: Path) -> None:
    path = tmp_path / "counter.rec"
    said = asyncio.run(run_until(path, 18, 0.005))
    count, differing = replay(path, Init, Add, Counter)
    assert count == len(said)
    assert differing == []


def test_a_replay_names_the_inputs_whose_effects_differ(tmp_path: Path) -> None:
    class Wrong(Counter):
        def tick(self, now: float) -> list[Said]:
            said = super().tick(now)
            return [Said(said[0].total + 1)] if said[0].total == 17 else said

    path = tmp_path / "counter.rec"
    asyncio.run(run_until(path, 18, 0.005))
    _, differing = replay(path, Init, Add, Wrong)
    assert differing == [2]


def test_a_torn_last_record_is_left_out_and_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "counter.rec"
    asyncio.run(run_until(path, 18, 0.005))
    whole, _ = replay(path, Init, Add, Counter)
    path.write_bytes(path.read_bytes()[:-3])
    assert replay(path, Init, Add, Counter) == (whole - 1, [])
    path.write_bytes(b"#!/bin/sh\necho this is something else\n")
    with pytest.raises(StoreError, match="is no recording"):
        replay(path, Init, Add, Counter)
