"""Why a framework waits, in words."""

from collections.abc import Sequence

from cli.output import describe_duration, describe_resources
from meseta.model import Node, WaitReasons
from meseta.resources import Resources


def describe_waiting(waiting: WaitReasons | None) -> str:
    """Return the master's reasons as one line; empty if the framework does not wait."""
    if waiting is None:
        return ""
    reasons: list[str] = []
    if waiting.no_slaves:
        reasons.append("no slave is registered")
    if waiting.suppressed_roles:
        reasons.append(f"it wants no offers for role {', '.join(waiting.suppressed_roles)}")
    if waiting.filtered_slaves:
        reasons.append(f"it has declined what {_slaves(waiting.filtered_slaves)} had free")
    if waiting.too_small_slaves:
        lack = f", the nearest lacks {describe_resources(waiting.too_small_by)}" if waiting.too_small_by else ""
        reasons.append(f"{_slaves(waiting.too_small_slaves)} had too little free{lack}")
    if waiting.lost_to_lower_share:
        share = f"its share of {waiting.role_share:.0%}"
        reasons.append(f"{waiting.lost_to_lower_share} offers went to frameworks with less than {share}")
    if not reasons:
        return ""
    return f"for {describe_duration(waiting.since_s)}: {'; '.join(reasons)}"


def describe_no_fit(wanted: Resources, nodes: Sequence[Node]) -> str:
    """Return why nothing that is free now holds `wanted`, though some slave is large enough."""
    able = [node for node in nodes if wanted <= node.total]
    active = [node for node in able if node.state == "active"]
    if not able:
        return "no slave is registered" if not nodes else "no slave is large enough"
    if not active:
        return f"{_slaves(len(able))} would be large enough and {_are(len(able))} {able[0].state}"
    nearest = min(active, key=lambda node: _distance(_missing(wanted, node), wanted))
    lack = _missing(wanted, nearest)
    if not lack:
        return f"{nearest.hostname} has enough free, an offer should come"
    return (
        f"{_slaves(len(active))} would be large enough and {_are(len(active))} in use;"
        f" the nearest lacks {describe_resources(lack)} for now"
    )


def refusal(wanted: Resources, nodes: Sequence[Node]) -> str | None:
    """Return why no slave could ever run this, None if one could (or none is known yet).

    Names the first option that asks for too much, and the most that one slave has.
    """
    if not nodes or any(wanted <= node.total for node in nodes):
        return None
    for name, amount in wanted.scalars.items():
        most = max(node.total.get(name) for node in nodes)
        if amount > most:
            asked, has = (describe_resources(Resources({name: one})) for one in (amount, most))
            return f"--{name}: {asked} is more than any slave has ({has} at most); ask for less or add a larger slave"
    text = describe_resources(wanted)
    return f"no slave has {text} together, though each alone is there; ask for less of one of them"


def _missing(wanted: Resources, node: Node) -> Resources:
    """Return what a slave lacks; what is offered to others may come back, so it counts as free."""
    return (node.total - node.used).shortfall(wanted)


def _distance(lack: Resources, wanted: Resources) -> float:
    return max((lack.get(name) / amount for name, amount in wanted.scalars.items()), default=0.0)


def _slaves(count: int) -> str:
    return "1 slave" if count == 1 else f"{count} slaves"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
