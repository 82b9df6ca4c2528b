"""Ten utterances end to end: a change of these figures is a change of the product, and raises a STAGE_VERSION."""

import json
from pathlib import Path

import pytest

from ctxasr_ray.cli import main

EXPECTED = {
    "dev first_pass wer": 0.4364,
    "dev first_pass cer": 0.2107,
    "dev lm_rescoring wer": 0.3818,
    "dev lm_rescoring cer": 0.2074,
    "dev oracle wer": 0.3636,
    "dev oracle cer": 0.1873,
    "dev oracle/compositional wer": 0.3636,
    "test first_pass wer": 0.4846,
    "test first_pass cer": 0.203,
    "test lm_rescoring wer": 0.3923,
    "test lm_rescoring cer": 0.1644,
    "test oracle wer": 0.3923,
    "test oracle cer": 0.1519,
    "test oracle/compositional wer": 0.3692,
}


def test_ten_utterances_give_the_figures_they_gave(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    words = ["quickstart", "--root", "run", "--json", "--executor", "inline", "--shard-audio-s", "20"]
    words += ["--synthetic.num-dev", "5", "--synthetic.num-test", "10", "--num-replicates", "100"]
    assert main([*words, "--weights.num-bootstrap", "0"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rates = {
        f"{r['split']} {r['system']} {r['metric']}": round(r["value"], 4)
        for r in records
        if r["metric"] in ("wer", "cer")
    }
    assert rates == EXPECTED
