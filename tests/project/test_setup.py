"""launch/setup.sh: an environment is made once, and what is in the way is said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.places import ROOT

NOBODY = 65534


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A checkout that every user of the machine can read."""
    root = Path(tempfile.mkdtemp())
    try:
        (root / "launch").mkdir()
        shutil.copy(ROOT / "launch/setup.sh", root / "launch")
        (root / "pyproject.toml").write_text("[project]\n")
        (root / "constraints.txt").write_text("")
        root.chmod(0o755)
        yield root
    finally:
        root.chmod(0o755)
        shutil.rmtree(root)


def set_up(
    checkout: Path, *arguments: str, path: str = "/usr/bin:/bin", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script as a user who is not root."""
    command = ["bash", str(checkout / "launch/setup.sh"), *arguments]
    env, user = {"PATH": path, "HOME": str(checkout), **variables}, NOBODY if os.geteuid() == 0 else None
    return subprocess.run(command, cwd="/", env=env, user=user, capture_output=True, text=True, check=False, timeout=60)


def tool(checkout: Path, program: str, *names: str) -> str:
    """A PATH on which `program` has these names."""
    tools = checkout / "bin"
    tools.mkdir(mode=0o755, exist_ok=True)
    for name in names:
        (tools / name).write_text(program)
        (tools / name).chmod(0o755)
    checkout.chmod(0o777)
    return f"{tools}:/usr/bin:/bin"


@pytest.mark.parametrize("place", [".", ".venv"])
def test_a_directory_that_cannot_be_written_is_named(place: str, checkout: Path) -> None:
    (checkout / place).mkdir(exist_ok=True)
    (checkout / place).chmod(0o555)
    done = set_up(checkout)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"setup: {(checkout / place).resolve()} cannot be written by ")
    assert "POWERSAMPLE_PYTHON" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "apt" not in done.stderr


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("needs ensurepip\nFailing command: x", "it has no ensurepip (on Debian and Ubuntu: apt install python3-venv)"),
        ("Traceback\nOSError: No space left on device", "OSError: No space left on device"),
    ],
)
def test_a_python_that_makes_no_environment_says_why(output: str, reason: str, checkout: Path) -> None:
    program = f'#!/bin/sh\ncase "$*" in "-m venv"*) printf "%s\\n" "{output}"; exit 1 ;; esac\n'
    done = set_up(checkout, path=tool(checkout, program, "python3"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"cannot make an environment in {checkout}/.venv: {reason}")


FAKE_PYTHON = r"""#!/usr/bin/env bash
# An interpreter that fits, makes environments, and installs nothing: it writes down what it was asked.
case "$*" in
  "-c "*) exit 0 ;;
  --version) echo "Python 3.12.0" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip --version") ;;
  "-m pip config list") cat "$here/settings" ;;
  "-m pip install "*)
    echo "${*:2}" >>"$here/log"
    [[ "$*" == *" uv" ]] || exit "${PIP_CODE:-0}"
    [[ -z ${NO_UV:-} ]] || { echo "ERROR: No matching distribution found for uv" >&2; exit 1; }
    cp "$here/its-uv" "$(dirname "$0")/uv"
    ;;
esac
"""
FAKE_UV = r"""#!/usr/bin/env bash
# Writes down what it was asked, its input in the place of the dash, and what of its surroundings matters.
[[ $1 == --version ]] && exit
echo "uv ${*/%-/}$(paste -s -d "|" -)" >>"$here/log"
echo ${SSL_CERT_FILE:-} ${UV_INSECURE_HOST:-} ${UV_HTTP_TIMEOUT:-} ${UV_PYTHON_DOWNLOADS:-} >"$here/surroundings"
echo "$UV_CACHE_DIR" >"$here/cache"
mkdir -p "$UV_CACHE_DIR"
[[ -z ${MUTE:-} ]] || exit 1
printf 'Downloading %s\n' 'torch (1.5GiB)' 'ray (75.6MiB)' 'six (19.0MiB)' >&2
[[ -z ${UV_CODE:-} ]] || { printf '%s\n' 'error: No route' '  cause: none' >&2; exit "$UV_CODE"; }
echo 'Prepared 9 packages in 1s' >&2
"""
NO_UV_ON_PATH = "#!/bin/sh\nexit 127\n"  # as a stand-in for a uv of other versions of Python does


def made(checkout: Path, *arguments: str, uv: str = FAKE_UV, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script with an interpreter, and a uv on PATH, that write down what they are asked; see `installs`."""
    path, here = tool(checkout, FAKE_PYTHON, "python3"), checkout / "bin"
    tool(checkout, uv, "uv")
    tool(checkout, FAKE_UV, "its-uv")
    (here / "settings").touch()
    here.chmod(0o777)
    return set_up(checkout, *arguments, path=path, here=str(here), **variables)


def installs(checkout: Path) -> list[str]:
    return (checkout / "bin/log").read_text().splitlines()


def test_set_up_happens_once_and_again_when_its_inputs_change(checkout: Path) -> None:
    assert made(checkout).returncode == 0
    again = made(checkout)
    assert (again.returncode, again.stderr) == (0, "")
    assert len(installs(checkout)) == 1
    (checkout / "constraints.txt").write_text("torch==2.13.0\n")
    assert made(checkout).returncode == 0
    assert len(installs(checkout)) == 2
    assert sorted(path.name for path in checkout.iterdir()) == [
        ".venv",
        "bin",
        "constraints.txt",
        "launch",
        "pyproject.toml",
    ]


def test_the_development_environment_serves_for_runs_but_not_the_other_way_round(checkout: Path) -> None:
    assert made(checkout).returncode == 0
    assert made(checkout, "dev").returncode == 0
    assert made(checkout).returncode == 0
    assert [line.rpartition("-e ")[2] for line in installs(checkout)] == [".", ".[dev]"]


def test_a_failed_set_up_is_one_sentence_and_is_made_again_from_nothing(checkout: Path) -> None:
    failed = made(checkout, UV_CODE="1", PIP_CODE="1")
    assert failed.returncode == 2
    assert "could not be installed" in failed.stderr
    (checkout / ".venv/left-over").touch()
    assert made(checkout).returncode == 0
    assert not (checkout / ".venv/left-over").exists()


UV = "uv pip install --python {}/.venv/bin/python --color never --index-strategy unsafe-best-match -r "
LINES = "-c constraints.txt|-e ."
PIP = "pip install --no-input --progress-bar off -c constraints.txt -e ."
PIP_FOR_UV = "pip install --no-input --progress-bar off -c constraints.txt --retries 1 uv"


def test_the_uv_on_path_installs_and_its_downloads_are_told(checkout: Path) -> None:
    done = made(checkout, "dev")
    assert done.returncode == 0
    assert installs(checkout) == [UV.format(checkout) + LINES + "[dev]"]
    assert done.stderr.splitlines()[2:5] == [
        "setup:   torch (1610 MB)",
        "setup:   ray (79 MB)",
        "setup:   unpacking 9 packages",
    ]
    assert "Downloading six" in (checkout / ".venv/setup.log").read_text()


def test_without_one_pip_puts_uv_into_the_environment(checkout: Path) -> None:
    done = made(checkout, uv=NO_UV_ON_PATH)
    assert (done.returncode, "so pip does" in done.stderr) == (0, False)
    assert installs(checkout) == [PIP_FOR_UV, UV.format(checkout) + LINES]


@pytest.mark.parametrize(
    ("variables", "settings", "before", "reason"),
    [
        ({"UV_CODE": "2"}, "", [PIP_FOR_UV, UV + LINES], "No route"),
        ({"MUTE": "1"}, "", [PIP_FOR_UV, UV + LINES], "it says nothing"),
        ({"NO_UV": "1"}, "", [PIP_FOR_UV], "pip cannot install it"),
        ({}, "global.no-binary=':all:'\n", [], "pip's setting no-binary is not known here"),
    ],
    ids=["fails", "fails without a word", "is not to be had", "does not know a setting"],
)
def test_where_uv_cannot_do_it_pip_does(
    variables: dict[str, str], settings: str, before: list[str], reason: str, checkout: Path
) -> None:
    tool(checkout, settings, "settings")
    done = made(checkout, uv=NO_UV_ON_PATH, **variables)
    assert done.returncode == 0
    assert installs(checkout) == [*(line.format(checkout) for line in before), PIP]
    assert f"setup:   uv cannot do it here, so pip does ({reason})\n" in done.stderr
    assert not (checkout / ".venv/uv-cache").exists()


PIP_CONF = """
[global]
index-url = https://me:it's@mirror/simple?a=b
find-links =
    /wheels
    /b*n
extra-index-url = https://replaced/simple
constraint = /replaced.txt
timeout = 90
[install]
extra-index-url = https://one/simple https://two/simple
cert = /replaced.pem
[download]
no-binary = :all:
"""


@pytest.mark.parametrize(("no_index", "more"), [("off", []), ("Yes", ["--no-index"])])
def test_what_is_set_for_pip_holds_for_uv(no_index: str, more: list[str], checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip")
    (tmp_path / "pip.conf").write_text(PIP_CONF)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "XDG_"))}
    ours = {"CONFIG_FILE": str(tmp_path / "pip.conf"), "CERT": "/our.pem", "CONSTRAINT": "/our.txt", "RETRIES": "9"}
    ours |= {"TRUSTED_HOST": "a b:1", "NO_INDEX": no_index, "NO_BINARY": ""}
    env = clean | {"XDG_CONFIG_DIRS": str(tmp_path), "HOME": str(tmp_path)} | {f"PIP_{k}": v for k, v in ours.items()}
    command = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60).stdout
    tool(checkout, told, "settings")
    assert made(checkout, REQUESTS_CA_BUNDLE="/replaced.pem").returncode == 0
    [asked] = installs(checkout)
    assert sorted(asked.removeprefix(UV.format(checkout)).split("|")) == sorted(
        [
            *LINES.split("|"),
            "--constraint /our.txt",
            "--index-url https://me:it's@mirror/simple?a=b",
            "--extra-index-url https://one/simple",
            "--extra-index-url https://two/simple",
            "--find-links /wheels",
            "--find-links /b*n",
            *more,
        ]
    )
    assert (checkout / "bin/surroundings").read_text() == "/our.pem a b:1 90 never\n"


def test_a_certificate_that_pip_finds_by_itself_holds_for_uv(checkout: Path) -> None:
    assert made(checkout, REQUESTS_CA_BUNDLE="/requests.pem", CURL_CA_BUNDLE="/curl.pem").returncode == 0
    assert (checkout / "bin/surroundings").read_text() == "/requests.pem never\n"


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, ".venv/uv-cache"),
        ({"PIP_CACHE_DIR": "{}/bin/pips"}, "bin/pips/uv-cache"),
        ({"PIP_CACHE_DIR": "{}/bin/pips", "UV_CACHE_DIR": "{}/bin/its"}, "bin/its"),
    ],
)
def test_a_cache_is_left_only_where_somebody_named_it(variables: dict[str, str], place: str, checkout: Path) -> None:
    assert made(checkout, **{name: value.format(checkout) for name, value in variables.items()}).returncode == 0
    assert (checkout / "bin/cache").read_text() == f"{checkout / place}\n"
    assert (checkout / place).exists() == bool(variables)


def test_bytecode_is_made_where_a_first_import_writes_none(checkout: Path) -> None:
    assert made(checkout, PYTHONDONTWRITEBYTECODE="1").returncode == 0
    assert installs(checkout)[0].endswith(f" --compile-bytecode -r {LINES}")


def test_an_interpreter_of_ones_own_needs_no_set_up(checkout: Path) -> None:
    assert set_up(checkout, POWERSAMPLE_PYTHON="/usr/bin/python3").returncode == 0
    assert not (checkout / ".venv").exists()


def test_the_interpreters_that_are_looked_for_are_those_of_the_package() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    script = (ROOT / "launch/setup.sh").read_text()
    [(first, after)] = re.findall(r"\(3, (\d+)\) <= sys.version_info < \(3, (\d+)\)", script)
    assert wanted == f">=3.{first},<3.{after}"
    [names] = re.findall(r"for name in (python3 [^;]+);", script)
    assert {*names.split()} == {"python3"} | {f"python3.{minor}" for minor in range(int(first), int(after))}


def test_a_python_that_is_too_old_is_named(checkout: Path) -> None:
    program = '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n'
    path = tool(checkout, program, "python3", "python3.11", "python3.12", "python3.13", "python3.14")
    done = set_up(checkout, path=path)
    assert done.returncode == 2
    assert "Python 3.11 to 3.14 is needed and python3 is Python 3.9.2" in done.stderr
    assert not (checkout / ".venv").exists()
