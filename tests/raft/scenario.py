"""Runs scenarios: text files of commands, each followed by `----` and what happens then.

`python tests/raft/scenario.py` shows where it goes otherwise than a file says, `--rewrite` writes what
happens into the files; read the difference before you commit it. After each command the cluster is checked
against the properties that Raft has to keep (`raft_nodes.py`): no text can make a wrong thing right.

    stored N TERM...                     before that: terms of what its disk has behind the first entry
    nodes 1 2 3 [learning 4] [new 5]     a cluster, and nodes that belong to none
    disks by hand                        disks wait for `persist`
    campaign N / tick N COUNT            an election now, or time
    propose N WORD...                    commands
    deliver [N>M] [COUNT]                the oldest messages, of one direction
    again N>M                            the newest of these a second time, later
    last N>M                             the newest of these before all others
    lose [N>M]                           messages
    settle                               deliver all, and what follows, without a word of messages
    persist N [COUNT]                    of what the disk was asked for
    crash N / start N / cut N M / isolate N / heal
    compact N                            take a snapshot
    add N NODE / promote N NODE / demote N NODE / remove N NODE / transfer N NODE / read N WORD
    status [N...] / log N / applied N
"""

from __future__ import annotations

import argparse
import sys
from difflib import unified_diff
from pathlib import Path

from raft_nodes import Cluster, describe, status

from liftbridge.raft import Entry, EntryKind

FOLDER = Path(__file__).parent / "scenarios"


class Scenario:
    """The commands of a file."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self._stored: dict[int, list[int]] = {}

    def run(self, line: str) -> str:
        """Run a command; what happened, a line each."""
        name, *words = line.split()
        method = getattr(self, f"do_{name}")
        self.cluster.trace.clear()
        said = method(*words)
        lines = [*self.cluster.trace, *([] if said is None else said)]
        return "\n".join(lines) or "nothing"

    def do_stored(self, node: str, *terms: str) -> None:
        self._stored[int(node)] = [int(term) for term in terms]

    def do_nodes(self, *words: str) -> None:
        groups: dict[str, list[int]] = {"": [], "learning": [], "new": []}
        group = ""
        for word in words:
            if word in groups:
                group = word
            else:
                groups[group].append(int(word))
        self.cluster.begin(groups[""], groups["learning"], groups["new"], self._stored)

    def do_disks(self, *words: str) -> None:
        assert words in (("by", "hand"), ("at", "once"))
        self.cluster.manual = words == ("by", "hand")

    def do_campaign(self, node: str) -> None:
        self.cluster.nodes[int(node)].core.campaign()
        self.cluster.after(int(node))

    def do_tick(self, node: str, count: str = "1") -> None:
        self.cluster.tick(int(node), int(count))

    def do_propose(self, node: str, *words: str) -> list[str] | None:
        first = self.cluster.nodes[int(node)].core.propose(word.encode() for word in words)
        self.cluster.after(int(node))
        return ["refused"] if first is None else None

    def do_deliver(self, *words: str) -> None:
        for _ in range(int(words[-1]) if words and words[-1].isdigit() else len(self.cluster.messages)):
            found = self._found(words)
            if not found:
                return
            self.cluster.deliver(found[0])

    def do_again(self, way: str) -> list[str]:
        message = self.cluster.messages[self._found((way,))[-1]]
        self.cluster.messages.append(message)
        return [describe(message)]

    def do_last(self, way: str) -> None:
        self.cluster.deliver(self._found((way,))[-1])

    def do_lose(self, *words: str) -> list[str]:
        found = self._found(words)
        return [describe(self.cluster.messages.pop(index)) for index in reversed(found)][::-1]

    def do_settle(self) -> None:
        self.cluster.settle()
        self.cluster.trace = [line for line in self.cluster.trace if ">" not in line]

    def do_persist(self, node: str, count: str | None = None) -> None:
        self.cluster.persist(int(node), None if count is None else int(count))

    def do_crash(self, node: str) -> None:
        self.cluster.crash(int(node))

    def do_start(self, node: str) -> None:
        self.cluster.start(int(node))

    def do_cut(self, one: str, other: str) -> None:
        self.cluster.cut |= {(int(one), int(other)), (int(other), int(one))}

    def do_isolate(self, node: str) -> None:
        for other in [*self.cluster.nodes, *self.cluster.down]:
            self.do_cut(node, str(other))

    def do_heal(self) -> None:
        self.cluster.cut.clear()

    def do_compact(self, node: str) -> None:
        self.cluster.compact(int(node))

    def do_add(self, node: str, other: str) -> list[str] | None:
        return self._changed(node, self.cluster.nodes[int(node)].core.add_learner(int(other)))

    def do_promote(self, node: str, other: str) -> list[str] | None:
        return self._changed(node, self.cluster.nodes[int(node)].core.promote(int(other)))

    def do_demote(self, node: str, other: str) -> list[str] | None:
        return self._changed(node, self.cluster.nodes[int(node)].core.demote(int(other)))

    def do_remove(self, node: str, other: str) -> list[str] | None:
        return self._changed(node, self.cluster.nodes[int(node)].core.remove(int(other)))

    def do_transfer(self, node: str, other: str) -> list[str] | None:
        begun = self.cluster.nodes[int(node)].core.transfer(int(other))
        self.cluster.after(int(node))
        return None if begun else ["refused"]

    def do_read(self, node: str, word: str) -> list[str] | None:
        begun = self.cluster.nodes[int(node)].core.read_index(word)
        self.cluster.after(int(node))
        return None if begun else ["refused"]

    def do_status(self, *names: str) -> list[str]:
        chosen = [int(name) for name in names] or sorted(self.cluster.nodes)
        return [status(self.cluster.nodes[name]) for name in chosen]

    def do_log(self, node: str) -> list[str]:
        log = self.cluster.nodes[int(node)].core.log
        entries = log.after(log.base_index)
        return [" ".join(f"{entry.index}/{entry.term}:{_content(entry)}" for entry in entries)]

    def do_applied(self, node: str) -> list[str]:
        return [" ".join(self.cluster.nodes[int(node)].applied)]

    def _changed(self, node: str, result: object) -> list[str] | None:
        self.cluster.after(int(node))
        return None if isinstance(result, int) else [f"refused: {result.value}"]  # type: ignore[attr-defined]

    def _found(self, words: tuple[str, ...]) -> list[int]:
        way = words[0].split(">") if words and ">" in words[0] else None
        return [
            index
            for index, message in enumerate(self.cluster.messages)
            if way is None or [str(message.source), str(message.target)] == way
        ]


def _content(entry: Entry) -> str:
    return entry.data.decode() if entry.kind is EntryKind.COMMAND else entry.kind.name.lower()


def run(text: str) -> str:
    """The same text with what happens now."""
    scenario = Scenario()
    blocks = []
    for block in text.strip().split("\n\n"):
        comments = [line for line in block.split("\n") if line.startswith("#")]
        rest = [line for line in block.split("\n") if not line.startswith("#")]
        commands = rest[: rest.index("----")] if "----" in rest else rest
        outputs = [scenario.run(command) for command in commands if command]
        said = "\n".join(output for output in outputs if output != "nothing")
        lines = [*comments, *commands]
        if commands:
            lines += ["----", *([said] if said else [])]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def main() -> int:
    """Run files, all of them when none is named. Returns how many go otherwise than they say."""
    parser = argparse.ArgumentParser(description="Run scenarios of the consensus.")
    parser.add_argument("--rewrite", action="store_true", help="write what happens into the files")
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    differing = 0
    for path in arguments.files or sorted(FOLDER.glob("*.txt")):
        text = path.read_text()
        now = run(text)
        differing += now != text
        if arguments.rewrite:
            path.write_text(now)
        sys.stdout.writelines(unified_diff(text.splitlines(True), now.splitlines(True), path.name, "now"))
    return 0 if arguments.rewrite else differing


if __name__ == "__main__":
    sys.exit(main())
