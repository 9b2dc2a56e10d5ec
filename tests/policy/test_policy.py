"""Policies: which layer gets what, TOML there and back, and what is said of a policy that cannot be meant."""

from pathlib import Path

import pytest

import fxdecomp
from fxdecomp import VBMF, Energy, Fixed, Policy, PolicyError, Ratio, Rule
from fxdecomp.policy.rules import Selection

FULL_POLICY = Policy(
    method="tucker2",
    rank=VBMF(),
    rules=[
        Rule("classifier.*", method="svd", rank=Energy(0.9)),
        Rule("features.0"),
        Rule('odd "name"\\.*', method="cp", rank=7),
        Rule("features.3", method="tucker2", rank=(8, 4)),
        Rule("features.6", method="spatial_svd", rank=Ratio(1 / 3, multiple_of=16)),
    ],
    exclude=["head.*"],
    require_saving=False,
)


@pytest.mark.parametrize(
    "policy",
    [FULL_POLICY, Policy("cp"), Policy(rules=[Rule("a", "svd", 3)]), Policy("tucker2", 0.25, exclude=("x",))],
)
def test_toml_goes_round(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy.toml")
    assert Policy.load(tmp_path / "policy.toml") == policy
    assert Policy.from_dict(policy.to_dict()) == policy


def test_what_a_hand_written_file_may_say(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        """
        method = "tucker2"
        rank = 0.5
        exclude = ["stem.*"]
        [[rules]]
        pattern = "head"
        method = "svd"
        rank = { rule = "energy", share = 0.9 }
        [[rules]]
        pattern = "body.*"
        method = "tucker2"
        rank = [8, 4]
        """
    )
    assert Policy.load(path) == Policy(
        method="tucker2",
        rank=Ratio(0.5),
        exclude=("stem.*",),
        rules=[Rule("head", "svd", Energy(0.9)), Rule("body.*", "tucker2", Fixed((8, 4)))],
    )


def test_selection_by_rule_by_default_and_by_exclusion() -> None:
    assert FULL_POLICY.select("classifier.3") == Selection("svd", Energy(0.9))
    assert FULL_POLICY.select("features.0") is None
    assert FULL_POLICY.select("head.1") is None
    assert FULL_POLICY.select("anything") == Selection("tucker2", VBMF())
    assert Policy(rules=[Rule("a", "svd", 3)]).select("b") is None


def test_two_rules_that_agree_do_not_conflict() -> None:
    policy = Policy(rules=[Rule("a.*", "svd", 3), Rule("*.b", "svd", 3)])
    assert policy.select("a.b") == Selection("svd", Fixed(3))


def test_rules_and_exclusions_may_be_any_iterable() -> None:
    names = ("head", "stem")
    policy = Policy("svd", rules=(Rule(name) for name in names), exclude=(name for name in names))
    assert policy == Policy("svd", rules=[Rule("head"), Rule("stem")], exclude=["head", "stem"])
    assert policy.exclude == names


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Policy, "the policy decomposes nothing; give it a method, or rules with methods"),
        (lambda: Policy(rank=3), "the policy has a rank but no method; add method='tucker2', or another"),
        (lambda: Rule("a", rank=3), "rule 'a' has a rank but no method; add method='tucker2', or another"),
        (lambda: Rule(""), "a rule needs a pattern, such as 'classifier.*'"),
        (lambda: Policy("tucker"), "there is no method 'tucker'; use tucker2"),
        (lambda: Policy("spacial_svd"), "there is no method 'spacial_svd'; use spatial_svd"),
        (lambda: Policy("xyz"), "there is no method 'xyz'; use one of svd, tucker2, cp"),
        (lambda: Policy("svd", 0), "a fixed rank is made of positive whole numbers, got 0"),
        (lambda: Policy("svd", -3), "a fixed rank is made of positive whole numbers, got -3"),
        (lambda: Policy("svd", (4, 0)), "a fixed rank is made of positive whole numbers, got (4, 0)"),
        (lambda: Policy("svd", ()), "a fixed rank is made of positive whole numbers, got ()"),
        (lambda: Policy("svd", True), "a fixed rank is made of positive whole numbers, got True"),
        (lambda: Policy("svd", 0.0), "a share of the channels lies in (0, 1], got 0.0"),
        (lambda: Policy("svd", 1.5), "a share of the channels lies in (0, 1], got 1.5"),
        (lambda: Policy("svd", float("nan")), "a share of the channels lies in (0, 1], got nan"),
        (lambda: Policy("svd", "half"), "rank 'half'"),
        (lambda: Policy("svd", [4, 4]), "rank [4, 4]"),
        (lambda: Policy(5), "a method is a name"),
        (lambda: Policy("svd", rules="classifier"), "rules is a list of Rule objects"),
        (lambda: Policy("svd", exclude="head.*"), "exclude is a list of patterns"),
        (lambda: Policy("svd", exclude=(name for name in ("head", 5))), "exclude is a list of patterns"),
        (lambda: Policy("svd", rules=Rule("a")), "rules is a list of Rule objects"),
        (lambda: Rule(5), "a rule needs a pattern, such as 'classifier.*', got 5"),
        (lambda: Rule("a", "auto", floor="much"), "rule 'a' has the floor 'much'; wanted a share"),
    ],
)
def test_a_policy_that_cannot_be_meant(make: object, text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        make()
    assert text in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        ("method = ", ": not valid TOML: Invalid value (at end of document)"),
        ('method = "tucker"\n', ":1: there is no method 'tucker'; use tucker2"),
        ('\nmethd = "svd"\n', ":2: a policy has no key 'methd'; it takes budget, exclude, made_up"),
        (
            'method = "svd"\n[[rules]]\npatern = "a"\n',
            ":3: a rule has no key 'patern'; it takes floor, method, pattern",
        ),
        ('method = "svd"\n[[rules]]\nmethod = "svd"\n', ": a rule needs the key 'pattern'"),
        ('method = "svd"\nrank = "big"\n', ":2: rank 'big' is neither a number, a list nor a table"),
        ('method = "svd"\nrank = { rule = "vbm" }\n', ":2: there is no rank rule 'vbm'; use one of fixed"),
        ('method = "svd"\nrank = { rule = "energy", shar = 0.9 }\n', ":2: rank rule 'energy' takes"),
        ('method = "svd"\nrank = 0\n', ": a fixed rank is made of positive whole numbers, got 0"),
        ('method = "svd"\nrules = 3\n', "rules"),
        ('method = "svd"\nrequire_saving = "no"\n', ":2: require_saving"),
        ('method = "svd"\nexclude = "head"\n', ":2: exclude"),
        ('method = "svd"\nexclude = 5\n', ":2: exclude is a list of patterns, got 5"),
        ('budget = "macs:0.5"\n', ":1: budget is a table such as { budget = 'macs', target = 0.5 }, got"),
        (
            '# a share\nmethod = "svd"\nrank = 2.0\n',
            "policy.toml: a share of the channels lies in (0, 1], got",
        ),
        ("method = 3\n", "the policy: a method is a name such as 'tucker2', got 3"),
    ],
)
def test_a_malformed_file_is_named_with_line_and_key(toml: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(toml)
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert text in message, message
    assert "\n" not in message


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"none\.toml: cannot be read \(No such file or directory\)"):
        Policy.load(tmp_path / "none.toml")


def test_the_methods_that_messages_offer_exist() -> None:
    assert fxdecomp.Policy("tucker2").method == "tucker2"
