"""CTC prefix beam search against pyctcdecode and flashlight-text: frames per second and oracle WER, one thread.

Works on the log-probs of the shipped CTC model on the quickstart's test utterances at 10 dB; where the model is not
there yet, on made-up posteriors, and says so. Both sides of a comparison prune by the same thresholds. Run it without
arguments: `python benchmarks/ctc_search.py`. The first run makes an environment for pyctcdecode in `.bench_envs/`.
"""

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import Figure, Speedup, emit, interleaved, pin_threads

pin_threads(1)

import numpy as np  # noqa: E402  (the threads are pinned first)
import numpy.typing as npt  # noqa: E402
from flashlight.lib.text.decoder import (  # noqa: E402
    CriterionType,
    LexiconFreeDecoder,
    LexiconFreeDecoderOptions,
    ZeroLM,
)
from rapidfuzz.distance import Levenshtein  # noqa: E402

from ctxasr_ray.search.ctc_alignment import ctc_alignments  # noqa: E402
from ctxasr_ray.search.ctc_beam import CtcBeamSearch, Labelling  # noqa: E402
from ctxasr_ray.search.ctc_forced import ctc_forward_scores  # noqa: E402

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "ctxasr_ray" / "assets" / "ctc"
PEER_ENVIRONMENT = ROOT / ".bench_envs" / "pyctcdecode"
BEAMS = (10, 50, 100)
NUM_MADE_UP = 24
SNR_DB = 10.0
PYCTCDECODE = {"beam_prune_logp": -10.0, "token_min_logp": -5.0}
"""Its own defaults."""
FLASHLIGHT = {"beam_size_token": 10, "beam_threshold": 20.0}
LETTERS = (" ", *"abcdefghijklmnopqrstuvwxyz'", "")
Lists = list[list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Utterances to search."""

    name: str
    log_probs: list[npt.NDArray[np.float32]]
    references: list[str]
    pieces: tuple[str, ...]
    blank_id: int

    @property
    def num_frames(self) -> int:
        """Frames of all utterances."""
        return sum(len(array) for array in self.log_probs)

    def text(self, labels: Sequence[int] | npt.NDArray[np.int32]) -> str:
        """Text of a label sequence, single spaces."""
        return " ".join("".join([self.pieces[label] for label in labels]).split())

    def search(self, beam: int, **thresholds: float) -> CtcBeamSearch:
        """Our search over these labels, without blank skipping, which the peers lack."""
        return CtcBeamSearch(
            blank_id=self.blank_id,
            num_labels=len(self.pieces),
            beam_size=beam,
            blank_skip_prob=None,
            **thresholds,  # type: ignore[arg-type]  # an int and two floats by name
        )


def real_material() -> Material:
    """Log-probs of the shipped model on the test utterances at 10 dB."""
    from ctxasr_ray.corpora.synthetic import SyntheticConfig
    from ctxasr_ray.models.checkpoint import resolve
    from ctxasr_ray.models.ctc import CtcModel

    model, corpus = CtcModel(resolve(str(MODEL))), SyntheticConfig()
    indices = [n for n in range(corpus.num_test) if corpus.snr_db("test", n) == SNR_DB]
    spoken = [corpus.spoken("test", n) for n in indices]
    return Material(
        name=f"shipped CTC model, {len(spoken)} test utterances at 10 dB",
        log_probs=[model.log_probs([s.samples])[0] for s in spoken],
        references=[s.text for s in spoken],
        pieces=model.vocabulary.pieces,
        blank_id=model.vocabulary.blank_id,
    )


def made_up_material(num_frames: int = 310) -> Material:
    """Peaked Dirichlet posteriors around random texts, a third of the labels confused with others."""
    rng = np.random.default_rng(7)
    blank_id = len(LETTERS) - 1
    arrays, references = [], []
    for _ in range(NUM_MADE_UP):
        words = ["".join(rng.choice(list(LETTERS[1:27]), size=rng.integers(2, 9))) for _ in range(rng.integers(6, 10))]
        reference = " ".join(words)
        weights = np.full((num_frames, len(LETTERS)), 0.01)
        weights[:, blank_id] += 6.0
        places = np.sort(rng.choice(num_frames // 3, size=len(reference), replace=False)) * 3
        for frame, letter in zip(places, reference, strict=True):
            weights[frame, blank_id] = 0.5
            weights[frame, LETTERS.index(letter)] += 4.0
            if rng.random() < 1 / 3:
                weights[frame, rng.integers(blank_id, size=2)] += 1.0
        weights[rng.random(num_frames) < 0.1] += 0.05
        probs = np.stack([rng.dirichlet(row) for row in weights]) + 1e-6
        arrays.append(np.log(probs / probs.sum(axis=1, keepdims=True)).astype(np.float32))
        references.append(reference)
    return Material(
        name="made-up posteriors (no shipped CTC model yet)",
        log_probs=arrays,
        references=references,
        pieces=LETTERS,
        blank_id=blank_id,
    )


class Pyctcdecode:
    """A process of the other environment that decodes the material on request."""

    def __init__(self, material: Material, directory: Path) -> None:
        """Makes the environment if it is missing, hands over the log-probs by file, and waits until it is ready."""
        python = PEER_ENVIRONMENT / "bin" / "python"
        if not (PEER_ENVIRONMENT / "complete").exists():
            print(f"making {PEER_ENVIRONMENT} (pyctcdecode 0.5.0 needs numpy < 2)", flush=True)
            venv.create(PEER_ENVIRONMENT, with_pip=True, clear=True)
            pins = ["pyctcdecode==0.5.0", "numpy<2"]
            subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
            (PEER_ENVIRONMENT / "complete").touch()
        self._directory = directory
        arrays = {str(n): array for n, array in enumerate(material.log_probs)}
        np.savez(directory / "log_probs.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub: the names are free
        labels = [piece if n != material.blank_id else "" for n, piece in enumerate(material.pieces)]
        script = Path(__file__).with_name("pyctcdecode_peer.py")
        command = [python, script, directory / "log_probs.npz", json.dumps(labels), json.dumps(PYCTCDECODE)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect("ready")

    def decode(self, beam: int) -> None:
        """All utterances, lists thrown away."""
        self._send(f"{beam}")

    def lists(self, beam: int) -> Lists:
        """All utterances, as texts."""
        path = self._directory / f"lists-{beam}.json"
        self._send(f"{beam} {path}")
        lists: Lists = json.loads(path.read_text(encoding="utf-8"))
        return lists

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._expect("done")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if answer != word:
            raise RuntimeError(f"the pyctcdecode process answered {answer!r}, expected {word!r}; see its error above")


def flashlight(material: Material, beam: int) -> Callable[[], list[list[list[int]]]]:
    """A lexicon-free decoder without LM; per utterance the label per frame of every hypothesis."""
    options = LexiconFreeDecoderOptions(
        beam_size=beam,
        beam_size_token=FLASHLIGHT["beam_size_token"],
        beam_threshold=FLASHLIGHT["beam_threshold"],
        lm_weight=0.0,
        sil_score=0.0,
        log_add=True,
        criterion_type=CriterionType.CTC,
    )
    decoder = LexiconFreeDecoder(options, ZeroLM(), material.pieces.index(" "), material.blank_id, [])
    num_labels = len(material.pieces)

    def decode() -> list[list[list[int]]]:
        return [
            [result.tokens for result in decoder.decode(array.ctypes.data, len(array), num_labels)]
            for array in material.log_probs
        ]

    return decode


def collapsed(material: Material, frames: Sequence[int]) -> str:
    """Text of a path: repeats merged, blanks left out; flashlight pads it with a silence at either end."""
    inner = np.asarray(frames[1:-1])
    starts = np.flatnonzero(np.diff(inner, prepend=-1))
    return material.text([label for label in inner[starts] if label != material.blank_id])


def oracle_wer(lists: Lists, references: Sequence[str]) -> float:
    """Errors of the best text of each list / words."""
    errors = sum(
        min((Levenshtein.distance(reference.split(), text.split()) for text in texts), default=len(reference.split()))
        for texts, reference in zip(lists, references, strict=True)
    )
    return errors / sum(len(reference.split()) for reference in references)


def check(material: Material, found: Sequence[Sequence[Labelling]]) -> None:
    """What the search gives is sorted, distinct, and never above its exact score; else no time counts."""
    for array, labellings in zip(material.log_probs, found, strict=True):
        scores = [labelling.log_prob for labelling in labellings]
        forced = ctc_forward_scores(array, [labelling.token_ids for labelling in labellings], material.blank_id)
        if scores != sorted(scores, reverse=True) or len({tuple(f.token_ids) for f in labellings}) != len(labellings):
            raise AssertionError("a list is not sorted or not distinct")
        if any(exact.log_prob is None or s > exact.log_prob + 1e-9 for s, exact in zip(scores, forced, strict=True)):
            raise AssertionError("a search score exceeds the exact score of its text")


def compare(
    material: Material, peer: str, beam: int, search: CtcBeamSearch, run_peer: Callable[[], object], theirs: Lists
) -> list[Figure]:
    """One beam against one peer: ratio of frames per second, and difference of oracle WER."""

    def ours() -> Lists:
        return [[material.text(found.token_ids) for found in search.search(array)] for array in material.log_probs]

    print(f"beam {beam} against {peer}", flush=True)
    check(material, [search.search(array) for array in material.log_probs])
    lists = ours()
    speed: Speedup = interleaved(run_peer, ours, rounds=5)
    name = peer.split()[0].replace("-", "_")
    oracle, their_oracle = oracle_wer(lists, material.references), oracle_wer(theirs, material.references)
    same = sum(a[0] == b[0] for a, b in zip(lists, theirs, strict=True))
    counters: dict[str, int | float | str] = {
        "material": material.name,
        "frames": material.num_frames,
        "frames_per_s_ours": round(material.num_frames / speed.seconds_second),
        "frames_per_s_peer": round(material.num_frames / speed.seconds_first),
        **speed.counters(),
    }
    goal = None if name == "flashlight_text" and beam == 10 else (">= 4.0" if name == "pyctcdecode" else ">= 1.0")
    quality: dict[str, int | float | str] = {
        "oracle_wer_ours": round(oracle, 5),
        "oracle_wer_peer": round(their_oracle, 5),
        "first_wer_ours": round(oracle_wer([texts[:1] for texts in lists], material.references), 5),
        "first_wer_peer": round(oracle_wer([texts[:1] for texts in theirs], material.references), 5),
        "same_best_text": f"{same} of {len(lists)}",
        "distinct_texts_ours": sum(len(set(texts)) for texts in lists),
        "distinct_texts_peer": sum(len(set(texts)) for texts in theirs),
    }
    return [
        Figure(
            name=f"ctc_search_speed_{name}_beam_{beam}",
            value=speed.median,
            goal=goal,
            unit="x",
            peer=peer,
            counters=counters,
        ),
        Figure(
            name=f"ctc_search_oracle_wer_minus_{name}_beam_{beam}",
            value=oracle - their_oracle,
            goal="<= 0.0",
            unit="fraction",
            peer=peer,
            counters=quality,
        ),
    ]


def exact_cost(material: Material) -> Figure:
    """Exact scores and alignments of the whole list, as a share of the search's own time."""
    search = material.search(50)
    found = [[f.token_ids for f in search.search(array)] for array in material.log_probs]

    def score() -> None:
        for array, sequences in zip(material.log_probs, found, strict=True):
            ctc_forward_scores(array, sequences, material.blank_id)
            ctc_alignments(array, sequences, material.blank_id)

    speed = interleaved(score, lambda: [search.search(array) for array in material.log_probs], rounds=3)
    counters: dict[str, int | float | str] = {
        "hypotheses": sum(len(sequences) for sequences in found),
        "tokens": sum(len(ids) for sequences in found for ids in sequences),
        **speed.counters(),
    }
    return Figure(name="ctc_exact_scores_cost", value=speed.median, unit="of search", counters=counters)


def main() -> None:
    """Compares at every beam and emits the figures."""
    material = real_material() if (MODEL / "model.safetensors").exists() else made_up_material()
    print(f"{material.name}: {len(material.log_probs)} utterances, {material.num_frames} frames", flush=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as directory:
        pyctcdecode = Pyctcdecode(material, Path(directory))
        for beam in BEAMS:
            search = material.search(
                beam,
                max_labels_per_frame=len(material.pieces),
                min_label_log_prob=PYCTCDECODE["token_min_logp"],
                beam_threshold=-PYCTCDECODE["beam_prune_logp"],
            )
            peer = "pyctcdecode 0.5.0"
            run_peer = lambda beam=beam: pyctcdecode.decode(beam)  # noqa: E731  (one line per beam)
            figures += compare(material, peer, beam, search, run_peer, pyctcdecode.lists(beam))
        pyctcdecode.close()
    for beam in BEAMS:
        search = material.search(
            beam,
            max_labels_per_frame=int(FLASHLIGHT["beam_size_token"]),
            min_label_log_prob=-np.inf,
            beam_threshold=FLASHLIGHT["beam_threshold"],
        )
        decode = flashlight(material, beam)
        theirs = [[collapsed(material, frames) for frames in paths] for paths in decode()]
        figures += compare(material, "flashlight-text 0.0.7", beam, search, decode, theirs)
    emit([*figures, exact_cost(material)])


if __name__ == "__main__":
    sys.exit(main())
