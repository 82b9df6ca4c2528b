"""Keyword lists up to 50,000 phrases: what they cost in the CTC search, to build, and to search by sound; one thread.

Works on the shipped CTC model's log-probs of test utterances at 10 dB, and on made-up words. Run it without arguments:
`python benchmarks/keywords.py`. The first run makes an environment for pyctcdecode in `.bench_envs/`.
"""

import itertools
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ctc_search import PEER_ENVIRONMENT, PYCTCDECODE, Material, Pyctcdecode, real_material  # pins the threads
from figures import Figure, emit, interleaved

import numpy as np  # isort: skip  (the threads are pinned first)

from ctxasr_ray.corpora.names import listed
from ctxasr_ray.keywords.automaton import build, close, spellings, step, word_shape
from ctxasr_ray.keywords.automaton_kernels import Automaton
from ctxasr_ray.keywords.phonetic import distances, phonetic_index, sound
from ctxasr_ray.search.ctc_beam import CtcBeamSearch, Labelling
from ctxasr_ray.search.ctc_state import Floats
from ctxasr_ray.search.keyword_boost import KeywordBoost
from ctxasr_ray.search.lockstep import search_in_lockstep

NUM_UTTERANCES = 24
BEAM = 100
BOOST = 1.5
SIZES = (0, 1000, 50_000)


def words(num: int) -> list[str]:
    """Distinct pronounceable words, the same on every machine."""
    rng = random.Random(7)
    onsets = listed("b br ch d f g gr h j k kl l m n p pr r s st t tr v w z")
    nuclei, codas = listed("a e i o u"), listed("b d k l m n r s t")
    made: dict[str, None] = {}
    while len(made) < num:
        syllables = ("".join(map(rng.choice, (onsets, nuclei, codas))) for _ in range(rng.randint(1, 4)))
        made["".join(syllables)] = None
    return list(made)


def automaton(material: Material, phrases: Sequence[str], weights: Sequence[float] | None = None) -> Automaton:
    """The automaton of some phrases over the labels of the material."""
    label = {piece: n for n, piece in enumerate(material.pieces)}
    ids = [[np.asarray([label[character] for character in phrase], dtype=np.int32)] for phrase in phrases]
    return build(spellings(ids), BOOST * np.asarray(weights or [1.0] * len(phrases)), word_shape(material.pieces))


def check_against_brute_force(material: Material) -> int:
    """Bonuses of a thousand random phrases in random texts against a walk over words; texts that were compared."""
    rng = random.Random(7)
    vocabulary = words(60)
    phrases = list({" ".join(rng.choices(vocabulary, k=rng.randint(1, 3))): None for _ in range(4000)})[:1000]
    assert len(phrases) == 1000
    weights = [rng.randint(1, 999) / 8 for _ in phrases]
    made, known = automaton(material, phrases, weights), dict(zip(phrases, weights, strict=True))
    label = {piece: n for n, piece in enumerate(material.pieces)}
    for _ in range(200):
        text = rng.choices(vocabulary, k=20)
        expected, at = 0.0, 0
        while at < len(text):
            size = next((k for k in (3, 2, 1) if " ".join(text[at : at + k]) in known and at + k <= len(text)), 0)
            if size:
                phrase = " ".join(text[at : at + size])
                expected += BOOST * known[phrase] * len(phrase.replace(" ", ""))
            at += size or 1
        states, total = np.zeros(1, dtype=np.int32), 0.0
        for character in " ".join(text):
            states, bonus = step(made, states, np.asarray([label[character]], dtype=np.int32))
            total += float(bonus[0])
        assert total + float(close(made, states)[0]) == expected, "the automaton differs from brute force"
    return 200


def boosted_search(search: CtcBeamSearch, log_probs: Floats, shared: Automaton, own: Automaton) -> list[Labelling]:
    """One utterance, as the first pass searches it."""
    return search_in_lockstep(search, [log_probs], [KeywordBoost(automata=[(shared, own)])])[0].labellings


def boost_figures(material: Material, phrases: Sequence[str]) -> list[Figure]:
    """Slow-down of the beam by list size; the empty list's result is the plain one's to the bit."""
    search = CtcBeamSearch(blank_id=material.blank_id, num_labels=len(material.pieces), beam_size=BEAM)
    log_probs = [search.checked(one) for one in material.log_probs]
    automata = {size: automaton(material, phrases[:size]) for size in SIZES}
    empty = automata[0]

    def plain() -> list[list[Labelling]]:
        return [search.search(one) for one in log_probs]

    def boosted(size: int) -> Callable[[], list[list[Labelling]]]:
        return lambda: [boosted_search(search, one, automata[size], empty) for one in log_probs]

    def key(lists: list[list[Labelling]]) -> list[list[tuple[bytes, float]]]:
        return [[(one.token_ids.tobytes(), one.log_prob) for one in found] for found in lists]

    assert key(plain()) == key(boosted(0)()), "an empty list changes the search"
    figures = []
    for size in SIZES:
        speed = interleaved(boosted(size), plain, rounds=7)
        figures.append(
            Figure(
                name=f"keyword_boost_slowdown_{size}",
                value=speed.median,
                goal="<= 1.10" if size == max(SIZES) else None,
                unit="x",
                peer="the same search without a list",
                counters={
                    "ratio_min": round(speed.minimum, 4),
                    "ratio_max": round(speed.maximum, 4),
                    "seconds_with_list": round(speed.seconds_first, 6),
                    "seconds_without": round(speed.seconds_second, 6),
                    "frames": material.num_frames,
                    "beam": BEAM,
                    "automaton_states": automata[size].num_states,
                },
            )
        )
    return figures


def build_figure(material: Material, phrases: Sequence[str]) -> Figure:
    """Seconds from token ids to an automaton."""
    label = {piece: n for n, piece in enumerate(material.pieces)}
    ways = spellings([[np.asarray([label[c] for c in phrase], dtype=np.int32)] for phrase in phrases])
    shape, weights = word_shape(material.pieces), np.ones(len(phrases))
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        made = build(ways, weights, shape)
        seconds.append(time.perf_counter() - start)
    return Figure(
        name="keyword_automaton_build_50k",
        value=float(np.median(seconds)),
        goal="<= 0.5",
        unit="s",
        counters={
            "phrases": len(phrases),
            "states": made.num_states,
            "bytes": sum(np.asarray(a).nbytes for a in made),
        },
    )


def hotwords_figure(material: Material, phrases: Sequence[str]) -> Figure:
    """A thousand words: seconds of pyctcdecode / ours, on one utterance, because theirs takes so long."""
    shortest = int(np.argmin([len(one) for one in material.log_probs]))
    one = material.log_probs[shortest]
    search = CtcBeamSearch(
        blank_id=material.blank_id,
        num_labels=len(material.pieces),
        beam_size=BEAM,
        min_label_log_prob=PYCTCDECODE["token_min_logp"],
        beam_threshold=-PYCTCDECODE["beam_prune_logp"],
        blank_skip_prob=None,
    )
    made, empty = automaton(material, phrases), automaton(material, [])
    checked = search.checked(one)
    with tempfile.TemporaryDirectory() as directory:
        Pyctcdecode(material, Path(directory)).close()  # makes the environment where it is missing
        np.savez(Path(directory) / "one.npz", **{"0": one})  # type: ignore[arg-type]  # numpy's stub: names are free
        labels = [piece if n != material.blank_id else "" for n, piece in enumerate(material.pieces)]
        options = {**PYCTCDECODE, "hotwords": list(phrases)}
        command = [
            PEER_ENVIRONMENT / "bin" / "python",
            Path(__file__).with_name("pyctcdecode_peer.py"),
            Path(directory) / "one.npz",
            json.dumps(labels),
            json.dumps(options),
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
            assert peer.stdin is not None
            assert peer.stdout is not None
            assert peer.stdout.readline().strip() == "ready"

            def theirs() -> None:
                assert peer.stdin is not None
                assert peer.stdout is not None
                peer.stdin.write(f"{BEAM}\n")
                peer.stdin.flush()
                assert peer.stdout.readline().strip() == "done"

            speed = interleaved(theirs, lambda: boosted_search(search, checked, made, empty), rounds=1, warm_up=1)
            peer.stdin.close()
    return Figure(
        name="keyword_boost_speed_pyctcdecode_1000",
        value=speed.median,
        goal=">= 100",
        unit="x",
        peer="pyctcdecode 0.5.0, hotwords",
        counters={**speed.counters(), "frames": len(one), "phrases": len(phrases), "beam": BEAM},
    )


def phonetic_figures(phrases: Sequence[str]) -> list[Figure]:
    """Milliseconds per span that is looked up by sound, and to pronounce the list."""
    start = time.perf_counter()
    index = phonetic_index(phrases)
    seconds = time.perf_counter() - start
    rng = random.Random(8)
    spans = [sound(f"{rng.choice(phrases)[:-1]} {'of' * (n % 2)}") for n in range(200)]
    places, worth = index.nearest(spans[:1])  # also the warm-up
    sounds = [index.sounds[n] for n in places.tolist()]
    every = [len(one) * (0.6 - d) for one, d in zip(sounds, distances(spans[:1], sounds)[0].tolist(), strict=True)]
    assert every == worth.tolist(), "evidence of the index differs from a plain comparison"
    times = []
    for _ in range(5):
        start = time.process_time()
        index.nearest(spans)
        times.append((time.process_time() - start) / len(spans) * 1e3)
    return [
        Figure(
            name="keyword_shortlist_per_query_50k",
            value=float(np.median(times)),
            goal="<= 1.0",
            unit="ms",
            counters={"phrases": len(phrases), "queries": len(spans), "clock": "CPU seconds"},
        ),
        Figure(name="keyword_shortlist_index_50k", value=seconds, unit="s", counters={"phrases": len(phrases)}),
    ]


def main() -> None:
    """All figures."""
    whole = real_material()
    material = Material(
        name=whole.name,
        log_probs=whole.log_probs[:NUM_UTTERANCES],
        references=whole.references[:NUM_UTTERANCES],
        pieces=whole.pieces,
        blank_id=whole.blank_id,
    )
    phrases = words(50_000)
    print(f"{material.name}: the first {len(material.log_probs)}; texts equal to brute force:", flush=True)
    print(check_against_brute_force(material), flush=True)
    figures = itertools.chain(
        boost_figures(material, phrases),
        [build_figure(material, phrases), hotwords_figure(material, phrases[:1000])],
        phonetic_figures(phrases),
    )
    emit(list(figures))


if __name__ == "__main__":
    main()
