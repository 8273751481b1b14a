"""Rules: the first match wins, and a mistake in their file is named."""

from pathlib import Path

import msgspec
import pytest

from master.authorizer import Authorizer
from meseta.acls import Acls, Action, parse_acls
from meseta.errors import InvalidInput
from meseta.ids import Principal

BATCH = Principal("batch")
OPERATOR = Principal("operator")
RULES = """
default = "deny"
[[rules]]
principals = ["batch"]
actions = ["run_task"]
objects = ["root"]
allow = false
[[rules]]
principals = ["batch", "ml-*"]
actions = ["run_task", "register_framework"]
objects = ["*"]
allow = true
[[rules]]
principals = ["ops-*"]
actions = ["*"]
allow = true
[[rules]]
principals = ["eng"]
actions = ["register_framework"]
objects = ["eng/*"]
allow = true
"""


@pytest.mark.parametrize("action", list(Action))
def test_without_rules_a_key_of_the_cluster_may_do_all(action: Action) -> None:
    assert Authorizer(None).authorize(OPERATOR, action, "anything") is None


@pytest.mark.parametrize("principal", ["", "anonymous"])
def test_who_proved_no_key_may_do_nothing(principal: str) -> None:
    allow_all = Acls(default_allow=True)
    for acls in (None, allow_all):
        refusal = Authorizer(acls).authorize(Principal(principal), Action.VIEW, "nodes")
        assert refusal == "view needs a key of this cluster"


def test_anonymous_may_do_all_in_an_insecure_cluster_without_rules() -> None:
    authorizer = Authorizer(None, is_insecure=True)
    assert authorizer.authorize(Principal("anonymous"), Action.REGISTER_SLAVE, "h1") is None


def test_rules_apply_to_anonymous_in_an_insecure_cluster() -> None:
    authorizer = Authorizer(parse_acls(RULES), is_insecure=True)
    assert authorizer.authorize(Principal("anonymous"), Action.REGISTER_SLAVE, "h1") is not None


@pytest.mark.parametrize("is_insecure", [False, True])
def test_keys_of_tasks_may_do_nothing_at_the_master(is_insecure: bool) -> None:
    for acls in (None, Acls(default_allow=True)):
        authorizer = Authorizer(acls, is_insecure=is_insecure)
        refusal = authorizer.authorize(Principal("framework:f-1"), Action.VIEW, "tasks")
        assert refusal is not None
        assert "framework:f-1 is the key of a framework's tasks" in refusal


@pytest.mark.parametrize(
    ("principal", "action", "subject", "refusal"),
    [
        ("batch", Action.RUN_TASK, "root", "rule 1 forbids principal batch to run_task root"),
        ("batch", Action.RUN_TASK, "alice", None),
        ("ml-7", Action.RUN_TASK, "root", None),
        ("ml", Action.RUN_TASK, "root", "no rule allows principal ml to run_task root"),
        ("ops-eve", Action.TEARDOWN_FRAMEWORK, "batch", None),
        ("eng", Action.REGISTER_FRAMEWORK, "eng/backend", None),
        ("eng", Action.REGISTER_FRAMEWORK, "eng", "no rule allows principal eng to register_framework eng"),
        ("Batch", Action.RUN_TASK, "alice", "no rule allows principal Batch to run_task alice"),
    ],
)
def test_the_first_rule_that_matches_decides(principal: str, action: Action, subject: str, refusal: str | None) -> None:
    assert Authorizer(parse_acls(RULES)).authorize(Principal(principal), action, subject) == refusal


def test_where_no_rule_matches_the_default_decides() -> None:
    allowing = Authorizer(parse_acls('default = "allow"'))
    assert allowing.authorize(BATCH, Action.KILL_TASK, "alice") is None
    denying = Authorizer(parse_acls('default = "deny"'))
    assert denying.authorize(BATCH, Action.KILL_TASK, "alice") is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default = allow", "no TOML"),
        ("", "default: write default"),
        ('default = "yes"', "default: write default"),
        ('default = "deny"\nrule = []', "rule: no such field; did you mean rules\\?"),
        ('default = "deny"\nrules = 3', "rules: write each rule under a heading"),
        (RULES.replace("objects", "object", 1), "rules\\[1\\].object: no such field; did you mean objects\\?"),
        (RULES.replace("allow = false", 'allow = "no"'), "rules\\[1\\].allow: write allow = true"),
        (RULES.replace("run_task", "run_tasks", 1), "'run_tasks' is no action; did you mean run_task\\?"),
        (RULES.replace('["batch"]', '"batch"', 1), "rules\\[1\\].principals: write a list of texts"),
        (RULES.replace('["batch"]', "[]", 1), "rules\\[1\\].principals: write a list of texts"),
        (RULES.replace('["root"]', '["r*t"]', 1), "rules\\[1\\].objects: 'r\\*t' has \\* before its end"),
        (RULES.replace('["run_task"]', '["run_*"]', 1), "rules\\[1\\].actions: 'run_\\*' is no action"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_remedy(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_acls(text)


def test_the_documented_example_is_valid() -> None:
    page = Path(__file__).parents[2] / "docs" / "acl.md"
    example = page.read_text().split("```toml\n")[1].split("```")[0]
    authorizer = Authorizer(parse_acls(example))
    assert authorizer.authorize(Principal("slave"), Action.REGISTER_SLAVE, "h1") is None
    assert authorizer.authorize(BATCH, Action.RUN_TASK, "root") is not None
    assert authorizer.authorize(BATCH, Action.RUN_TASK, "alice") is None
    assert authorizer.authorize(OPERATOR, Action.TEARDOWN_FRAMEWORK, "batch") is None


def test_every_action_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "acl.md").read_text()
    assert [action for action in Action if f"| `{action}` |" not in page] == []


def test_rules_survive_a_recording() -> None:
    acls = parse_acls(RULES)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(acls), type=Acls) == acls
