"""The promises hold under faults, the same seed does the same, and every planted bug is found."""

import os

import pytest

from meseta.testing.cluster import Plan, SimulatedCluster
from meseta.testing.promises import PromiseBroken
from tests.simulation.planted_bugs import BUGS, CALM, CRASHING, FORGETFUL, RACKED

SEEDS_LIMIT = 200  # A planted bug must be found within so many.
HEALTHY_SEEDS = int(os.environ.get("MESETA_SIMULATION_SEEDS", "15"))
FIRST_SEED = int(os.environ.get("MESETA_SIMULATION_FIRST_SEED", "0"))


def first_broken(name: str) -> PromiseBroken | None:
    """Return how a planted bug shows, in the first seed in which it does."""
    cores, plan = BUGS[name]
    for seed in range(SEEDS_LIMIT):
        try:
            SimulatedCluster(seed, plan, cores).run()
        except PromiseBroken as broken:
            return broken
    return None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    broken = first_broken(name)
    assert broken is not None, f"{name}: not found within {SEEDS_LIMIT} seeds"
    assert f"seed {broken.seed}" in str(broken)
    assert broken.trace


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(CALM, id="calm"),
        pytest.param(CRASHING, id="crashing"),
        pytest.param(FORGETFUL, id="forgetful"),
        pytest.param(RACKED, id="racked"),
    ],
)
def test_promises_hold_whatever_fails(plan: Plan) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + HEALTHY_SEEDS):
        cluster = SimulatedCluster(seed, plan)
        cluster.run()
        finished = [len(store.finished_units) for store in cluster.stores]
        assert finished == [plan.unit_count] * plan.framework_count, seed


def test_the_same_seed_does_exactly_the_same() -> None:
    first, second, other = SimulatedCluster(7), SimulatedCluster(7), SimulatedCluster(8)
    for cluster in (first, second, other):
        cluster.run()
    assert first.world.trace == second.world.trace
    assert first.world.step_count == second.world.step_count
    assert first.world.trace != other.world.trace


def test_faults_really_strike() -> None:
    cluster = SimulatedCluster(3)
    cluster.run()
    trace = "\n".join(cluster.world.trace)
    for line in ("master dies", "slave daemon dies", "scheduler dies", "supervisor-1 dies"):
        assert line in trace
    assert cluster.disk.epoch > 1
