"""The command line as a whole: quick help, the table of verbs, mistyped words, exit codes.

Planted verbs fail in each way that a real one can; the full disk, the closed pipe and the child processes are real.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Annotated, Any

import pytest
import typer

from optative import __version__
from optative.cli.main import VERBS, Verb, load, main
from optative.cli.output import console, print_json, print_run
from optative.core.errors import CriterionNotMet, InputError

HEAVY = ("torch", "transformers", "peft", "matplotlib", "pyarrow", "scipy", "pandas", "numpy")


def child(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optative", *arguments]
    return subprocess.run(command, text=True, capture_output="stdout" not in options, timeout=60, **options)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Make `target` the verb `planted`."""

    def put(target: Any) -> None:
        module = types.ModuleType("optative.cli.planted")
        module.planted = target  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "optative.cli.planted", module)
        monkeypatch.setitem(VERBS, "planted", Verb("planted:planted", "A planted verb.", "Make", "optative planted"))

    return put


@pytest.fixture
def raising(plant: Callable[[Any], None]) -> Callable[[BaseException], int]:
    """The exit code of a verb that raises `error`."""

    def run(error: BaseException) -> int:
        def planted() -> None:
            raise error

        plant(planted)
        return main(["planted"])

    return run


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["systems", "list"], ["systems", "list", "--json"], ["runn"]]
)
def test_answers_at_once_and_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from optative.cli.main import main\n"
        f"code = main({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stderr.splitlines()[-1] == f"[] {2 if arguments == ['runn'] else 0}", done.stderr
    assert min(seconds) < 0.5, f"{min(seconds):.2f} s of processor time; half a second is the promise"


def test_help_names_every_verb_under_its_panel(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f" {name} " in text
        assert verb.panel in text
    assert main([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", list(VERBS))
def test_every_verb_loads_and_its_example_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = VERBS[name]
    program, first, *rest = shlex.split(verb.example)
    assert (program, first) == ("optative", name)
    command = load(name)
    if hasattr(command, "commands"):
        assert rest[0] in command.commands, f"the example's {rest[0]!r} is no verb of {name}"
        command, rest = command.commands[rest[0]], rest[1:]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options
    assert main([name, "--help"]) == 0
    assert "Example: optative" in capsys.readouterr().out


def test_version_and_module_are_the_same_program() -> None:
    for command in ([sys.executable, "-m", "optative"], [os.path.join(os.path.dirname(sys.executable), "optative")]):
        done = subprocess.run([*command, "--version"], text=True, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, f"optative {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runn"], "No such verb 'runn'. Did you mean 'run'?"),
        (["evalute", "x"], "No such verb 'evalute'. Did you mean 'evaluate'?"),
        (["zzzzzz"], "No such verb 'zzzzzz'. Verbs: init, "),
        (["--vresion"], "No such option '--vresion'. Did you mean '--version'?"),
        (["systems", "lst"], "Did you mean 'list'?"),
        (["systems", "list", "--jsno"], "No such option '--jsno'. Did you mean '--json'?"),
        (["systems", "list", "--status"], "requires an argument"),
        (["systems", "show"], "SYSTEM"),
        (["systems", "list", "extra"], "extra"),
    ],
)
def test_a_mistyped_word_gets_the_nearest(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith(("Usage: optative", "Error: "))
    assert words in err


def test_a_wrong_type_is_a_usage_error(plant: Callable[[Any], None], capsys: pytest.CaptureFixture[str]) -> None:
    def planted(limit: Annotated[int, typer.Option(help="How many.")] = 1) -> None:
        print(limit)

    plant(planted)
    assert main(["planted", "--limit", "7"]) == 0
    assert capsys.readouterr().out == "7\n"
    assert main(["planted", "--limit", "many"]) == 2
    assert "--limit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words", "trace"),
    [
        (InputError("not a number", file="a.jsonl", line=4), 2, "Error: a.jsonl:4: not a number\n", False),
        (CriterionNotMet("gain of 0.01 is below 0.08"), 3, "Error: gain of 0.01 is below 0.08\n", False),
        (KeyboardInterrupt(), 130, "Interrupted.\n", False),
        (typer.Exit(3), 3, "", False),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x"), 2, "no space left on device", False),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/x"), 2, "Permission denied: 'runs/x'", False),
        (ZeroDivisionError("division"), 1, "this is a fault of optative", True),
        (ValueError("a plain one is ours too"), 1, "this is a fault of optative", True),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    words: str,
    trace: bool,
    raising: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert raising(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert ("Traceback" in err) is trace
    assert words in err if words else err == ""


def test_a_full_disk_is_recognised_behind_other_errors(raising: Any, capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raising(wrapped) == 2
    assert raising(RuntimeError("I/O error: No space left on device (os error 28)")) == 2
    message = capsys.readouterr().err
    assert message.count("What is already written is kept; free space and run the same command to resume.") == 2
    assert "Traceback" not in message


def test_interrupting_a_run_says_that_it_resumes(
    plant: Any, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def planted() -> None:
        raise KeyboardInterrupt

    plant(planted)
    monkeypatch.setitem(VERBS, "run", VERBS["planted"])
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "Interrupted. What is already written is kept; run the same command to resume.\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_a_really_full_device() -> None:
    with open("/dev/full", "w") as full:
        done = child("systems", "list", "--json", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: no space left on device")
    assert "Traceback" not in done.stderr


def test_a_really_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = child("systems", "list", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_json_output_is_valid_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "Grüße \ud800 \u2028 <b>", "numbers": [1, 2.5, None]}
    print_json(value)
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == value
    with pytest.raises(ValueError):
        print_json(float("nan"))


def test_the_console_prints_markup_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("[bold]not markup[/bold] :smile: [/]")
    assert capsys.readouterr().out == "[bold]not markup[/bold] :smile: [/]\n"


def test_a_finished_run_ends_stdout_with_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    figure = {
        "name": "kl",
        "split": "held_out",
        "base": None,
        "steered": 0.25,
        "difference": None,
        "interval": None,
        "n": 4,
    }
    evaluation = {"metrics": [figure], "warnings": [{"code": "growing_length", "message": "answers grew [by half]"}]}
    print_run("runs/a-1", evaluation, False)
    out, err = capsys.readouterr()
    assert out == "runs/a-1\n"
    assert "not measured" in err
    assert "warning: answers grew [by half]" in err
    print_run("runs/a-1", evaluation, True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"folder": "runs/a-1", **evaluation}
    assert err == ""
