"""Access rules: who may do what, of which the first rule that matches decides. Pure; see docs/acl.md.

The master asks for every call (`master/authorizer.py`), a slave for every reader of a sandbox.
"""

import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final

import msgspec

from meseta.errors import InvalidInput
from meseta.ids import Principal

ANONYMOUS: Final = Principal("anonymous")  # Who proved no key, in a cluster that runs with --insecure.
_RULE_COUNT_LIMIT: Final = 1000  # Every call walks the rules; more belong in groups of principals with a prefix.
_ANY: Final = "*"


class Action(StrEnum):
    """What can be asked for; beside each, what its object is."""

    REGISTER_FRAMEWORK = "register_framework"  # A role.
    REGISTER_SLAVE = "register_slave"  # The slave's hostname.
    RUN_TASK = "run_task"  # The user as whom the task runs.
    KILL_TASK = "kill_task"  # The user as whom the task runs.
    ACCESS_SANDBOX = "access_sandbox"  # The user as whom the task runs.
    TEARDOWN_FRAMEWORK = "teardown_framework"  # The principal that registered the framework.
    VIEW = "view"  # One of master, nodes, frameworks, tasks.
    FOLLOW_EVENTS = "follow_events"  # events, which show as much as all of `view`.


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Matches if one pattern of each of the three does. A pattern is a text, or its beginning and `*`."""

    allow: bool
    principals: tuple[str, ...]
    actions: tuple[str, ...]
    objects: tuple[str, ...] = (_ANY,)


class Acls(msgspec.Struct, frozen=True, kw_only=True):
    """Rules in order, and whether what no rule matches is allowed."""

    default_allow: bool
    rules: tuple[Rule, ...] = ()

    def refusal(self, principal: Principal, action: Action, subject: str) -> str | None:
        """Return why `principal` may not do `action` to the object `subject`; None: it may."""
        for number, rule in enumerate(self.rules, start=1):
            if (
                _matches(rule.actions, action)
                and _matches(rule.principals, principal)
                and _matches(rule.objects, subject)
            ):
                return None if rule.allow else f"rule {number} forbids principal {principal} to {action} {subject}"
        if self.default_allow:
            return None
        return f"no rule allows principal {principal} to {action} {subject}"


def parse_acls(text: str) -> Acls:
    """Read rules from TOML; see docs/acl.md for the format.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"the rules are no TOML: {error}") from error
    _refuse_unknown("", document, ("default", "rules"))
    default = document.get("default")
    if default not in ("allow", "deny"):
        raise InvalidInput('default: write default = "allow" or default = "deny": what holds where no rule matches')
    rules = document.get("rules", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise InvalidInput("rules: write each rule under a heading [[rules]]")
    if len(rules) > _RULE_COUNT_LIMIT:
        raise InvalidInput(f"rules: {len(rules)} are over the limit of {_RULE_COUNT_LIMIT}; join some with patterns")
    return Acls(
        default_allow=default == "allow",
        rules=tuple(_parse_rule(f"rules[{number}]", rule) for number, rule in enumerate(rules, start=1)),
    )


def _matches(patterns: tuple[str, ...], text: str) -> bool:
    return any(text.startswith(pattern[:-1]) if pattern.endswith(_ANY) else pattern == text for pattern in patterns)


def _parse_rule(where: str, rule: Mapping[str, Any]) -> Rule:
    _refuse_unknown(f"{where}.", rule, ("allow", "principals", "actions", "objects"))
    allow = rule.get("allow")
    if not isinstance(allow, bool):
        raise InvalidInput(f"{where}.allow: write allow = true or allow = false")
    actions = _patterns(f"{where}.actions", rule.get("actions"), example="register_framework")
    for action in actions:
        if action != _ANY and action not in tuple(Action):
            raise InvalidInput(f"{where}.actions: {action!r} is no action{_suggestion(action, tuple(Action))}")
    return Rule(
        allow=allow,
        principals=_patterns(f"{where}.principals", rule.get("principals"), example="batch"),
        actions=actions,
        objects=_patterns(f"{where}.objects", rule.get("objects", [_ANY]), example="eng/*"),
    )


def _patterns(field: str, value: object, *, example: str) -> tuple[str, ...]:
    """Return a list of patterns. A `*` within a text would be read as itself, which nobody means."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise InvalidInput(f'{field}: write a list of texts, as ["{example}"], or ["*"] for any')
    for item in value:
        if _ANY in item[:-1]:
            raise InvalidInput(f"{field}: {item!r} has * before its end; only a beginning followed by * is a pattern")
    return tuple(value)


def _refuse_unknown(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in table:
        if name not in known:
            raise InvalidInput(f"{where}{name}: no such field{_suggestion(name, known)}")


def _suggestion(name: str, known: Iterable[str]) -> str:
    choices = list(known)
    close = get_close_matches(name, choices, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(choices)}"
