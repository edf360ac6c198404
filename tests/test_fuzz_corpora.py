"""Corpora with damage: 40 mutants and more of every kind; nothing but the damage is lost, and all of it is named.

A mutant has a seed, so that one that fails can be made again. What is known of it does not come from the code: the
lines of the file before and after. A line that the mutation left as it was must be imported, and one that it did not
must be imported or named with its number.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile

from archives import make_deb, make_tar, make_zip
from kvarts import cli
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import read_lines

LINES = 6
BOM = b"\xef\xbb\xbf"


def sound_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, [0.001 * number] * 480, SAMPLE_RATE, format="WAV")
    return buffer.getvalue()


SOUNDS = {f"u{number}": sound_bytes(number) for number in range(LINES)}


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- Damage -----------------------------------------------------------------------------------------------------


def flipped(content: bytes, random: Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(random.randint(1, 8)):
        damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    return bytes(damaged)


def cut(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def cut_out(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content))
    return content[:start] + content[start + random.randint(1, 60) :]


def inserted(*pieces: bytes) -> Callable[[bytes, Random], bytes]:
    def insert(content: bytes, random: Random) -> bytes:
        for _ in range(random.randint(1, 3)):
            place = random.randrange(len(content) + 1)
            content = content[:place] + random.choice(pieces) + content[place:]
        return content

    return insert


def crlf(content: bytes, random: Random) -> bytes:
    return content.replace(b"\n", b"\r\n" if random.random() < 0.7 else b"\r\r\n")


def bom(content: bytes, random: Random) -> bytes:
    return BOM * random.randint(1, 2) + content


def in_another_code(content: bytes, random: Random) -> bytes:
    return content.decode().encode(random.choice(["cp1251", "utf-16", "utf-8-sig"]), "replace")


def moved(content: bytes, random: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.insert(random.randrange(len(lines) + 1), random.choice(lines))
    return b"".join(lines)


def another_value(content: bytes, random: Random) -> bytes:
    """A word of the file becomes something else: a number too large, a path that leads elsewhere, half a letter."""
    words = re.findall(rb"[^\s\"{}:,]+", content)
    values = [b"1e999", b"-1", b"NaN", b"9" * 400, b"null", b"true", b"[]", b'{"a": ' * 3000, b"\\ud800", b"\\u0000"]
    values += [b"/", b"..", b"../../etc/passwd", b"~", b"~nobody-here", b"/dev/zero", b"a" * 5000, b"", b"\\", b"|"]
    return content.replace(random.choice(words), random.choice(values), random.choice([1, 1, 2, -1]))


DAMAGE: dict[str, Callable[[bytes, Random], bytes]] = {
    "flipped": flipped,
    "cut": cut,
    "cut_out": cut_out,
    "nul": inserted(b"\0", b"\0" * 600),
    "invalid": inserted(b"\xff", b"\xd0", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    "separator": inserted(
        b"\n", b"\r", b"\t", b'"', b" ", b",", "\u2028".encode(), "\u00a0".encode(), b"\x1c", b"\x0b"
    ),
    "crlf": crlf,
    "bom": bom,
    "code": in_another_code,
    "moved": moved,
    "value": another_value,
}


# --- Corpora of text files ----------------------------------------------------------------------------------------


def row(number: int) -> dict[str, Any]:
    text = f"слово {number} ещё"
    return {"id": f"u{number}", "audio_filepath": f"wav/u{number}.wav", "text": text, "duration": 0.03, "speaker": "с"}


def joined(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


ALL = range(LINES)
MANIFEST = joined([json.dumps(row(number), ensure_ascii=False) for number in ALL])
TSV = joined(["client_id\tpath\tsentence\tage", *(f"с\tu{number}.wav\tслово {number} ещё\t" for number in ALL)])
CSV = joined(["file_name,text", *(f'wav/u{number}.wav,"слово {number}, ещё"' for number in ALL)])
AUDIO_FOLDER = joined(
    [json.dumps({"file_name": f"wav/u{number}.wav", "text": f"слово {number}"}, ensure_ascii=False) for number in ALL]
)
FESTVOX = joined([f'( u{number} "слово {number} ещё" )' for number in ALL])
KALDI = {
    "text": joined([f"u{number} слово {number} ещё" for number in ALL]),
    "wav.scp": joined([f"u{number} wav/u{number}.wav" for number in ALL]),
    "utt2spk": joined([f"u{number} s{number}" for number in ALL]),
    "spk2gender": joined([f"s{number} f" for number in ALL]),
}
# What is damaged, where it lies, and the first line of it that is an utterance.
FILES: dict[str, tuple[str, str, bytes, int]] = {
    "nemo": ("nemo", "n.jsonl", MANIFEST, 1),
    "course": ("course", "train_opus/manifest.jsonl", MANIFEST, 1),
    "commonvoice": ("commonvoice", "train.tsv", TSV, 2),
    "audiofolder csv": ("audiofolder", "metadata.csv", CSV, 2),
    "audiofolder jsonl": ("audiofolder", "metadata.jsonl", AUDIO_FOLDER, 1),
    "festvox": ("festvox", "v/etc/txt.done.data", FESTVOX, 1),
    "kaldi text": ("kaldi", "text", KALDI["text"], 1),
}
SOURCES = {
    "nemo": "n.jsonl",
    "course": ".",
    "commonvoice": "train.tsv",
    "audiofolder": ".",
    "festvox": "v",
    "kaldi": ".",
}
FOLDERS = {"nemo": "wav", "commonvoice": "clips", "audiofolder": "wav", "festvox": "v/wav", "kaldi": "wav"}


@pytest.fixture
def imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Runs an import; gives its exit code, the rows, and what was named: the reason by file and line."""
    outputs = iter(range(10_000))

    def run(kind: str, source: Path) -> SimpleNamespace:
        out = tmp_path / f"out{next(outputs)}"
        code = cli.main(["data", "import", kind, str(source), "-o", str(out), "--workers", "1"])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        rows: list[dict[str, Any]] = []
        named: dict[str, str] = {}
        for path in sorted(out.rglob("*.jsonl")):
            if "unpacked" in path.parts:
                continue
            if path.name.endswith(".rejected.jsonl"):
                for bad in map(json.loads, path.read_bytes().splitlines()):
                    assert "; " in bad["reason"] or ": " in bad["reason"]
                    named[bad["where"].rpartition("/")[2]] = bad["reason"]
            else:
                assert "part" not in path.parent.name, said
                for line in read_lines(path):  # as training reads it
                    assert line.utterance is not None, line.error
                    assert line.utterance.audio_path.is_file()
                    rows.append(line.utterance.fields)
        assert code == (2 if not rows and not named else 1 if named else 0), (code, said)
        if code == 2:
            assert said.startswith("kvarts: error: ")
            assert said.count("\n") == 1
            assert not out.exists(), said
        return SimpleNamespace(code=code, rows=rows, named=named, said=said)

    return run


def corpus(folder: Path, kind: str, place: str, content: bytes) -> Path:
    for name, sound in SOUNDS.items():
        put(folder / ("train_opus/wav" if kind == "course" else FOLDERS[kind]) / f"{name}.wav", sound)
    if kind == "kaldi":
        for name, lines in KALDI.items():
            put(folder / name, lines)
    put(folder / place, content)
    return folder / SOURCES[kind]


def lines_of(content: bytes, first: int) -> dict[int, bytes]:
    """The lines that are not blank, by their numbers: they end at a line feed and nowhere else."""
    lines = enumerate(content.removeprefix(BOM).split(b"\n"), start=1)
    return {number: line for number, line in lines if line.strip() and number >= first}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_line_is_named_and_the_others_are_imported(
    tmp_path: Path, imported: Callable[..., SimpleNamespace], name: str
) -> None:
    kind, place, content, first = FILES[name]
    clean = lines_of(content, first)
    refused = 0
    for seed, (damage, do) in enumerate((damage, do) for damage, do in DAMAGE.items() for _ in range(2)):
        damaged = do(content, Random(f"{name} {damage} {seed}"))
        folder = tmp_path / f"{seed}"
        found = imported(kind, corpus(folder, kind, place, damaged))
        about = f"{name}, {damage}, {seed}: {damaged!r}"
        file = Path(place).name
        lines = lines_of(damaged, first)
        header = damaged.split(b"\n")[0].removeprefix(BOM).rstrip(b"\r")
        has_another_header = first == 2 and header != content.split(b"\n")[0]
        if found.code == 2:
            # Nothing but blank lines, or a header that is none.
            assert not lines or has_another_header, about
            assert file in found.said, about
            refused += 1
            continue
        if has_another_header:
            continue  # other columns, so other lines are good
        numbers = {int(where.rpartition(":")[2]) for where in found.named if where.startswith(f"{file}:")}
        if name != "audiofolder csv":
            assert numbers <= lines.keys(), about
            assert len(found.rows) + len(numbers) == len(lines), about
            again = Counter(line.strip() for line in lines.values())
            for number, line in lines.items():
                # A line as it was; of two that are the same the first.
                if line in clean.values() and number in numbers:
                    assert again[line.strip()] > 1 or "is that of" in found.named[f"{file}:{number}"], about
        else:
            # A quotation mark that nothing closes takes lines with it, and says which.
            whole = {number for number, line in lines.items() if line in clean.values()}
            ids = {entry["id"] for entry in found.rows}
            for number in whole - numbers:
                wanted = lines[number].split(b",")[0].decode().removesuffix(".wav")
                assert wanted in ids or any("lines " in why or "\n" in why for why in found.named.values()), about
    assert refused < 12


@pytest.mark.parametrize("name", ["wav.scp", "utt2spk", "spk2gender"])
def test_damage_beside_the_text_of_kaldi_is_named(
    tmp_path: Path, imported: Callable[..., SimpleNamespace], name: str
) -> None:
    for seed, (damage, do) in enumerate(DAMAGE.items()):
        damaged = do(KALDI[name], Random(f"{name} {damage}"))
        found = imported("kaldi", corpus(tmp_path / damage, "kaldi", name, damaged))
        about = f"{damage}, {seed}: {damaged!r}"
        # Every utterance is imported or named, and every line that is not as it was and gives nobody a name.
        assert len(found.rows) + sum(where.startswith("text:") for where in found.named) == LINES, about
        untouched = set(lines_of(damaged, 1).values()) & set(lines_of(KALDI[name], 1).values())
        keys = {line.split()[0].decode() for line in untouched}
        if name != "spk2gender":
            told = {reason.split("'")[1] for reason in found.named.values() if "'" in reason}
            assert keys <= {entry["id"] for entry in found.rows} | told, about
            for number, line in lines_of(damaged, 1).items():
                key = line.split()[0].decode("utf-8", "replace")
                assert f"{name}:{number}" in found.named or key in SOUNDS, about


def test_a_damaged_manifest_is_read_as_training_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `read_lines`, and through `kvarts data check`, which say the same of every line."""
    clean = lines_of(MANIFEST, 1)
    for seed, (damage, do) in enumerate((damage, do) for damage, do in DAMAGE.items() for _ in range(2)):
        damaged = do(MANIFEST, Random(f"manifest {damage} {seed}"))
        path = put(tmp_path / f"{seed}.jsonl", damaged)
        filled = lines_of(damaged, 1)
        code = cli.main(["data", "check", str(path), "--no-audio", "--format", "json"])
        told = capsys.readouterr()
        about = f"{damage}, {seed}: {damaged!r}"
        if not filled:
            assert code == 2, about
            assert str(path) in told.err, about
            continue
        lines = list(read_lines(path))
        assert [line.number for line in lines] == list(filled), about
        bad = {line.number for line in lines if line.utterance is None}
        assert not {number for number in bad if filled[number] in clean.values()}, about
        report = json.loads(told.out)
        findings = {finding["line"] for finding in report["findings"] if finding["name"] == "bad-line"}
        assert findings == bad, about
        assert code == (1 if report["errors"] else 0), about
        assert {line.utterance.text for line in lines if line.utterance} >= {
            json.loads(line)["text"] for number, line in filled.items() if line in clean.values()
        }, about


# --- Archives ---------------------------------------------------------------------------------------------------


COURSE_FILES = {"train/manifest.jsonl": MANIFEST, **{f"train/wav/{name}.wav": sound for name, sound in SOUNDS.items()}}
VOICE = "./usr/share/festival/voices/russian/v"
VOICE_FILES = {
    f"{VOICE}/etc/txt.done.data": FESTVOX,
    **{f"{VOICE}/wav/{name}.wav": sound for name, sound in SOUNDS.items()},
}
ARCHIVES: dict[str, tuple[str, bytes]] = {
    "a.tar": ("golos", make_tar(COURSE_FILES)),
    "a.tar.gz": ("golos", make_tar(COURSE_FILES, "w:gz")),
    "a.tar.xz": ("golos", make_tar(COURSE_FILES, "w:xz")),
    "a.zip": ("course", make_zip(COURSE_FILES)),
    "a.deb": ("festvox", make_deb(make_tar(VOICE_FILES, "w:xz"))),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_named_or_so_are_its_members(
    tmp_path: Path, imported: Callable[..., SimpleNamespace], name: str
) -> None:
    kind, content = ARCHIVES[name]
    assert len(imported(kind, put(tmp_path / name, content)).rows) == LINES
    damages = ["flipped"] * 8 + ["cut"] * 6 + ["cut_out"] * 4 + ["nul"] * 2
    for seed, damage in enumerate(damages):
        damaged = DAMAGE[damage](content, Random(f"{name} {damage} {seed}"))
        found = imported(kind, put(tmp_path / f"{seed}" / name, damaged))
        about = f"{name}, {damage}, {seed}"
        if found.code == 2:
            assert str(tmp_path / f"{seed}" / name) in found.said, about
        else:
            # Flipped bits of a plain tar are within a line or a sound.
            assert len(found.rows) + len(found.named) >= LINES - 2, about


@pytest.mark.parametrize(
    "member",
    ["../up", "/tmp/kvarts-absolute", "a/../../up", "C:\\up", "..\\up", "a\0b", ".", "nul", "a" * 300, "train"],
)
def test_names_that_lead_elsewhere_write_nothing_there(
    tmp_path: Path, imported: Callable[..., SimpleNamespace], member: str
) -> None:
    folder = tmp_path / "deep" / "down"
    places = (f"{VOICE}/wav/{member}.wav", f"{member}/wav/x.wav")
    for name, content in {
        "a.tar": make_tar({**COURSE_FILES, member: b"x"}),
        "a.zip": make_zip({**COURSE_FILES, member: b"x"}),
        "a.deb": make_deb(make_tar({**VOICE_FILES, **dict.fromkeys(places, b"x")}, "w:xz")),
    }.items():
        kind = ARCHIVES[name][0]
        found = imported(kind, put(folder / name, content))
        assert found.code == 2 or len(found.rows) == LINES, name
    assert not Path("/tmp/kvarts-absolute").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name == "up" and "unpacked" not in path.parts]
