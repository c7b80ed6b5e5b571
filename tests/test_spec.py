"""The run spec: every kind of wrong input is one clear error with its place."""

from __future__ import annotations

import pytest
import yaml

from optative.core.errors import InputError
from optative.runs.spec import example_text, load_spec


def spec_file(tmp_path, change=lambda raw: None, text=None):
    path = tmp_path / "spec.yaml"
    if text is None:
        raw = yaml.safe_load(example_text())
        change(raw)
        text = yaml.safe_dump(raw, sort_keys=False)
    path.write_text(text)
    return path


def test_the_example_is_complete_and_its_quick_form_smaller():
    full, text = load_spec()
    quick, _ = load_spec(quick=True)
    assert "objective:" in text
    assert quick.objective.held_out < full.objective.held_out
    assert full.key != quick.key == load_spec(quick=True)[0].key
    assert full.key != load_spec(overrides=["seed=1"])[0].key


def test_trackers_and_criteria_do_not_change_the_identity():
    plain, _ = load_spec()
    tracked, _ = load_spec(overrides=["track=[tensorboard]", "require.smallest_difference=0.1"])
    assert tracked.track == ("tensorboard",)
    assert tracked.require.smallest_difference == 0.1
    assert plain.key == tracked.key


def test_a_setting_wins_over_quick_and_file(tmp_path):
    spec, _ = load_spec(
        spec_file(tmp_path),
        quick=True,
        overrides=["optimizer.dpo.beta=0.3", "objective.verifiable_instructions.train=7"],
    )
    assert spec.optimizer.beta == 0.3
    assert spec.objective.train == 7


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "beta: 0.1",
            "betta: 0.1",
            r"spec\.yaml:\d+: optimizer\.dpo\.betta: unknown key 'betta'; the nearest is 'beta'",
        ),
        ("beta: 0.1", "beta: much", r"spec\.yaml:\d+: optimizer\.dpo\.beta: .*valid number.*found 'much'"),
        ("beta: 0.1", "beta: 0", r"optimizer\.dpo\.beta: .*greater than 0"),
        ("beta: 0.1", "beta: .nan", r"optimizer\.dpo\.beta: .*finite"),
        ("  dpo:", "  dpoo:", r"spec\.yaml:\d+: optimizer: unknown optimizer 'dpoo'; the nearest is 'dpo'"),
        ("  dpo:", "  sft: {}\n  dpo:", r"optimizer: needs exactly one name; found \['dpo', 'sft'\]"),
        ("seed: 0", "seed: -1", r"spec\.yaml:\d+: seed: "),
        ("seed: 0", "seed: 0\nseed: 1", r"spec\.yaml:\d+: seed: given twice, first in line \d+"),
        ("seed: 0", "sead: 0", r"spec\.yaml:\d+: sead: unknown key 'sead'; the nearest is 'seed'"),
        (
            "negative_flips,",
            "negative_flip,",
            r"evaluation: unknown name 'negative_flip'; the nearest is 'negative_flips'",
        ),
        ("name: instructions", "name: [a", r"spec\.yaml:\d+: not YAML"),
        ("name: instructions", "name: a/../b", r"spec\.yaml:\d+: name: "),
        ("    train: 180 ", "    train: 180.5 ", r"train: .*integer"),
    ],
)
def test_wrong_specs(tmp_path, old, new, message):
    text = example_text()
    assert old in text
    path = spec_file(tmp_path, text=text.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_spec(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.dpo.betta=1", "nearest is 'beta'"),
        ("optimiser.dpo.beta=1", "unknown key 'optimiser'; the nearest is 'optimizer'"),
        ("optimizer.dpo.beta", "expected a.b=value"),
        ("optimizer.dpo.eval_every=5", "cannot act: an on-policy run has no held-out pairs"),
        ("seed.x=1", "is not a mapping"),
        ("track=[wandb]", "unknown name 'wandb'"),
        ("optimizer.dpo.beta=[", "not YAML"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(InputError, match=message):
        load_spec(overrides=[setting])


def test_missing_files_empty_files_and_other_types(tmp_path):
    with pytest.raises(InputError, match="no such spec file"):
        load_spec(tmp_path / "absent.yaml")
    for text in ("", "- a\n", "just words"):
        with pytest.raises(InputError, match="expected a mapping"):
            load_spec(spec_file(tmp_path, text=text))
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load_spec(tmp_path / "latin.yaml")


def test_an_endpoint_cannot_be_steered(tmp_path):
    def change(raw):
        raw["generator"] = {"endpoint": {"url": "http://localhost:1", "model": "m"}}

    with pytest.raises(InputError, match="an endpoint cannot be steered"):
        load_spec(spec_file(tmp_path, change))


def test_a_mapping_is_as_good_as_a_file_and_stays_untouched():
    raw = yaml.safe_load(example_text())
    before = yaml.safe_dump(raw)
    spec, text = load_spec(raw, overrides=["seed=3"])
    assert spec.seed == 3
    assert yaml.safe_dump(raw) == before
    assert yaml.safe_load(text) == raw
