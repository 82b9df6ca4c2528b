"""Spoken commands from a hand-written grammar, each with at least one rare name of its split.

The grammar stands in `assets/words/commands.grammar`. A sentence is a function of (seed, split, index).
"""

import functools
import importlib.resources
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ctxasr_ray.corpora.names import Lexicon, lexicons, pick

MIN_CHARACTERS: Final = 55
MAX_CHARACTERS: Final = 110
"""Bounds of a sentence; at 145 to 195 words per minute that is 3 to 8 s of speech."""
RARE_FIRST_NAMES: Final = 0.25
"""Share of people whose first name is rare too."""
TOWNS_OF_TWO_WORDS: Final = 0.2

_TOKEN: Final = re.compile(r"<\w+>|\{\w+\}|[a-z']+|[()\[\]|]|\S")

# A node is ("word", text), ("rule", name), ("slot", kind), ("any", nodes), ("all", nodes) or ("maybe", node).
Node = tuple[str, object]


@dataclass(frozen=True, slots=True)
class Sentence:
    """What is said, and the rare phrases in it."""

    text: str
    """Lower case a to z, apostrophe and single spaces."""
    keywords: tuple[str, ...]
    """The names that are spoken, in order, each once: "anna velkovich", "port selwick", "dramprazole"."""


@functools.cache
def grammar() -> Mapping[str, Node]:
    """Reads the grammar: rule name -> tree.

    Raises:
        ValueError: a rule of the grammar file is broken, naming it.
    """
    text = importlib.resources.files("ctxasr_ray").joinpath("assets/words/commands.grammar").read_text("ascii")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    rules: dict[str, Node] = {}
    for rule in re.split(r"\n(?=\S)", "\n".join(lines)):
        name, _, body = rule.partition(":")
        tokens = _TOKEN.findall(body)
        node, rest = _alternatives(tokens)
        if rest:
            raise ValueError(f"commands.grammar, rule '{name}': unexpected '{rest[0]}'; close what was opened")
        rules[name] = node
    return rules


@functools.cache
def vocabulary() -> frozenset[str]:
    """Gives every common word of the grammar; rare names are never among them."""
    found: set[str] = set()

    def walk(node: Node) -> None:
        kind, value = node
        if kind == "word":
            found.add(str(value))
        elif isinstance(value, tuple):
            for child in value:
                walk(child)

    for node in grammar().values():
        walk(node)
    return frozenset(found)


def lexicon(seed: int, split: str) -> Lexicon:
    """Gives the rare names of a split.

    Raises:
        ValueError: the split is not train, dev or test.
    """
    made = lexicons(seed, vocabulary())
    if split not in made:
        raise ValueError(f"split '{split}' is unknown; use one of {sorted(made)}")
    return made[split]


def sentence(seed: int, split: str, index: int) -> Sentence:
    """Draws the sentence with a given number.

    Args:
        seed: Of the corpus.
        split: train, dev or test.
        index: 0 or more; there is no end.

    Returns:
        A sentence of `MIN_CHARACTERS` to `MAX_CHARACTERS` with one to six rare phrases of that split alone,
        which no other split can hold, since a rare word belongs to one split.
    """
    if index < 0:
        raise ValueError(f"utterance index {index} is negative; count from 0")
    rng = random.Random(f"{seed}/{split}/{index}/sentence")
    names = lexicon(seed, split)
    while True:
        keywords: list[str] = []
        words: list[str] = []
        _expand(("rule", "command"), rng, names, words, keywords)
        text = " ".join(words)
        if keywords and MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            return Sentence(text, tuple(dict.fromkeys(keywords)))


def phrase(kind: str, rng: random.Random, names: Lexicon) -> str:
    """Draws one rare phrase as it may be spoken: a full name, a surname, a town, a brand or a drug."""
    if kind == "person":
        rare = rng.random() < RARE_FIRST_NAMES
        first = pick(rng, names.names["first"]) if rare else _word("first", rng)
        return f"{first} {pick(rng, names.names['surname'])}"
    name = pick(rng, names.names[kind])
    if kind == "town" and rng.random() < TOWNS_OF_TWO_WORDS:
        before = rng.random() < 0.6
        return f"{_word('town_before', rng)} {name}" if before else f"{name} {_word('town_after', rng)}"
    return name


def _word(rule: str, rng: random.Random) -> str:
    words: list[str] = []
    _expand(("rule", rule), rng, None, words, [])
    return " ".join(words)


def _expand(node: Node, rng: random.Random, names: Lexicon | None, words: list[str], keywords: list[str]) -> None:
    kind, value = node
    if kind == "word":
        words.append(str(value))
    elif kind == "rule":
        _expand(grammar()[str(value)], rng, names, words, keywords)
    elif kind == "slot":
        assert names is not None
        said = phrase(str(value), rng, names)
        words.append(said)
        keywords.append(said)
    else:
        assert isinstance(value, tuple)
        if kind == "maybe" and rng.random() < 0.5:
            return
        for child in (pick(rng, value),) if kind == "any" else value:
            _expand(child, rng, names, words, keywords)


def _alternatives(tokens: list[str]) -> tuple[Node, list[str]]:
    """Parses `a b | c` up to a closing bracket or the end; gives what is left."""
    choices: list[Node] = []
    sequence: list[Node] = []
    while tokens and tokens[0] not in (")", "]"):
        token, tokens = tokens[0], tokens[1:]
        if token == "|":
            choices.append(("all", tuple(sequence)))
            sequence = []
        elif token in ("(", "["):
            inner, tokens = _alternatives(tokens)
            if not tokens or tokens[0] != {"(": ")", "[": "]"}[token]:
                raise ValueError(f"commands.grammar: '{token}' is never closed, near {tokens[:5]}")
            tokens = tokens[1:]
            sequence.append(inner if token == "(" else ("maybe", (inner,)))
        elif token[0] == "<":
            sequence.append(("rule", token[1:-1]))
        elif token[0] == "{":
            sequence.append(("slot", token[1:-1]))
        elif re.fullmatch(r"[a-z']+", token):
            sequence.append(("word", token))
        else:
            raise ValueError(f"commands.grammar: unexpected '{token}'; words are a to z and apostrophe")
    choices.append(("all", tuple(sequence)))
    return ("any", tuple(choices)), tokens
