import numpy as np
import pyarrow as pa
import pytest

from ctxasr_ray import schema
from ctxasr_ray.candidates.shortlist import Shortlist, ShortlistConfig
from ctxasr_ray.experiment import asset
from ctxasr_ray.keywords.catalogue import Catalogue, catalogue
from ctxasr_ray.keywords.context import ContextConfig, ContextStage, row_phrases
from ctxasr_ray.keywords.phonetic import distances, phonetic_index, sound
from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.text_encoder import TextEncoder
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.stage import Costs

NAMES = ["Zimbrato", "Sweetener", "iced coffee", "brown sugar", "Phillip", "Kowalski", "Drusworth Heights", "the"]


def _tables(
    phrases: Catalogue, texts: list[list[str]], keywords: list[list[str]] | None = None, size: int | None = None
) -> tuple[pa.Table, pa.Table]:
    hypotheses = hypotheses_table(
        [NBest(utterance_id=f"u{n}", hypotheses=[Hypothesis(text=t) for t in row]) for n, row in enumerate(texts)]
    )
    utterances = pa.table(
        {
            "utterance_id": hypotheses["utterance_id"],
            "keywords": pa.array(keywords or [[] for _ in texts], pa.list_(pa.string())),
        }
    )
    config = ContextConfig(catalogue="x", num_distractors=size, true_keywords=keywords is not None, normaliser="basic")
    return hypotheses, ContextStage(config, phrases, {})(utterances, costs=Costs())


def _shortlist(
    phrases: Catalogue, tables: tuple[pa.Table, pa.Table], **options: object
) -> tuple[list[dict[str, str]], Costs]:
    config = ShortlistConfig(catalogue="x", normaliser="basic", **options)  # type: ignore[arg-type]
    costs = Costs()
    table = schema.conform(Shortlist(config, phrases, None)(*tables, costs=costs), "context")
    row_phrases(table, None)  # nothing of the list is shared any more
    return [dict(zip(row["phrases"], row["origins"], strict=True)) for row in table.to_pylist()], costs


def test_phrases_are_found_by_words_and_by_sound() -> None:
    phrases = catalogue(NAMES, "basic")
    tables = _tables(phrases, [["brown sugar for kovalsky"], ["zim brat oh at druse worth heights"], [""], []])
    (first, second, third, fourth), costs = _shortlist(phrases, tables)
    assert first["brown sugar"] == "exact+phonetic"
    assert first["Kowalski"] == "phonetic"
    assert {"Zimbrato", "Drusworth Heights"} <= set(second)
    assert third == fourth == {}
    assert costs.counters["phrases_before"] == 4 * len(NAMES)
    assert next(iter(first)) == "brown sugar"


def test_one_way_alone_is_an_ablation() -> None:
    phrases = catalogue(NAMES, "basic")
    tables = _tables(phrases, [["brown sugar for kovalsky"]])
    assert _shortlist(phrases, tables, ways=("exact",))[0] == [{"brown sugar": "exact"}]
    assert set(_shortlist(phrases, tables, ways=("phonetic",))[0][0].values()) == {"phonetic"}


def test_only_the_phrases_of_the_row_are_found() -> None:
    phrases = catalogue(NAMES, "basic")
    said = phrases.phrases[-1]
    without = _tables(phrases, [[said]], size=3)
    assert said not in _shortlist(phrases, without)[0][0]
    own = _tables(phrases, [[said], ["x"]], [[said, "Nowhere Else"], [said]], size=3)
    (first, second), _ = _shortlist(phrases, own)
    assert first[said] == "exact+phonetic"
    assert said not in second


def test_a_shortlist_is_no_longer_than_asked_for() -> None:
    phrases = catalogue([f"kow{a}l{b}sk{c}" for a in "aeiou" for b in "aeiou" for c in "iy"], "basic")
    (row,), _ = _shortlist(phrases, _tables(phrases, [["kowoleski"]]), max_phrases=7)
    assert len(row) == 7
    assert row["kowoleski"] == "exact+phonetic"


def test_a_shortlist_is_the_same_whatever_shares_its_shard() -> None:
    phrases = catalogue(NAMES, "basic")
    texts = [["brown sugar for kovalsky"], ["zim brat oh"], ["fill up the ice coffee"]]
    together, _ = _shortlist(phrases, _tables(phrases, texts))
    assert together == [_shortlist(phrases, _tables(phrases, [row]))[0][0] for row in texts]


def test_shortlists_feed_on_shortlists() -> None:
    phrases = catalogue(NAMES, "basic")
    tables = _tables(phrases, [["brown sugar for kovalsky"]])
    config = ShortlistConfig(catalogue="x", normaliser="basic")
    once = Shortlist(config, phrases, None)(*tables, costs=Costs())
    twice = Shortlist(config, phrases, None)(tables[0], once, costs=Costs())
    assert sorted(twice["phrases"].to_pylist()[0]) == sorted(once["phrases"].to_pylist()[0])
    assert set(twice["phrase_ids"].to_pylist()[0]) == set(once["phrase_ids"].to_pylist()[0])


def test_ways_that_do_not_exist_or_cannot_work_are_refused() -> None:
    for options in ({"ways": ("guess",)}, {"ways": ()}, {"ways": ("semantic",)}, {"encoder": "x"}, {"max_phrases": 0}):
        with pytest.raises(ValueError, match=r"ways|semantic|at least"):
            ShortlistConfig(**options)  # type: ignore[arg-type]


def test_the_nearest_by_sound_are_those_of_an_exhaustive_search() -> None:
    words = [
        f"{a}{b}{c}" for a in ("kow", "brim", "stel", "zam") for b in ("al", "or", "en") for c in ("ski", "ta", "vich")
    ]
    index = phonetic_index(words)
    lengths = np.asarray([len(one) for one in index.sounds])
    for query in ("kovalsky", "brimmer ta", "zamorvic"):
        heard = sound(query)
        places, worth = index.nearest([heard], max_distance=0.9, looked_at=len(words), least_shared=0.0, max_edits=1.0)
        every = lengths * (0.9 - distances([heard], list(index.sounds))[0])
        assert worth.tolist() == sorted(worth.tolist(), reverse=True)
        assert every[places].tolist() == worth.tolist()
        assert every.argmax() == places[0]
        sharing = {n for n, one in enumerate(index.sounds) if len(_pairs(one) & _pairs(heard)) >= 2 and every[n] >= 0}
        assert sharing <= set(places.tolist())
    parts = ["kovalsky", "brimmer ta", "zam"]
    together, worth = index.nearest([sound(part) for part in parts])
    alone = [dict(zip(*(a.tolist() for a in index.nearest([sound(part)])), strict=True)) for part in parts]
    best = {n: max(found[n] for found in alone if n in found) for n in set().union(*alone)}
    assert dict(zip(together.tolist(), worth.tolist(), strict=True)) == best


def _pairs(one: str) -> set[str]:
    padded = f" {one} "
    return {padded[i : i + 2] for i in range(len(padded) - 1)}


def test_only_the_first_phrases_of_a_catalogue_are_looked_for_and_long_sounds_are_counted() -> None:
    words = ["kowalski", "kovalsky", "zimbrato", " ".join(["brown sugar"] * 30), *(f"{a}rim" for a in "bgpt")]
    index = phonetic_index(words * 20)
    for num in (0, 1, 3, 90, 160):
        places, _ = index.nearest(
            [sound("kovalski"), sound(" ".join(["brown sugar"] * 29))], num_shared=num, looked_at=200
        )
        assert (places < num).all()
        assert {n % 8 for n in places.tolist()} >= ({0, 1, 3} if num > 3 else set(range(min(num, 2))))


def test_sounds_farther_apart_than_asked_for_are_infinitely_far() -> None:
    heard, phrases = [sound(one) for one in ("kovalsky", "brim")], [sound(one) for one in ("kowalski", "sweetener")]
    every, near = distances(heard, phrases), distances(heard, phrases, np.asarray([0.5, 0.3]))
    assert near[0, 0] == every[0, 0]
    assert ((near == every) | (np.isposinf(near) & (every > np.asarray([0.5, 0.3])))).all()
    assert np.isposinf(near).any()


def test_semantic_neighbours_come_from_any_encoder() -> None:
    phrases = catalogue(NAMES, "basic")
    config = ShortlistConfig(
        catalogue="x", normaliser="basic", ways=("semantic",), encoder=asset("lm"), max_phrases=3, device="cpu"
    )
    encode = TextEncoder(resolve(asset("lm"), None)).encode
    texts = ["brown sugar", "Kowalski"]
    table = Shortlist(config, phrases, encode)(*_tables(phrases, [[t] for t in texts]), costs=Costs())
    for said, found in zip(texts, table["phrases"].to_pylist(), strict=True):
        assert len(found) == 3
        assert found[0] == said  # its own vector is the nearest
    alone = encode(["Kowalski"])
    assert np.allclose(encode(["Kowalski", "a much longer text beside it"])[:1], alone, atol=1e-5)
