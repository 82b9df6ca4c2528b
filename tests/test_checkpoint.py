"""What is refused before a model is built from it, in words that name the file; and what a fingerprint covers."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_ctc
from transformers import AutoModelForCausalLM, AutoModelForCTC, Wav2Vec2Config, Wav2Vec2Model

from ctxasr_ray.models.checkpoint import ADAPTER, check_vocabulary, fingerprint, load_model, load_tokenizer, resolve
from ctxasr_ray.models.ctc import CtcModel
from ctxasr_ray.models.speech_units import load_quantiser


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ctc.make("wav2vec2", tmp_path_factory.mktemp("made"))


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def test_a_whole_directory_is_taken(model: Path) -> None:
    checkpoint = resolve(str(model))
    assert [p.name for p in checkpoint.weight_files] == ["model.safetensors"]
    assert {"tokenizer_config.json", "vocab.json"} <= {p.name for p in checkpoint.tokenizer_files}
    assert checkpoint.commit is None
    assert load_model(AutoModelForCTC, checkpoint).training is False


def test_a_directory_without_weights_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    for check in (resolve, fingerprint):
        with pytest.raises(ValueError, match=r"no weights; expected model\.safetensors, found .*config\.json"):
            check(str(model))


def test_pickled_weights_are_refused_unread(model: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (model / "exploded",))  # type: ignore[return-value]

    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    for check in (resolve, fingerprint):
        with pytest.raises(ValueError, match=r"weights are in pytorch_model\.bin, a format that can run code"):
            check(str(model))
    assert not (model / "exploded").exists()


def test_weights_cut_short_are_refused(model: Path) -> None:
    path = model / "model.safetensors"
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 100, 4, 0):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=rf"model\.safetensors .*{cut} bytes"):
            resolve(str(model))
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"model\.safetensors is a Git LFS pointer"):
        resolve(str(model))


def test_a_missing_shard_and_a_shard_outside_are_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = model / "model.safetensors.index.json"
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ValueError, match=r"weight file .*model-00002-of-00002\.safetensors is missing"):
        resolve(str(model))
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(ValueError, match=r"index\.json names '\.\./model\.safetensors', which lies outside"):
        resolve(str(model))
    index.write_text("[]")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is not an index"):
        resolve(str(model))


def test_a_directory_that_is_no_model_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        resolve(str(model))
    with pytest.raises(ValueError, match=r"no such directory: .*nowhere"):
        resolve(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"adapter_config\.json is missing"):
        resolve(str(model), stem=ADAPTER)
    with pytest.raises(ValueError, match="a directory, which has no revision 'main'"):
        resolve(str(model), "main")


def test_a_model_that_a_recipe_trains_is_missing_with_its_command() -> None:
    with pytest.raises(ValueError, match=r"no such directory.*Run `ctxasr train speech_llm_adapter` first"):
        resolve("runs/train/speech_llm_adapter/model")
    with pytest.raises(ValueError, match=r"no quantiser at.*Run `ctxasr train speech_lm` first"):
        load_quantiser("runs/train/speech_lm/model/units.safetensors")
    with pytest.raises(ValueError, match=r"no such directory: \S*/elsewhere/in/model\.$"):
        resolve("elsewhere/in/model")


def test_code_in_a_checkpoint_is_never_run(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "evil.py").write_text(f"open({str(model / 'exploded')!r}, 'w')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCTC": "evil.Model"}
    (model / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto_map}))
    with pytest.raises(ValueError, match="cannot be loaded as AutoModelForCTC"):
        load_model(AutoModelForCTC, resolve(str(model)))
    assert not (model / "exploded").exists()


def test_an_encoder_without_its_ctc_head_is_refused(model: Path) -> None:
    config = Wav2Vec2Config.from_pretrained(model)
    Wav2Vec2Model(config).save_pretrained(model)
    with pytest.raises(ValueError, match=r"model\.safetensors lacks 2 weights that Wav2Vec2ForCTC needs.*lm_head"):
        load_model(AutoModelForCTC, resolve(str(model)))


def test_weights_of_another_shape_and_another_kind_of_model_are_refused(model: Path) -> None:
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "vocab_size": 40}))
    with pytest.raises(ValueError, match=r"weight 'lm_head.*\(32,.*config\.json asks for \(40,"):
        load_model(AutoModelForCTC, resolve(str(model)))
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded as AutoModelForCausalLM") as refused:
        load_model(AutoModelForCausalLM, resolve(str(model)))
    assert str(refused.value).endswith("says 'wav2vec2'; give a model of that kind, or take a recipe for this one.")


def test_tokenizers_that_are_not_the_models_are_refused(model: Path) -> None:
    tiny_ctc.save_letters(model, [*tiny_ctc.LETTERS, "1", "2"])
    with pytest.raises(ValueError, match=r"token '2' of .*vocab\.json has id 33, but the model has 32 outputs"):
        CtcModel(resolve(str(model)))
    tiny_ctc.save_letters(model, tiny_ctc.LETTERS[:-3])
    with pytest.raises(ValueError, match=r"output 29 \(of 3\) has no token in .*vocab\.json"):
        CtcModel(resolve(str(model)))
    tiny_ctc.save_letters(model, tiny_ctc.LETTERS[:8])
    checkpoint = resolve(str(model))
    with pytest.raises(ValueError, match=r"vocab\.json.* knows 8 tokens, but the model has 32 outputs"):
        check_vocabulary(checkpoint, load_tokenizer(checkpoint), 32)
    for path in checkpoint.tokenizer_files:
        path.unlink()
    with pytest.raises(ValueError, match=r"no tokenizer files in .*model; expected tokenizer\.json"):
        CtcModel(resolve(str(model)))


def test_a_broken_tokenizer_and_a_missing_feature_extractor_are_refused_by_name(model: Path) -> None:
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no feature extractor can be read from .*preprocessor_config\.json"):
        CtcModel(resolve(str(model)))
    (model / "vocab.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"no tokenizer can be read from .*vocab\.json"):
        load_tokenizer(resolve(str(model)))


def test_fingerprints_follow_what_changes_numbers_and_nothing_else(model: Path) -> None:
    before = fingerprint(str(model))
    assert set(before) == {"model", "tokenizer", "preprocessor"}
    (model / "README.md").write_text("notes")
    assert fingerprint(str(model)) == before
    changed = model / "preprocessor_config.json"
    changed.write_text(changed.read_text().replace("16000", "8000"))
    after = fingerprint(str(model))
    assert after["preprocessor"] != before["preprocessor"]
    assert after["model"] == before["model"]
    for name, part in (("generation_config.json", "generation"), ("ctc_head.safetensors", "ctc_head")):
        (model / name).write_text("{}")
        assert set(fingerprint(str(model))) - set(after) == {part}
        (model / name).unlink()
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(bytes(weights))
    assert fingerprint(str(model))["model"] != before["model"]
