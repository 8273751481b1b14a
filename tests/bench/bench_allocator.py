"""Mesos's DeclineOffers against our allocator, in process: one JSON line.

Each slave has cpus 24, mem 4096, disk 4096 and ports 31000-32000, of which one framework uses cpus
16, mem 2014, disk 1024 and 16 disjoint pieces of the ports. Before each of 2 x F rounds all offers
are declined for some 68 years, so that each framework is offered and refuses more and more, until
every pair of framework and slave has a filter. Mesos does not time the declines; here they are
timed by themselves, and together with the round that follows.

After that, rounds with all pairs filtered: once with nothing changed, once with every slave marked
changed, so that all has to be looked at again.
"""

import argparse
import gc
import json
import os
import random
import resource
import statistics
import time
from collections.abc import Callable
from typing import Final

from master.allocator import Allocation, Allocator, AllocatorConfig
from meseta.ids import FrameworkId, SlaveId
from meseta.resources import parse_resources

ROLE: Final = "*"
REFUSE_S: Final = float(2**31 - 1)
FRAGMENTED: Final = "ports:[" + ",".join(str(port) for port in range(31000, 31030, 2)) + ",31030-32000]"
TOTAL: Final = parse_resources("cpus:24;mem:4096;disk:4096;ports:[31000-32000]")
USED: Final = parse_resources(f"cpus:16;mem:2014;disk:1024;{FRAGMENTED}")
FILTERED_ROUNDS: Final = 10


class DeclineOffers:
    """One allocator with its slaves, frameworks and outstanding offers."""

    def __init__(self, slave_count: int, framework_count: int, seed: int) -> None:
        self.allocator = Allocator(AllocatorConfig(min_refuse_s=0.0), random.Random(seed))
        self.framework_ids = [FrameworkId(f"framework-{index}") for index in range(framework_count)]
        self.slave_ids = [SlaveId(f"slave-{index}") for index in range(slave_count)]
        self.offers: list[Allocation] = []
        self.now = 0.0

    def add_frameworks(self) -> None:
        """Register all frameworks."""
        for framework_id in self.framework_ids:
            self.allocator.add_framework(framework_id, (ROLE,), (), self.now)

    def add_slaves(self) -> None:
        """Register all slaves, and make the offers that follow."""
        for index, slave_id in enumerate(self.slave_ids):
            user = self.framework_ids[index % len(self.framework_ids)]
            self.allocator.add_slave(slave_id, TOTAL, {user: {ROLE: USED}}, self.now)
        self.offers = self.allocator.allocate(self.now)

    def decline(self) -> None:
        """Give all offers back, with filters that outlast the run."""
        for offer in self.offers:
            self.allocator.recover(
                offer.framework_id, offer.role, offer.slave_id, offer.resources, self.now, refuse_s=REFUSE_S
            )
        self.offers = []

    def round(self) -> None:
        """Make the next offers, one second later."""
        self.now += 1.0
        self.offers = self.allocator.allocate(self.now)

    def touch_slaves(self) -> None:
        """Let every slave count as changed."""
        for slave_id in self.slave_ids:
            self.allocator.set_slave_active(slave_id, is_active=False, now=self.now)
            self.allocator.set_slave_active(slave_id, is_active=True, now=self.now)


def timed(action: Callable[[], object]) -> float:
    """Return how long `action` takes, in seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(slave_count: int, framework_count: int, round_count: int, seed: int) -> dict[str, object]:
    """Run the workload and return its figures, times in milliseconds."""
    memory_before = resident_mib()
    bench = DeclineOffers(slave_count, framework_count, seed)
    add_frameworks_s = timed(bench.add_frameworks)
    add_slaves_s = timed(bench.add_slaves)
    gc.freeze()
    declines: list[float] = []
    rounds: list[float] = []
    offer_counts: list[int] = []
    for _ in range(round_count):
        declines.append(timed(bench.decline))
        rounds.append(timed(bench.round))
        offer_counts.append(len(bench.offers))
    offering = [index for index, count in enumerate(offer_counts) if count]
    both = [declines[index] + rounds[index] for index in offering]
    result: dict[str, object] = {
        "benchmark": "DeclineOffers",
        "slaves": slave_count,
        "frameworks": framework_count,
        "add_frameworks_ms": milli(add_frameworks_s),
        "add_slaves_ms": milli(add_slaves_s),
        "offer_rounds": len(offering),
        "offers": sum(offer_counts),
        "round_ms": spread([rounds[index] for index in offering]),
        "declines_ms": spread([declines[index] for index in offering]),
        "declines_and_round_ms": spread(both),
        "memory_mib": round(resident_mib() - memory_before, 1),
        "load": round(os.getloadavg()[0], 2),
    }
    if offer_counts[-1] == 0:
        result["all_filtered_ms"] = milli(statistics.median(timed(bench.round) for _ in range(FILTERED_ROUNDS)))
        touched = []
        for _ in range(FILTERED_ROUNDS):
            bench.touch_slaves()
            touched.append(timed(bench.round))
        result["all_filtered_all_changed_ms"] = milli(statistics.median(touched))
    return result


def spread(times_s: list[float]) -> dict[str, float]:
    """Return first, median, last and worst of `times_s`."""
    return {
        "first": milli(times_s[0]),
        "median": milli(statistics.median(times_s)),
        "last": milli(times_s[-1]),
        "worst": milli(max(times_s)),
    }


def milli(time_s: float) -> float:
    """Return milliseconds."""
    return round(time_s * 1000, 3)


def resident_mib() -> float:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the figures of DeclineOffers as one JSON line."""
    parser = argparse.ArgumentParser(description="Mesos's DeclineOffers against our allocator: one JSON line.")
    parser.add_argument("--slaves", type=int, default=1000)
    parser.add_argument("--frameworks", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=0, help="rounds with declines; 0: twice the frameworks")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rounds = options.rounds or 2 * options.frameworks
    print(json.dumps(measure(options.slaves, options.frameworks, rounds, options.seed)))


if __name__ == "__main__":
    main()
