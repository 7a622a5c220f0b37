"""What sanitizing a text costs: microseconds per KB of four kinds of text, start-up, and `re` against RE2.

    python -m bench.sanitize [--runs N]

Minimum and median of runs, kinds interleaved. Each text is 2,000 characters, the longest that is ever shown. "First call"
is what a new process pays for compiling. RE2 does the same one replacement as `re`, to compare the engines.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

SIZE = 2_000
PROSE = "The run was refused because the policy does not allow writes to this file; ask a person, or write elsewhere. "
LOG = "".join(  # each line its own, so that nothing is remembered from the last
    f"In file included from /usr/include/c++/12/vec{n}:64,\n                 from /home/ann/w/deps/x{n}.h:{n}:\n"
    f"/workspace/src/lib/parse{n}.cc: In member function 'int parser{n}::step(std::string_view)':\n"
    f"/workspace/src/lib/parse{n}.cc:{n}:7: error: no matching function for call to 'f{n}(int)'\n"
    f'   {n} |     return f{n}(3) + step(rest, "{n}");\n      |            ^~~~\n'
    f"/usr/include/c++/12/vec{n}:{n}:5: note:   candidate expects 0 arguments, 1 provided\n"
    f"make: *** [Makefile:{n}: build/parse{n}.o] Error 1\n"
    for n in range(10, 20)
)
DENSE = "".join(
    f"cc -I/usr/lib/gcc/include{n} -L/opt/x/lib -o /workspace/build/a{n}.o /workspace/src/a{n}.c src/lib/parse{n}.cc\n"
    for n in range(10, 30)
)
TRACE = (
    "Traceback (most recent call last):\n"
    + '  File "/usr/lib/python3.11/site-packages/app/main.py", line 12, in run\n    return self.step(path, token)\n'
    * 16
    + "ValueError: cannot open '/home/ann/.config/credentials' at db.corp.internal\n"
)
KEYS = "token=abcdefgh12345678 https://u:pw@h.internal/x 'path /etc/a' "


def texts() -> dict[str, str]:
    filled = {
        "clean prose": PROSE,
        "compiler log": LOG,
        "only paths": DENSE,
        "Python stack trace": TRACE,
        "secrets everywhere": KEYS,
    }
    worst = {
        "hostile: /a:": "/a:",
        "hostile: %2F": "%2F",
        "hostile: ://a:": "://a:",
        "hostile: password=": "password=",
        "hostile: a.internal": "a.internal ",
        "hostile: every literal": "ghp_ sk-a glpat- AKIA eyJ xoxb- SG. AC MII hf_ npm_ Q~ password: https://a:b@c "
        + "a" * 20,
        "hostile: control": "\x1b",
    }
    whole = {name: (unit * (SIZE // len(unit) + 1))[:SIZE] for name, unit in {**filled, **worst}.items()}
    return {name: text[: text.rfind("\n") + 1] or text for name, text in whole.items()}


def per_kb(call: Callable[[str], object], text: str, loops: int = 20) -> float:
    started = time.perf_counter()
    for _ in range(loops):
        call(text)
    return (time.perf_counter() - started) / loops * 1e6 / (len(text.encode("utf-8")) / 1024)


def start_up(statement: str, runs: int) -> float:
    """Milliseconds that `statement` adds to a new interpreter, median, by its own clock."""
    program = f"import time; a = time.perf_counter(); {statement}; print((time.perf_counter() - a) * 1e3)"
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=own) for _ in range(runs)
    ]
    return statistics.median(float(one.stdout) for one in done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    runs = parser.parse_args().runs

    from nucleus.sanitize import paths, sanitize

    kinds = texts()
    figures: dict[str, list[float]] = {name: [] for name in kinds}
    for text in kinds.values():
        sanitize(text)
    for _ in range(runs):
        for name, text in kinds.items():
            figures[name].append(per_kb(sanitize, text))
    print(f"{'sanitize, us/KB':28}{'min':>9}{'median':>9}")
    for name, values in figures.items():
        print(f"{name:28}{min(values):9.1f}{statistics.median(values):9.1f}")

    print(f"\n{'start-up, ms':28}{'median':>9}")
    for name, statement in {
        "import re": "import re",
        "nucleus.sanitize after re": "import re; a = time.perf_counter(); import nucleus.sanitize",
        "first call (log)": f"import nucleus.sanitize as s; a = time.perf_counter(); s.sanitize({kinds['compiler log']!r})",
        "re2 after re": "import re; a = time.perf_counter(); import re2",
    }.items():
        print(f"{name:28}{start_up(statement, min(runs, 15)):9.2f}")

    try:
        import re2
    except ImportError:
        return
    import re

    one = paths.PATH.pattern
    engines = {"re": re.compile(one), "re2": re2.compile(one)}
    log = kinds["compiler log"]
    print(f"\n{'one replacement, us/KB':28}{'min':>9}{'median':>9}")
    results = {name: [per_kb(lambda t, e=e: e.sub("x", t), log) for _ in range(runs)] for name, e in engines.items()}
    for name, values in results.items():
        print(f"{name:28}{min(values):9.1f}{statistics.median(values):9.1f}")


if __name__ == "__main__":
    main()
