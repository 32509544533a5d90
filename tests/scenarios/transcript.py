"""How is a scenario read and played? A small language for what happens to one partition.

A transcript is blocks: a command, a line `----`, and what the engine then says, up to an empty line. Lines that begin
with `#` are kept and say why. Times are milliseconds after the beginning; `key=value` gives a field of the record as
the wire names it, where a bare word is a text, and JSON is JSON.

    partition [setting=value ...]                  an empty partition (0 of `partitions`) with these settings
    at T started|touched|refreshed|elevated|closed SESSION [field=value ...]
    at T packed SESSION[,age_ms=..][,since_ms=..][,pause_ms=..][,subject=..][,tenant=..] ...
    at T forwarded KIND SESSION from=P/OFFSET[/INDEX] stamp=T [field=value ...]
    at T tick [field=value ...]                    a tick of an owner whose ticks are acknowledged at once
    ticks T [every=1000]                           such ticks from now on, the last one at T
    at T revoke ID at=T TARGET=VALUE ...           the owner's copy of a revocation
    at T policy NAME version=V [limit=value ...]   the owner's copy of a policy; limits not named are none
    at T raw TEXT                                  a value as it is
    state                                          who is live, and what is next
    checkpoint                                     the engine's changes go to the state topic
    crash                                          the engine is lost; a new one reads the state, and the log again
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from lapse.pipeline.engine import Effects, PartitionEngine

from tests.engine.records import (
    T0,
    JsonObject,
    Partition,
    closed,
    elevated,
    entry,
    packed,
    policy_adopted,
    refreshed,
    revocation_ordered,
    started,
    touched,
)

__all__ = ["Block", "Player", "parse", "render"]

SEPARATOR = "----"
NOTHING = "nothing"
_MAKE = {"started": started, "touched": touched, "refreshed": refreshed, "elevated": elevated, "closed": closed}
_WORD = re.compile(r"\S+")


@dataclass(slots=True)
class Block:
    """One command of a transcript.

    Attributes:
        before: the comment and empty lines above it.
        command: the command, one line.
        said: the lines that the engine is expected to answer.
        line: where the command stands, counted from 1.
    """

    before: list[str]
    command: str
    said: list[str]
    line: int


def parse(text: str) -> list[Block]:
    """Return the blocks of a transcript."""
    blocks: list[Block] = []
    before: list[str] = []
    lines = text.split("\n")
    n = 0
    while n < len(lines):
        line = lines[n]
        n += 1
        if not line or line.startswith("#"):
            before.append(line)
            continue
        block = Block(before, line, [], n)
        before = []
        if n < len(lines) and lines[n] == SEPARATOR:
            n += 1
            while n < len(lines) and lines[n]:
                block.said.append(lines[n])
                n += 1
        blocks.append(block)
    if any(line for line in before):
        blocks.append(Block(before, "", [], n))
    return blocks


def render(blocks: list[Block]) -> str:
    """Return the text of a transcript."""
    lines: list[str] = []
    for block in blocks:
        lines += block.before
        if block.command:
            lines += [block.command, SEPARATOR, *block.said]
    return "\n".join(lines).rstrip("\n") + "\n"


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _fields(words: list[str]) -> JsonObject:
    pairs = [word.partition("=") for word in words]
    bad = [key for key, equals, _ in pairs if not equals]
    if bad:
        raise ValueError(f"not key=value: {' '.join(bad)}")
    return {key: _value(value) for key, _, value in pairs}


@dataclass(slots=True)
class Player:
    """Plays commands on an engine, with the oracle beside it."""

    partition: Partition = field(default_factory=Partition)
    state: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def play(self, command: str) -> list[str]:
        """Play one command and return what the engine says."""
        words = _WORD.findall(command)
        if words[0] == "partition":
            self.partition, self.state = Partition(**_fields(words[1:])), []
            return [NOTHING]
        if words[0] == "ticks":
            return self._ticks(int(words[1]), **_fields(words[2:]))
        if words[0] == "at":
            at_ms, kind = int(words[1]), words[2]
            if kind == "tick":
                return self._said(self.partition.tick(at_ms, **_fields(words[3:])))
            if kind == "raw":
                value = command.split(" ", 3)[3] if len(words) > 3 else ""
                return self._said(self.partition.add(at_ms, value.encode()))
            return self._said(self.partition.add(at_ms, self._record(kind, words[3:])))
        if words == ["state"]:
            return self._state()
        if words == ["checkpoint"]:
            return self._checkpoint()
        if words == ["crash"]:
            return self._crash()
        raise ValueError(f"unknown command: {command}")

    def _record(self, kind: str, words: list[str]) -> JsonObject:
        if kind in _MAKE:
            return _MAKE[kind](words[0], **_fields(words[1:]))
        if kind == "packed":
            return packed(*(self._entry(word) for word in words))
        if kind == "policy":
            return policy_adopted(words[0], **_fields(words[1:]))
        if kind == "revoke":
            fields = _fields(words[1:])
            return revocation_ordered(fields.pop("at"), words[0], **fields)
        if kind == "forwarded":
            fields = _fields(words[2:])
            place = [int(part) for part in str(fields.pop("from")).split("/")]
            index = place[2] if len(place) > 2 else None
            origin = [place[0], place[1], index, T0 + fields.pop("stamp")]
            return _MAKE[words[0]](words[1], **fields) | {"forwarded": origin}
        raise ValueError(f"unknown record: {kind}")

    def _entry(self, word: str) -> list[Any]:
        name, *rest = word.split(",")
        fields = _fields(rest)
        tail = [fields.pop(key, None) for key in ("since_ms", "pause_ms")]
        while tail and tail[-1] is None:
            tail.pop()
        return entry(name, *tail, **fields)

    def _ticks(self, until: int, every: int = 1000) -> list[str]:
        said: list[str] = []
        while self.partition.now < until:
            effects = self.partition.tick(min(self.partition.now + every, until))
            said += [line for line in self._said(effects) if line != NOTHING]
        return said or [NOTHING]

    def _state(self) -> list[str]:
        engine = self.partition.engine
        live = " ".join(sorted(_name(session) for session in self.partition.oracle.live))
        due = engine.next_due_at()
        return [f"live: {live or 'nobody'}", f"next due: {'never' if due is None else due - T0}"]

    def _checkpoint(self) -> list[str]:
        checkpoint = self.partition.engine.cut()
        self.state += checkpoint.records
        return [f"offset {checkpoint.offset}"]

    def _crash(self) -> list[str]:
        partition = self.partition
        restored = PartitionEngine.restore(partition.settings, self.state)
        partition.engine = restored or PartitionEngine(partition.settings)
        first = partition.engine.offset
        effects = partition.engine.apply(partition.log.records[first:])
        return [f"reads again from offset {first}", *self._said(effects)]

    def _said(self, effects: Effects) -> list[str]:
        said = [_ended(ending) for ending in effects.endings]
        said += [
            f"expiring {_name(w.session)} {w.cause.value} due={w.due_at - T0} in_ms={w.in_ms}" for w in effects.warnings
        ]
        said += [
            f"violation {_name(v.session)} by {v.service} ended={v.ended_at - T0} active={v.active_at - T0}"
            for v in effects.violations
        ]
        said += [
            f"forward to {f.partition}: {f.record['type']} {_name(f.record['session'])} age_ms={f.record['age_ms']} "
            f"from {'/'.join(str(part) for part in f.record['forwarded'][:3])} stamp={f.stamp - T0}"
            for f in effects.forwards
        ]
        said += [
            f"dead letter {letter.offset}{'' if letter.entry is None else f'[{letter.entry}]'}: {letter.reason}"
            for letter in effects.dead_letters
        ]
        return said or [NOTHING]


def _name(session: str) -> str:
    return session[:-1].rstrip("_") if len(session) == 22 else session


def _ended(ending: Any) -> str:
    version = "built in" if ending.policy_version is None else ending.policy_version
    words = [
        f"ended {_name(ending.session)} {ending.cause.value}",
        f"due={ending.due_at - T0} decided={ending.decided_at - T0} by offset {ending.evidence.offset}",
        f"started={ending.started_at - T0} last_seen={ending.last_seen_at - T0}",
        f"policy={ending.policy} ({version})",
    ]
    if ending.revocation is not None:
        words.append(f"revocation={ending.revocation}")
    if ending.held:
        words.append("held")
    return ", ".join(words)
