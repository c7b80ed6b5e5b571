"""Files that are whole or absent, journals that can be cut, one lock, keyed random numbers, hashes, options."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optative.core.config import Config, Field, parse
from optative.core.errors import InputError, InputErrors, nearest
from optative.core.files import Journal, atomic_folder, lock, read_json, read_jsonl, write_json, write_text
from optative.core.folder import RunFolder, difference
from optative.core.ids import canonical_json, content_hash
from optative.core.rng import seed_from, stream, uniforms


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(target, {"new": float("nan")})
    with contextlib.suppress(RuntimeError), atomic_folder(tmp_path / "folder") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert read_json(target) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_atomic_folder_replaces_an_older_one(tmp_path):
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "f") as folder:
            (folder / text).write_text(text)
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_kill_during_a_write_never_shows_a_part(tmp_path):
    code = (
        "import sys, os, signal; from pathlib import Path; from optative.core.files import write_text\n"
        f"p = Path({str(tmp_path / 'big')!r}); write_text(p, 'a' * 10); os.fsync_ = os.fsync\n"
        "def die(fd): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = die; write_text(p, 'b' * 10_000_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "big").read_text() == "a" * 10


def test_a_journal_is_cut_back_to_its_checkpoint(tmp_path):
    path = tmp_path / "m.jsonl"
    with Journal(path) as journal:
        journal.append({"step": 1})
        kept = journal.offset
        journal.append({"step": 2})
    with open(path, "a") as stream_:
        stream_.write('{"step": 3, "cut')
    with Journal(path, kept) as journal:
        journal.append({"step": 2, "text": "a\u2028b"})
    assert list(read_jsonl(path)) == [{"step": 1}, {"step": 2, "text": "a\u2028b"}]
    with pytest.raises(InputError, match="shorter than its checkpoint"):
        Journal(path, 10_000)


def test_only_one_process_holds_the_lock(tmp_path):
    program = f"from optative.core.files import lock\nwith lock({str(tmp_path / 'l')!r}, 'busy'): pass"
    with lock(tmp_path / "l", "busy"):
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "busy" in other.stderr
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_run_folder_resumes_the_same_spec_and_refuses_another(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.claim({"a": {"b": 0}}, "a: {b: 0}") as resumed:
        assert not resumed  # and nothing came of it, so that another spec may have the folder
    with folder.claim({"a": {"b": 1}}, "a: {b: 1}") as resumed:
        assert not resumed
    (folder.path / "metrics.jsonl").write_text("{}\n")
    with folder.claim({"a": {"b": 1}}, "a: {b: 1}") as resumed:
        assert resumed
    with pytest.raises(InputError, match=r"a\.b: 1 -> 2"), folder.claim({"a": {"b": 2}}, ""):
        pass
    assert (folder.path / "metrics.jsonl").exists()
    with folder.claim({"a": {"b": 2}}, "", fresh=True) as resumed:
        assert not resumed
        assert not (folder.path / "metrics.jsonl").exists()


def test_a_folder_with_other_things_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(InputError, match="holds no run"), RunFolder(tmp_path).claim({}, "", fresh=fresh):
            pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_difference_names_every_leaf():
    assert difference({"a": [1], "b": 2}, {"a": [1], "c": 3}) == ["b: 2 -> absent", "c: absent -> 3"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_canonical_json_is_json_and_order_does_not_matter(value):
    assert json.loads(canonical_json(value)) == value
    if isinstance(value, dict):
        assert content_hash(dict(reversed(value.items()))) == content_hash(value)


def test_keyed_numbers_depend_on_the_key_alone():
    assert np.array_equal(uniforms(3, 1, "a"), uniforms(5, 1, "a")[:3])
    assert not np.array_equal(uniforms(3, 1, "a"), uniforms(3, 2, "a"))
    assert stream(1, "x").random() == stream(1, "x").random() != stream("1", "x").random()
    assert 0 <= seed_from("a") < 2**63


class Inner(Config):
    rate: float = Field(0.1, gt=0)


class Outer(Config):
    inner: Inner = Inner()
    name: str = "x"


def test_options_name_every_fault_with_its_line():
    with pytest.raises(InputErrors) as caught:
        parse(
            Outer,
            {"inner": {"raet": 1, "rate": -1}, "nmae": "y"},
            at="o",
            file="f.yaml",
            lines={"o.inner.raet": 3, "o.inner": 2},
        )
    text = str(caught.value)
    assert "f.yaml:3: o.inner.raet: unknown key 'raet'; the nearest is 'rate'" in text
    assert "o.inner.rate: input should be greater than 0; found -1" in text
    assert "o.nmae: unknown key 'nmae'; the nearest is 'name'" in text


def test_nearest():
    assert nearest("runn", ["run", "report"]) == "run"
    assert nearest("zzzz", ["run", "report"]) is None


def test_surrogates_from_broken_text_do_not_stop_a_write(tmp_path):
    write_text(tmp_path / "t", "a\ud800b")
    assert os.path.getsize(tmp_path / "t") == 5
