"""Makes lm_text.txt and of it lm_lmplz_3.arpa, lm_lmplz_4_pruned.arpa and lm_irstlm.arpa: other tools' language models.

    python tests/golden/make_lm_goldens.py PATH_TO/lmplz PATH_TO/tlm

lmplz is KenLM's (https://github.com/kpu/kenlm; the goldens are of its Python package's source, 0.3.0, built with cmake
and Debian's libboost-{system,thread,program-options,test}-dev), tlm is IRSTLM's (Debian's package irstlm 6.00.05). The
text is made up from lists of words.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
VERBS = ("включи", "выключи", "сделай ярче", "поставь", "найди", "покажи")
THINGS = ("свет", "музыку", "чайник", "громкость", "фильм", "погоду", "будильник", "новости", "песню", "кофе")
PLACES = ("на кухне", "в спальне", "в зале", "на завтра", "на час", "в москве", "")


def sentences() -> list[str]:
    """Commands; what stands early in a list is more frequent, so that there are counts of all heights."""
    choose = random.Random(7)
    found = []
    for _ in range(90):
        parts = [choose.choice(("афина", "", "", "салют"))]
        parts += [choose.choice(words[: choose.randint(1, len(words))]) for words in (VERBS, THINGS, PLACES)]
        parts.append(choose.choice(("пожалуйста", "", "")))
        found.append(" ".join(" ".join(parts).split()))
    return found


def main(lmplz: str, tlm: str) -> None:
    text = FOLDER / "lm_text.txt"
    text.write_text("\n".join(sentences()) + "\n", encoding="utf-8")
    for name, options in (("lm_lmplz_3", ["-o", "3"]), ("lm_lmplz_4_pruned", ["-o", "4", "--prune", "0", "0", "1"])):
        files = ["--text", str(text), "--arpa", str(FOLDER / f"{name}.arpa")]
        subprocess.run([lmplz, "-S", "50M", "--discount_fallback", *options, *files], check=True)
    marked = FOLDER / "lm_text_marked.tmp"
    marked.write_text("".join(f"<s> {sentence} </s>\n" for sentence in sentences()), encoding="utf-8")
    # Says its counts of counts and its discounts, which test_ngram.py needs.
    options = ["-n=3", "-lm=ikn", "-ps=no", "-pts=no", f"-o={FOLDER / 'lm_irstlm.arpa'}"]
    subprocess.run([tlm, f"-tr={marked}", *options], check=True)
    marked.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
