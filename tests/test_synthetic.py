import json
import multiprocessing
import re
import zlib

import numpy as np
import pytest
import soundfile

from ctxasr_ray.corpora import noise, sentences, spanish
from ctxasr_ray.corpora.manifest import read_corpus
from ctxasr_ray.corpora.spanish import SpanishConfig
from ctxasr_ray.corpora.synthetic import CONTEXT, NUM_VOICES, PREPARED, VARIANTS, SyntheticConfig, prepare, voices
from ctxasr_ray.training.sources import SyntheticText

CONFIG = SyntheticConfig()
SOUND_ALIKE = "two to four for write right here hear week weak buy by their there meet meat flour flowers"
SPLITS = ("train", "dev", "test")


def digest(place):
    split, index = place
    spoken = CONFIG.spoken(split, index)
    return zlib.crc32(spoken.samples.tobytes()), spoken.text, spoken.keywords, spoken.distractors


def test_an_utterance_is_the_same_in_every_process_and_order():
    places = [(split, index) for split in SPLITS for index in (0, 3, 77)]
    here = [digest(place) for place in places]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        there = pool.map(digest, places[::-1], chunksize=1)
    assert there[::-1] == here


def test_another_library_handle_in_the_process_changes_nothing():
    import ctypes

    import espeakng_loader

    expected = digest(("test", 5))
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)
    library.espeak_SetVoiceByName(b"en+f4")
    assert digest(("test", 5)) == expected


def test_utterances_last_3_to_8_s_and_never_clip():
    for split in SPLITS:
        for index in range(12):
            samples = CONFIG.spoken(split, index).samples
            assert samples.dtype == np.float32
            assert 3.0 <= len(samples) / 16000 <= 8.0
            assert 0.2 < np.abs(samples).max() < 0.95


def test_every_voice_speaks_and_no_timbre_is_in_two_splits():
    made = {split: voices(CONFIG.seed, split, CONFIG.ACCENTS, VARIANTS[split]) for split in SPLITS}
    assert (len(made["dev"]), len(made["test"])) == (15, 30) == (NUM_VOICES["dev"], NUM_VOICES["test"])
    assert len(made["train"]) >= 100
    names = [speaker for split in SPLITS for speaker, _ in made[split]]
    assert len(names) == len(set(names))
    timbres = [{voice.variant for _, voice in made[split]} for split in SPLITS]
    assert not timbres[0] & timbres[1] | timbres[0] & timbres[2] | timbres[1] & timbres[2]
    assert timbres[2] == set(VARIANTS["test"])


@pytest.mark.slow
def test_every_voice_of_train_can_say_the_longest_sentences():
    for index in range(2 * NUM_VOICES["train"]):
        assert np.abs(CONFIG.spoken("train", index).samples).max() > 0.2


def test_every_voice_has_every_noise_level():
    for split in SPLITS:
        number = NUM_VOICES[split]
        levels = {}
        for index in range(5 * number):
            levels.setdefault(index % number, set()).add(CONFIG.snr_db(split, index))
        assert all(found == {None, 20.0, 10.0, 5.0, 0.0} for found in levels.values())


def test_rare_words_are_disjoint_between_splits_and_from_common_words():
    train, dev, test = (sentences.lexicon(CONFIG.seed, split).words for split in SPLITS)
    assert not train & dev | train & test | dev & test
    assert not (train | dev | test) & sentences.vocabulary()
    spoken = {word for text in CONFIG.training_sentences(30_000) for word in text.split()}
    assert len(spoken & train) >= 5_000
    assert not spoken & (dev | test)


def test_no_sentence_of_dev_or_test_is_in_the_training_text():
    training = set(CONFIG.training_sentences(50_000))
    assert len(training) > 49_900
    for split in ("dev", "test"):
        assert not training & {CONFIG.sentence(split, index).text for index in range(3_000)}


def test_sentences_are_lower_case_words_with_their_keywords_in_them():
    rare = {split: sentences.lexicon(CONFIG.seed, split).words for split in SPLITS}
    for split in SPLITS:
        for index in range(1_000):
            sentence = CONFIG.sentence(split, index)
            assert re.fullmatch(r"[a-z']+( [a-z']+)*", sentence.text)
            assert sentence.keywords
            assert all(f" {keyword} " in f" {sentence.text} " for keyword in sentence.keywords)
            in_keywords = {word for keyword in sentence.keywords for word in keyword.split()}
            assert {word for word in sentence.text.split() if word in rare[split]} <= in_keywords


def test_words_that_sound_alike_are_both_common():
    words = [word for text in CONFIG.training_sentences(20_000) for word in text.split()]
    for word in SOUND_ALIKE.split():
        assert words.count(word) >= 10, word


def test_distractors_are_never_what_is_spoken_and_hold_no_word_of_another_held_out_split():
    dev, test = (sentences.lexicon(CONFIG.seed, split).words for split in ("dev", "test"))
    for index in range(50):
        sentence, distractors = CONFIG.sentence("test", index), CONFIG.distractors("test", index)
        assert len(set(distractors)) == CONFIG.num_distractors == 100
        assert not set(distractors) & set(sentence.keywords)
        words = {word for phrase in distractors for word in phrase.split()}
        assert words & test
        assert not words & dev
        assert not {w for phrase in CONFIG.distractors("train", index) for w in phrase.split()} & (dev | test)


def test_the_sentences_are_those_that_the_shipped_models_were_trained_on():
    """A change of grammar or names asks for new models in assets/; then this digest changes with them."""
    texts = "\n".join(CONFIG.sentence(split, index).text for split in SPLITS for index in range(1_000))
    assert zlib.crc32(texts.encode()) == 3577795551


def test_another_seed_gives_another_corpus():
    other = SyntheticConfig(seed=8)
    assert other.sentence("test", 0) != CONFIG.sentence("test", 0)
    assert len(sentences.lexicon(7, "test").words & sentences.lexicon(8, "test").words) < 300


def test_noise_levels_change_the_noise_and_nothing_else():
    loud = SyntheticConfig(snrs_db=(0.0,)).spoken("test", 2)
    clean = SyntheticConfig(snrs_db=(None,)).spoken("test", 2)
    assert (loud.text, loud.speaker_id, loud.keywords) == (clean.text, clean.speaker_id, clean.keywords)
    assert len(loud.samples) == len(clean.samples)
    assert (loud.snr_db, clean.snr_db) == (0.0, None)
    assert not clean.samples[:800].any()
    assert loud.samples[:800].std() > 0.001


@pytest.mark.parametrize("snr_db", [20.0, 0.0])
def test_noise_is_added_at_the_exact_ratio(snr_db):
    rng = np.random.default_rng(0)
    speech = (0.1 * rng.standard_normal(50_000)).astype(np.float32)
    for colour in noise.COLOURS:
        if colour == "babble":
            sound = noise.babble([speech[::-1], speech[1000:9000]], 50_000)
        else:
            sound = noise.coloured(colour, 50_000, rng)
        added = noise.add_noise(speech, sound, snr_db).astype(np.float64) - speech
        measured = 10 * np.log10(np.mean(speech.astype(np.float64) ** 2) / np.mean(added**2))
        assert measured == pytest.approx(snr_db, abs=0.01)


def test_colours_have_their_slopes():
    rng = np.random.default_rng(0)
    frequency = np.fft.rfftfreq(160_000, 1 / 16000)

    def drop_db(colour):
        power = np.abs(np.fft.rfft(noise.coloured(colour, 160_000, rng))) ** 2
        low = power[(frequency > 900) & (frequency < 1100)].mean()
        return 10 * np.log10(low / power[(frequency > 3600) & (frequency < 4400)].mean())

    measured = {colour: drop_db(colour) for colour in ("white", "pink", "brown", "speech_shaped")}
    expected = {"white": 0.0, "pink": 6.0, "brown": 12.0, "speech_shaped": 18.0}
    assert measured == pytest.approx(expected, abs=1.0)


def test_a_prepared_corpus_is_read_back_with_truth_and_context_apart(tmp_path):
    config = SyntheticConfig(num_train=2, num_dev=3, num_test=4)
    path = prepare(config, tmp_path / "corpus")
    table = read_corpus(path)
    assert table.equals(read_corpus(tmp_path / "corpus"))
    rows = table.to_pylist()
    assert [row["split"] for row in rows] == ["train"] * 2 + ["dev"] * 3 + ["test"] * 4
    contexts = [json.loads(line) for line in (tmp_path / "corpus" / CONTEXT).read_text().splitlines()]
    for row, context in zip(rows, contexts, strict=True):
        spoken = config.spoken(row["split"], int(row["utterance_id"].split("-")[1]))
        assert (row["reference"], tuple(row["keywords"])) == (spoken.text, spoken.keywords)
        assert (row["corpus"], row["speaker_id"]) == ("synthetic", spoken.speaker_id)
        assert dict(row["attributes"])["voice"] == spoken.voice
        samples, rate = soundfile.read(row["audio_uri"], dtype="float32")
        assert rate == 16000
        np.testing.assert_array_equal(samples, spoken.samples)
        assert context["utterance_id"] == row["utterance_id"]
        assert sorted(context["phrases"]) == sorted((*spoken.keywords, *spoken.distractors))
    assert "distractors" not in path.read_text()


def test_a_second_prepare_writes_the_same_bytes(tmp_path):
    config = SyntheticConfig(num_dev=1, num_test=2)
    files = []
    for name in ("a", "b"):
        prepare(config, tmp_path / name)
        found = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        files.append({p.relative_to(tmp_path / name): p.read_bytes() for p in found})
    assert files[0] == files[1]


def test_a_prepared_corpus_is_made_again_only_where_it_is_not_whole(tmp_path):
    config = SyntheticConfig(num_dev=1, num_test=1)
    audio = prepare(config, tmp_path).parent / "audio" / "dev" / "dev-000000.flac"
    whole = audio.read_bytes()
    audio.write_bytes(b"mine")
    prepare(config, tmp_path)
    assert audio.read_bytes() == b"mine"
    (tmp_path / PREPARED).unlink()
    prepare(config, tmp_path)
    assert audio.read_bytes() == whole
    assert read_corpus(prepare(SyntheticConfig(num_dev=2, num_test=1), tmp_path)).num_rows == 3


def test_unknown_splits_and_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="split 'eval' is unknown"):
        CONFIG.sentence("eval", 0)
    with pytest.raises(ValueError, match="negative"):
        CONFIG.sentence("test", -1)


def test_spanish_commands_hold_rare_names_of_their_split_and_nothing_that_the_recogniser_cannot_write():
    corpus, words = SpanishConfig(), {split: SpanishConfig().rare_words(split) for split in SPLITS}
    assert not words["train"] & words["dev"]
    assert not (words["train"] | words["dev"]) & words["test"]
    for split in SPLITS:
        for index in range(200):
            said = corpus.sentence(split, index)
            assert set(said.text) <= {*spanish.CHARACTERS, " "}
            assert spanish.MIN_CHARACTERS <= len(said.text) <= spanish.MAX_CHARACTERS
            rare = set(said.text.split()) - spanish.vocabulary()
            assert rare
            assert rare <= words[split]
            assert rare <= {word for phrase in said.keywords for word in phrase.split()}
            assert all(phrase in said.text for phrase in said.keywords)
    spoken = corpus.spoken("dev", 3)
    assert spoken.voice.startswith("es")
    assert 3.0 <= len(spoken.samples) / 16000 <= 8.0


def test_text_to_learn_from_holds_no_name_of_dev_or_test():
    held_out = SpanishConfig().rare_words("dev") | SpanishConfig().rare_words("test")
    texts = list(SyntheticText(num_sentences=90, num_seeds=3, corpus=SpanishConfig()).sentences())
    assert len(texts) == len(set(texts)) == 90
    assert all(held_out.isdisjoint(text.split()) for text in texts)
