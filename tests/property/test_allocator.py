"""The allocator against a plain model: after any history, each offer goes to who has the lowest share.

The model keeps dictionaries and lists, looks at every pair of client and slave, and computes shares
as fractions. It cannot foretell which slave chance picks; it judges each allocation in its turn.
"""

import random
from dataclasses import dataclass, field
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from master.allocator import Allocation, Allocator, AllocatorConfig
from meseta.ids import FrameworkId, SlaveId
from meseta.resources import Resources, sum_resources

SLAVES = [SlaveId(f"s{index}") for index in range(5)]
FRAMEWORKS = [FrameworkId(f"f{index}") for index in range(5)]
ROLES = ("*", "ads", "web")
CONFIG = AllocatorConfig(min_refuse_s=1.0, min_cpus_milli=500, min_mem_milli=64_000)

Client = tuple[FrameworkId, str]

amounts = st.builds(
    lambda cpus, mem, gpus, ports: Resources(
        {"cpus": cpus * 500, "mem": mem * 32_000, "gpus": gpus * 1000}, {"ports": ((0, ports),)} if ports else {}
    ),
    st.integers(0, 12),
    st.integers(0, 12),
    st.sampled_from((0, 0, 0, 1, 2)),
    st.sampled_from((0, 3, 9)),
)
role_sets = st.lists(st.sampled_from(ROLES), min_size=1, max_size=3, unique=True).map(tuple)


@dataclass
class ModelSlave:
    """A slave as the model sees it."""

    total: Resources
    is_active: bool = True
    held: dict[Client, Resources] = field(default_factory=dict)
    filters: list[tuple[Client, Resources, float]] = field(default_factory=list)

    def allocated(self) -> Resources:
        """Return all that is held."""
        return sum_resources(list(self.held.values()))

    def free(self) -> Resources:
        """Return what is left of the total."""
        return self.allocated().shortfall(self.total)

    def is_worth_offering(self) -> bool:
        """Say if there is enough for the smallest offer."""
        free = self.free()
        return free.get("cpus") >= CONFIG.min_cpus_milli or free.get("mem") >= CONFIG.min_mem_milli

    def refuses(self, client: Client, now: float) -> bool:
        """Say if a filter bars the client."""
        free = self.free()
        return any(who == client and until > now and free <= refused for who, refused, until in self.filters)

    def take(self, client: Client, resources: Resources) -> None:
        """Let a client hold more."""
        if resources:
            self.held[client] = self.held.get(client, Resources()) + resources

    def give_back(self, client: Client, resources: Resources) -> None:
        """Let a client hold less."""
        self.held[client] = self.held[client] - resources
        if not self.held[client]:
            del self.held[client]


@dataclass
class ModelFramework:
    """A framework as the model sees it."""

    roles: tuple[str, ...]
    suppressed: set[str]
    is_active: bool = True


class AllocatorAgainstModel(RuleBasedStateMachine):
    """Random histories; every rule is followed by all the checks."""

    @initialize(seed=st.integers(0, 9))
    def start(self, seed: int) -> None:
        """Begin with nothing."""
        self.allocator = Allocator(CONFIG, random.Random(seed))
        self.now = 0.0
        self.slaves: dict[SlaveId, ModelSlave] = {}
        self.frameworks: dict[FrameworkId, ModelFramework] = {}
        self.weights: dict[str, Fraction] = {}

    @rule(slave=st.sampled_from(SLAVES), total=amounts, user=st.sampled_from(FRAMEWORKS), role=st.sampled_from(ROLES))
    def add_slave(self, slave: SlaveId, total: Resources, user: FrameworkId, role: str) -> None:
        """Half of the cpus are in use."""
        if slave not in self.slaves:
            used = Resources({"cpus": total.get("cpus") // 1000 * 500})
            self.slaves[slave] = ModelSlave(total)
            self.slaves[slave].take((user, role), used)
            self.allocator.add_slave(slave, total, {user: {role: used}}, self.now)

    @rule(slave=st.sampled_from(SLAVES))
    def remove_slave(self, slave: SlaveId) -> None:
        """With all that is held there."""
        if self.slaves.pop(slave, None):
            self.allocator.remove_slave(slave, self.now)

    @rule(slave=st.sampled_from(SLAVES), total=amounts)
    def update_total(self, slave: SlaveId, total: Resources) -> None:
        """It may shrink below what is held."""
        if slave in self.slaves:
            self.slaves[slave].total = total
            self.allocator.update_total(slave, total, self.now)

    @rule(slave=st.sampled_from(SLAVES), is_active=st.booleans())
    def set_slave_active(self, slave: SlaveId, is_active: bool) -> None:
        """Only active slaves are offered."""
        if slave in self.slaves:
            self.slaves[slave].is_active = is_active
            self.allocator.set_slave_active(slave, is_active=is_active, now=self.now)

    @rule(who=st.sampled_from(FRAMEWORKS), roles=role_sets, suppressed=st.lists(st.sampled_from(ROLES), max_size=1))
    def add_framework(self, who: FrameworkId, roles: tuple[str, ...], suppressed: list[str]) -> None:
        """Also with other roles than before: filters of a role that it leaves and holds nothing in are forgotten."""
        self.frameworks[who] = ModelFramework(roles, set(suppressed))
        for role in ROLES:
            if role not in roles and not any((who, role) in slave.held for slave in self.slaves.values()):
                self.drop_filters((who, role))
        self.allocator.add_framework(who, roles, tuple(suppressed), self.now)

    @rule(who=st.sampled_from(FRAMEWORKS))
    def remove_framework(self, who: FrameworkId) -> None:
        """All that it holds returns, even if it was never registered."""
        self.frameworks.pop(who, None)
        for role in ROLES:
            self.drop_filters((who, role))
            for slave in self.slaves.values():
                slave.held.pop((who, role), None)
        self.allocator.remove_framework(who, self.now)

    @rule(who=st.sampled_from(FRAMEWORKS), is_active=st.booleans())
    def set_framework_active(self, who: FrameworkId, is_active: bool) -> None:
        """Its filters end when it becomes inactive."""
        if who in self.frameworks:
            if self.frameworks[who].is_active and not is_active:
                for role in ROLES:
                    self.drop_filters((who, role))
            self.frameworks[who].is_active = is_active
            self.allocator.set_framework_active(who, is_active=is_active, now=self.now)

    @rule(who=st.sampled_from(FRAMEWORKS), roles=st.lists(st.sampled_from(ROLES), max_size=2).map(tuple))
    def suppress(self, who: FrameworkId, roles: tuple[str, ...]) -> None:
        """No roles named: all."""
        if who in self.frameworks:
            self.frameworks[who].suppressed |= set(roles or self.frameworks[who].roles)
            self.allocator.suppress(who, roles, self.now)

    @rule(who=st.sampled_from(FRAMEWORKS), roles=st.lists(st.sampled_from(ROLES), max_size=2).map(tuple))
    def revive(self, who: FrameworkId, roles: tuple[str, ...]) -> None:
        """No roles named: all."""
        if who in self.frameworks:
            for role in roles or self.frameworks[who].roles:
                self.frameworks[who].suppressed.discard(role)
                self.drop_filters((who, role))
            self.allocator.revive(who, roles, self.now)

    @rule(role=st.sampled_from(ROLES), weight=st.sampled_from((0.001, 0.5, 1.0, 1.5, 3.0)))
    def set_weight(self, role: str, weight: float) -> None:
        """Also of a role without frameworks."""
        self.weights[role] = Fraction(round(weight * 1000), 1000)
        self.allocator.set_weight(role, weight, self.now)

    @rule(slave=st.sampled_from(SLAVES), who=st.sampled_from(FRAMEWORKS), role=st.sampled_from(ROLES), amount=amounts)
    def charge(self, slave: SlaveId, who: FrameworkId, role: str, amount: Resources) -> None:
        """Scalars may exceed what is free; ports held twice are refused."""
        if slave not in self.slaves:
            return
        try:
            self.slaves[slave].allocated() + amount
        except ValueError:
            try:
                self.allocator.charge(who, role, slave, amount, self.now)
            except ValueError:
                return
            raise AssertionError("ports are held twice") from None
        self.slaves[slave].take((who, role), amount)
        self.allocator.charge(who, role, slave, amount, self.now)

    @precondition(lambda self: any(slave.held for slave in self.slaves.values()))
    @rule(data=st.data(), is_part=st.booleans(), refuse_s=st.sampled_from((None, 0.0, 0.25, 1.0, 5.0, 40.0)))
    def recover(self, data: st.DataObject, is_part: bool, refuse_s: float | None) -> None:
        """All or half of what someone holds on a slave comes back, refused or not."""
        held = [(name, client) for name, slave in self.slaves.items() for client in slave.held]
        name, client = data.draw(st.sampled_from(held))
        slave = self.slaves[name]
        resources = slave.held[client]
        if is_part:
            resources = Resources({key: amount // 2 for key, amount in resources.scalars.items()}, resources.ranges)
        if resources:
            slave.give_back(client, resources)
            who, role = client
            if refuse_s is not None and who in self.frameworks:
                slave.filters.append((client, resources, self.now + max(refuse_s, CONFIG.min_refuse_s)))
            is_wanted = who in self.frameworks and role in self.frameworks[who].roles
            if not is_wanted and not any(client in one.held for one in self.slaves.values()):
                self.drop_filters(client)
        self.allocator.recover(client[0], client[1], name, resources, self.now, refuse_s=refuse_s)

    @rule(passed_s=st.sampled_from((0.0, 0.0, 1.0, 4.0, 30.0)))
    def allocate(self, passed_s: float) -> None:
        """Each allocation goes to the lowest; in the end nobody could be offered more."""
        self.now += passed_s
        for allocation in self.allocator.allocate(self.now):
            self.judge(allocation)
        assert not self.eligible(), f"not offered: {self.eligible()}"
        deadline = self.allocator.next_deadline()
        assert deadline is None or deadline > self.now
        self.judge_waiting()

    def judge(self, allocation: Allocation) -> None:
        """Refuse an allocation that the rules do not give, and carry out one that they do."""
        client = (allocation.framework_id, allocation.role)
        slave = self.slaves[allocation.slave_id]
        eligible = self.eligible()
        assert allocation.slave_id in eligible.get(client, [])
        assert allocation.resources == slave.free()
        roles = {role for _, role in eligible}
        assert self.role_share(client[1]) == min(self.role_share(role) for role in roles)
        rivals = [rival for rival in eligible if rival[1] == client[1]]
        assert self.share(client) == min(self.share(rival) for rival in rivals)
        slave.take(client, allocation.resources)

    def judge_waiting(self) -> None:
        """The reasons count what the model counts."""
        for who, framework in self.frameworks.items():
            reasons = self.allocator.waiting(who, self.now)
            wanting = [(who, role) for role in framework.roles if role not in framework.suppressed]
            offerable = [slave for slave in self.slaves.values() if slave.is_active and slave.is_worth_offering()]
            filtered = [one for one in offerable if wanting and all(one.refuses(each, self.now) for each in wanting)]
            assert reasons.filtered_slaves == len(filtered)
            assert set(reasons.suppressed_roles) == framework.suppressed & set(framework.roles)
            assert reasons.no_slaves == (not self.slaves)
            active = [slave for slave in self.slaves.values() if slave.is_active]
            assert reasons.too_small_slaves == len(active) - len(offerable)

    def eligible(self) -> dict[Client, list[SlaveId]]:
        """Return who could be offered which slaves."""
        result: dict[Client, list[SlaveId]] = {}
        for who, framework in self.frameworks.items():
            for role in framework.roles:
                client = (who, role)
                if framework.is_active and role not in framework.suppressed:
                    slaves = [
                        name
                        for name, slave in self.slaves.items()
                        if slave.is_active and slave.is_worth_offering() and not slave.refuses(client, self.now)
                    ]
                    if slaves:
                        result[client] = slaves
        return result

    def held(self, clients: list[Client]) -> Resources:
        """Return what clients hold in sum; ports do not count in shares."""
        pieces = [slave.held[client] for slave in self.slaves.values() for client in clients if client in slave.held]
        return sum_resources([Resources(piece.scalars) for piece in pieces])

    def dominant(self, held: Resources) -> Fraction:
        """Return the dominant share."""
        total = sum_resources([Resources(slave.total.scalars) for slave in self.slaves.values()])
        return max((Fraction(held.get(name), amount) for name, amount in total.scalars.items()), default=Fraction(0))

    def share(self, client: Client) -> Fraction:
        """Return a client's dominant share."""
        return self.dominant(self.held([client]))

    def role_share(self, role: str) -> Fraction:
        """Return a role's weighted dominant share."""
        return self.dominant(self.held([(who, role) for who in FRAMEWORKS])) / self.weights.get(role, 1)

    def drop_filters(self, client: Client) -> None:
        """Forget what a client refused."""
        for slave in self.slaves.values():
            slave.filters = [one for one in slave.filters if one[0] != client]

    @invariant()
    def accounts_agree(self) -> None:
        """Held and free are those of the model, and all indices agree."""
        self.allocator.check()
        for name, slave in self.slaves.items():
            assert self.allocator.available(name) == slave.free()
            assert self.allocator.allocated(name) == slave.allocated()

    @invariant()
    def deadline_covers_filters(self) -> None:
        """No filter that suppresses anything ends unnoticed."""
        ends = [until for slave in self.slaves.values() for *_, until in slave.filters if until > self.now]
        deadline = self.allocator.next_deadline()
        if ends:
            assert deadline is not None
            assert deadline <= min(ends)


TestAllocatorAgainstModel = AllocatorAgainstModel.TestCase
TestAllocatorAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
