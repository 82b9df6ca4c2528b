"""A word lattice: words at times, joined by links with acoustic scores. Read from HTK's standard lattice format."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Lattice:
    """An acyclic graph whose nodes are words that start at a time.

    Args:
        words: (n,) word of each node; None for a filler (silence, noise), which no text shows. Start and end are
            named as the language model names the bounds of a sentence.
        start_s: (n,) seconds at which a node's word starts.
        sources: (m,) node that a link leaves.
        targets: (m,) node that it enters.
        acoustics: (m,) score, in nats, of the source's word up to the start of the target's.
        start: The node before every path.
        end: The node after every path.
    """

    words: list[str | None]
    start_s: Float64
    sources: Int64
    targets: Int64
    acoustics: Float64
    start: int
    end: int

    def __post_init__(self) -> None:
        """Refuses links that lead nowhere and a lattice without a start or an end."""
        num_nodes = len(self.words)
        ends = np.concatenate([self.sources, self.targets, [self.start, self.end]])
        if len(ends) and (ends.min() < 0 or ends.max() >= num_nodes):
            raise ValueError(f"lattice: a link names node {ends.max()}; expected 0 to {num_nodes - 1}.")
        if self.words[self.start] is None or self.words[self.end] is None:
            raise ValueError("lattice: start and end need the names of the bounds of a sentence, for example <s>, </s>")

    def topological_order(self) -> Int64:
        """Nodes, sources before targets.

        Raises:
            ValueError: the links go round in a circle.
        """
        waiting = np.bincount(self.targets, minlength=len(self.words)).tolist()
        by_source: list[list[int]] = [[] for _ in self.words]
        for source, target in zip(self.sources.tolist(), self.targets.tolist(), strict=True):
            by_source[source].append(target)
        ready = [node for node, count in enumerate(waiting) if not count]
        order: list[int] = []
        while ready:
            node = ready.pop()
            order.append(node)
            for target in by_source[node]:
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
        if len(order) < len(self.words):
            raise ValueError(f"lattice: {len(self.words) - len(order)} nodes lie on a circle; a lattice has none.")
        return np.array(order, np.int64)


@dataclass(frozen=True, slots=True)
class WordLinks:
    """Links from word to word, fillers between them taken along the best way; sorted by source, then target.

    Args:
        sources: (e,) node of the lattice.
        targets: (e,) node of the lattice.
        acoustics: (e,) best sum of scores over all filler sequences between the two.
        end_s: (e,) seconds at which the source's word ends on that best way.
    """

    sources: Int64
    targets: Int64
    acoustics: Float64
    end_s: Float64


def word_links(lattice: Lattice, order: Int64) -> WordLinks:
    """Takes fillers out of a lattice; the best score of every word sequence stays what it was.

    Args:
        lattice: Any lattice.
        order: Its topological order.
    """
    leaving: list[list[tuple[int, float]]] = [[] for _ in lattice.words]
    links = zip(lattice.sources.tolist(), lattice.targets.tolist(), lattice.acoustics.tolist(), strict=True)
    for source, target, acoustic in links:
        leaving[source].append((target, acoustic))
    start_s = lattice.start_s.tolist()
    beyond: list[dict[int, tuple[float, float]]] = [{} for _ in lattice.words]  # target -> (score, end of this word)
    for node in order[::-1].tolist():
        best: dict[int, tuple[float, float]] = {}
        for target, acoustic in leaving[node]:
            if lattice.words[target] is not None:
                onward: Mapping[int, tuple[float, float]] = {target: (0.0, 0.0)}
            else:
                onward = beyond[target]
            for word_node, (rest, _) in onward.items():
                score = acoustic + rest
                if word_node not in best or score > best[word_node][0]:
                    best[word_node] = (score, start_s[target])
        beyond[node] = best
    rows = [
        (source, target, score, end)
        for source, word in enumerate(lattice.words)
        if word is not None
        for target, (score, end) in sorted(beyond[source].items())
    ]
    columns = np.array(rows, np.float64).reshape(-1, 4)
    return WordLinks(columns[:, 0].astype(np.int64), columns[:, 1].astype(np.int64), columns[:, 2], columns[:, 3])


def read_htk(text: str, *, sentence_start: str = "<s>", sentence_end: str = "</s>") -> Lattice:
    """Reads a lattice as PocketSphinx writes it: `I= t= W=` for nodes, `J= S= E= a=` for links, `a` in nats.

    Nodes called !NULL, !SENT_START or in brackets are fillers, but for the start and end that the header names. Speech
    that is cut off ends in a word: the end of the sentence is then put behind it, at no cost.

    Args:
        text: The whole file.
        sentence_start: Word of the start node.
        sentence_end: Word of the end node.

    Raises:
        ValueError: no start, end or nodes, or a line that lacks a field; names the line.
    """
    header: dict[str, str] = {}
    words: list[str | None] = []
    start_s: list[float] = []
    links: list[tuple[int, int, float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#"):
            continue
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        try:
            if "I" in fields:
                if int(fields["I"]) != len(words):
                    raise ValueError(f"node {fields['I']}, expected {len(words)}")
                filler = fields["W"][0] in "![<"
                words.append(None if filler else fields["W"])
                start_s.append(float(fields["t"]))
            elif "J" in fields:
                links.append((int(fields["S"]), int(fields["E"]), float(fields["a"])))
            else:
                header.update(fields)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"lattice, line {number}: '{line[:60]}': {error}; expected I= t= W= or J= S= E= a=."
            ) from error
    if "start" not in header or "end" not in header or not words:
        raise ValueError(f"lattice: {len(words)} nodes, header {sorted(header)}; expected start=, end= and nodes.")
    start, end = int(header["start"]), int(header["end"])
    if end == start or words[end] is not None:
        links.append((end, len(words), 0.0))
        start_s.append(start_s[end])
        end = len(words)
        words.append(None)
    words[start], words[end] = sentence_start, sentence_end
    sources, targets, acoustics = zip(*links, strict=True) if links else ((), (), ())
    return Lattice(
        words=words,
        start_s=np.array(start_s),
        sources=np.array(sources, np.int64),
        targets=np.array(targets, np.int64),
        acoustics=np.array(acoustics, np.float64),
        start=start,
        end=end,
    )
