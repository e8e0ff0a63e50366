"""Seconds to give every id its language: all ids, hashed, among Centurio's 100 languages, by allocation.

python tests/bench/mix_scale.py [--ids 1000000] [--repeats 3]    about a minute
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

from loops.measure import load, table

from lvlm.data import mix
from lvlm.languages import group_languages
from lvlm.languages import table as languages

EXPLANATION = """\
{ids:,} ids of 14 letters, {languages} languages, 1 % of the ids English; one thread; wall seconds of the best and the
worst of {repeats} calls, each from nothing, and CPU seconds of their mean. Most: the largest difference of a language
from its quota, in ids. Wall seconds stretch with other work on the machine: {load} at the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    codes = group_languages("L100", tuple(languages()))
    ids = [f"sample-{number:07d}" for number in range(options.ids)]
    rows = []
    for name, allocation in (
        ("uniform", "uniform"),
        ("inverse_tier", "inverse_tier"),
        ("inverse_exp_tier", "inverse_exp_tier"),
        ("weights", {code: 1.1**place for place, code in enumerate(codes)}),
    ):
        seconds, cpu = [], time.process_time()
        for _ in range(options.repeats):
            mix._sequence.cache_clear()
            began = time.perf_counter()
            given_to = mix.assign_languages(ids, languages=codes, english_share=0.01, allocation=allocation)
            seconds.append(time.perf_counter() - began)
        cpu = (time.process_time() - cpu) / options.repeats
        counts = Counter(given_to.values())
        weights = dict(zip(codes[1:], mix._weights(codes[1:], allocation), strict=True))
        away = len(ids) - counts["en"]
        most = max(abs(counts[code] - away * weight / sum(weights.values())) for code, weight in weights.items())
        rows.append([name, f"{min(seconds):.2f}", f"{max(seconds):.2f}", f"{cpu:.2f}", f"{most:.1f}"])
    print(table(("allocation", "best s", "worst s", "CPU s", "most"), rows))
    print("\n" + EXPLANATION.format(ids=options.ids, languages=len(codes), repeats=options.repeats, load=load()))


if __name__ == "__main__":
    main()
