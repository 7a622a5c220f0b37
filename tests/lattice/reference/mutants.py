"""Does the comparison have teeth? Small wrong changes to the product, one at a time, each of which has to be found.

A mutant is made from the module's source: the changed text is compiled, and the code of its functions is put in the
place of the product's for as long as the mutant lives.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from .compare import compare


class Mutant(NamedTuple):
    """`old` becomes `new` at its first place in the module."""

    module: str
    old: str
    new: str
    what: str


MUTANTS = (
    Mutant("decision", "now - context.started_ns < ready.lasts_ns", "now - context.started_ns <= ready.lasts_ns",
           "the window is one nanosecond longer"),
    Mutant("decision", "ready.starts_ns <= now < ready.ends_ns", "ready.starts_ns - 1 <= now < ready.ends_ns",
           "the window begins a nanosecond early"),
    Mutant("decision", ">= ready.floor\n", ">= ready.floor - 1\n", "one rung below the floor will do"),
    Mutant("decision", "if write and touchy is not None", "if not write and touchy is not None",
           "protected names are written"),
    Mutant("decision", "and not (search and found[1] == \"paths.allow\")", "and not (search or found[1] == \"\")",
           "a search starts in blocked directories"),
    Mutant("decision", "elif glob is not None and case.low_risk(capability)", "elif glob is None",
           "sensitive paths do not ask"),
    Mutant("decision", "any(hosts.find(host) is None for hosts", "all(hosts.find(host) is None for hosts",
           "one list of hosts is enough"),
    Mutant("decision", "if (line := caught(ready.deny, program, args)) is not None:",
           "if program == command.layers[0].program and (line := caught(ready.deny, program, args)) is not None:",
           "deny rules do not look behind wrappers"),
    Mutant("decision", "not (rule.group and (command.flags or rule.group == STRINGS))", "True",
           "a set allows flagged commands"),
    Mutant("decision", "and all(is_listed((rules,), part) for part in found.parts)", "",
           "a shell string runs what is not listed"),
    Mutant("decision", "any(rule.group == STRINGS for rule, _ in rules.of(plain.program))",
           "bool(rules.of(plain.program))", "a policy without shell strings has them"),
    Mutant("decision", "if not listed and command.credentials:", "if False:", "credentials ask"),
    Mutant("decision", "if command.runs_code and case.context.egress", "if command.runs_code and False",
           "code runs with egress"),
    Mutant("decision", "operation.method not in (\"GET\", \"HEAD\") or operation.body", "operation.body",
           "a DELETE is low risk"),
    Mutant("decision", "rule.legs & trifecta.OUTWARD:", "rule.legs & cap.EXFILTRATION:",
           "a tool's change of state is low risk"),
    Mutant("decision", "outside = case.ready.tools | context.seen.bits()", "outside = case.ready.tools",
           "static forgets what was seen, for tools"),
    Mutant("identities", "spiffe_id.startswith(pattern[:-1])", "spiffe_id.startswith(pattern[:-2])",
           "a prefix ends within a name"),
    Mutant("identities", "(pattern == OWN and own)", "own", "the pod's own is on every list"),
    Mutant("identities", "(pattern == OWN and own)", "pattern == OWN", "everybody is the pod's own"),
    Mutant("decision", "for patterns in lists:\n", "for patterns in lists[:1]:\n", "one list of callers is enough"),
    Mutant("decision", "        _caller(case, \"tools\")", "        pass", "whoever calls has every tool"),
    Mutant("decision", "if rule.level == cap.NEVER:", "if rule.level == cap.NEVER and not rule.approve:",
           "a tool that is never allowed asks"),
    Mutant("decision", "for name in needed:\n        _attended", "for name in needed[:1]:\n        _attended",
           "a push in a command is not attended"),
    Mutant("decision", "if obligation not in self.obligations:", "if not self.obligations:",
           "one obligation stands for all"),
    Mutant("trifecta", "(bool(seen.private) and _says_more(operation.url))", "False",
           "a query carries nothing out"),
    Mutant("trifecta", "return _PROGRAM if egress else INWARD", "return _COMMAND if egress else INWARD",
           "a program with egress reads nothing itself"),
    Mutant("trifecta", "private = bool(seen.private) or bool(what.legs & cap.PRIVATE)",
           "private = bool(seen.private)", "what a tool reads itself does not count"),
    Mutant("trifecta", "(operation.remote, *ref)", "(operation.remote,)", "the ref of a push need not be known"),
    Mutant("trifecta", "if not what.destinations:", "if what.destinations is None:",
           "what names no destination does not ask"),
    Mutant("trifecta", "for name in rule.destination for", "for name in rule.destination[:1] for",
           "only the first declared argument counts"),
    Mutant("trifecta", "knowledge.unknown(what.destinations)", "knowledge.unknown(what.destinations[-1:])",
           "only the last destination counts"),
    Mutant("provenance", "[f\" {whole} \"]", "[whole]", "a part of a word is known"),
    Mutant("provenance", "word.lstrip(_MARK) if word.count(\"@\") < 2 else word", "word.strip(_MARK)",
           "marks at the end are bent too"),
    Mutant("provenance", "said = [f\" {noun} {whole} \" for noun in _NUMBERED] if whole.isdigit() else",
           "said =", "a date names a number"),
    Mutant("provenance", "return f\"{host}{slash}{path}\" if path else host", "return host",
           "a host makes all its paths known"),
    Mutant("provenance", "if scheme == \"https\" else \":80\"", "if scheme else \":80\"", "a port is bent"),
    Mutant("provenance", "elif isinstance(item, list | tuple):\n            stack += item",
           "elif isinstance(item, list | tuple):\n            stack += item[:1]", "a list's first item is enough"),
    Mutant("capability", "& (_any_enabled(a, with_legs.untrusted) | (outside >> 1))", "& (outside >> 1)",
           "untrusted capabilities are no leg"),
    Mutant("policy", "if rule.name == exact:\n            return rule",
           "if rule.name == exact:\n            found = rule",
           "the star beats the exact name"),
    Mutant("policy", "return not tail", "return True", "rest: none admits anything"),
    Mutant("paths", "_within(character.upper(), ranges))) != negated:",
           "_within(character.upper(), ranges))):", "[!a] is [a]"),
    Mutant("paths", "if slash:\n                new |= (state & self.dirs_inside) >> 1\n            else:",
           "if True:", "a star crosses directories"),
    Mutant("compiled", "found = [host] if host in lines else []", "found = [host] if f\"*.{host}\" in lines else []",
           "*.parent names the parent"),
)  # fmt: skip
SEEDS, CASES = range(900, 920), 5000


def functions(holder: Any, name: str) -> dict[str, types.FunctionType]:
    """Every function and method that a module or class defines itself."""
    found: dict[str, types.FunctionType] = {}
    for value in vars(holder).values():
        value = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, types.FunctionType) and value.__module__ == name:
            found[f"{value.__qualname__}"] = value
        elif isinstance(value, type) and value.__module__ == name:
            found |= functions(value, name)
    return found


@contextmanager
def living(mutant: Mutant) -> Iterator[None]:
    """The product with one wrong change."""
    name = f"nucleus.lattice.{mutant.module}"
    module = importlib.import_module(name)
    source = inspect.getsource(module)
    if mutant.old not in source:
        raise LookupError(f"{mutant.module} has changed, and the mutant {mutant.what!r} has to follow")
    changed = types.ModuleType(name)
    changed.__dict__["__file__"] = module.__file__
    exec(compile(source.replace(mutant.old, mutant.new, 1), str(module.__file__), "exec"), changed.__dict__)
    ours, theirs = functions(module, name), functions(changed, name)
    before = {key: function.__code__ for key, function in ours.items()}
    try:
        for key, function in ours.items():
            function.__code__ = theirs[key].__code__
        yield
    finally:
        for key, code in before.items():
            ours[key].__code__ = code


def found(mutant: Mutant) -> int:
    """After how many cases the mutant is found; 0 where it is not."""
    cases = 0
    with living(mutant):
        for seed in SEEDS:
            tally = compare(seed, CASES, stop=True)
            cases += tally.cases
            if tally.disagreements:
                return cases
    return 0
