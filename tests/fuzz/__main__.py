"""Coverage-guided fuzzing of one target: `make fuzz TARGET=link MINUTES=15`.

    python -m tests.fuzz TARGET --minutes 15

TARGET `all` takes them one after the other, a process each, and ends with the first finding.

The corpus grows in runs/fuzz/TARGET and is used again the next time. An input that raises what it
must not, takes more than a minute or 2 GiB ends the run with a non-zero exit code and lies in
runs/fuzz/crashes; once the fault is fixed it moves to tests/fuzz/crashers/TARGET, where the tests
try it for ever.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import atheris

CORPUS = Path("runs/fuzz")


def main() -> None:
    """Fuzz until the time is up or something is found; atheris never returns."""
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("target")
    arguments.add_argument("--minutes", type=float, default=15.0)
    given = arguments.parse_args()
    if given.target == "all":
        _one_after_the_other(given.minutes)
        return
    # Instrumented as it is imported, and nothing but our own code: that is whose branches count.
    with atheris.instrument_imports(include=["shoal"]):
        from tests.fuzz.targets import TARGETS, crashers
    if given.target not in TARGETS:
        sys.exit(f"there is no target {given.target}; there are {', '.join(TARGETS)}")
    target = TARGETS[given.target]
    corpus = CORPUS / given.target
    corpus.mkdir(parents=True, exist_ok=True)
    (CORPUS / "crashes").mkdir(exist_ok=True)
    known = [path.read_bytes() for path in crashers(given.target)]
    for number, seed in enumerate([*target.seeds(), *known]):
        (corpus / f"seed-{number:03}").write_bytes(seed)
    options = {
        "max_total_time": round(60 * given.minutes),
        "max_len": target.bytes_max,
        "timeout": 60,
        "rss_limit_mb": 2048,
        "print_final_stats": 1,
        "artifact_prefix": f"{CORPUS}/crashes/{given.target}-",
    }
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup(["tests.fuzz", *flags, str(corpus)], target.run)
    atheris.Fuzz()


def _one_after_the_other(minutes: float) -> None:
    from tests.fuzz.targets import TARGETS

    for name in TARGETS:
        command = [sys.executable, "-m", "tests.fuzz", name, "--minutes", str(minutes)]
        if code := subprocess.run(command, check=False).returncode:
            sys.exit(code)


if __name__ == "__main__":
    main()
