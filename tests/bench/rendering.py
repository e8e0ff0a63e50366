"""How long 1,000 plots take: words chosen, drawn and written as PNG, over several scripts. Run by hand:

    python tests/bench/rendering.py [--plots 1000] [--languages en ar hi th zh]

Promised: 1,000 plots in under 60 s on two cores. One process does it; pages are timed beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from lvlm.data.worlds.at_hand import SMPQA_LANGUAGES, written_languages
from lvlm.data.worlds.pages_corpus import write_pages
from lvlm.data.worlds.plots_corpus import write_plots
from lvlm.errors import InputError

LIMIT_SECONDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", type=int, default=1000)
    parser.add_argument("--languages", nargs="+", default=list(SMPQA_LANGUAGES))
    options = parser.parse_args()
    codes = []
    for code in options.languages:
        try:
            written_languages([code], None, rarer=True)
            codes.append(code)
        except InputError as error:
            print(f"left out: {error}")
    each = -(-options.plots // len(codes))
    for name, write in (("plots", write_plots), ("pages", write_pages)):
        sizes = {f"train_{name}": 1, f"tune_{name}": 1, f"test_{name}": each}
        with tempfile.TemporaryDirectory() as folder:
            wall, cpu = time.perf_counter(), time.process_time()
            write(Path(folder) / name, seed=0, languages=codes, **sizes)  # type: ignore[operator]
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        number = len(codes) * (each + 2)
        rate = 1000 / number
        print(
            f"{name}: {number} in {len(codes)} languages: {wall:.1f} s, {cpu:.1f} s of one core; a thousand: "
            f"{rate * wall:.1f} s, {rate * cpu:.1f} s of one core"
            + (f" (promised: under {LIMIT_SECONDS} s on two cores)" if name == "plots" else "")
        )


if __name__ == "__main__":
    main()
