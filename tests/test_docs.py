"""What the documentation says works: links lead somewhere, commands parse, examples give what they show."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch.distributed.run import get_args_parser

import kvarts
from kvarts import cli
from kvarts.checkpoint import COURSE_BLOCKS, load_model, save_weights
from kvarts.config import CONFIG_NAME, compose_config
from kvarts.decoder import ConvDecoder
from kvarts.encoder import QuartzNet
from kvarts.manifest import read_manifest
from kvarts.model import QuartzNetCTC

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(kvarts.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "README.ru.md", ROOT / "sample" / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
# A page and the same page in Russian.
BOTH = ("data", "corpora", "recipes", "recognition", "decoding", "farfield", "evaluation", "open-weights")
TWINS = [
    ("README.md", "README.ru.md"),
    *((f"docs/{name}.md", f"docs/ru/{name}.md") for name in BOTH),
]

# Shown for what it leads to.
DELIBERATE_MISTAKES = {"data.batchsize=4"}
SHELL = {".", "apt-get", "awk", "cat", "cd", "cp", "export", "git", "grep", "gunzip", "head", "pip", "tensorboard"}

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SETTING = re.compile(r"'?\+{0,2}[a-z_]+(\.[a-z_]+)*=")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [
        re.sub(f"^{match['indent']}", "", match["body"], flags=re.M)
        for match in found
        if match["language"] in languages
    ]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command: of shell blocks, and of code within the text that is a whole command."""
    lines = [line for block in blocks(page, "sh", "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [code for code in INLINE.findall(prose(page)) if re.match(r"(python main\.py|make) [+a-z]", code)]
    for line in lines:
        if re.match(r"[A-Z]+=\$\(.*\)$", line):  # C=$(ls …): a value for the next lines
            continue
        for variable, value in (("$PWD", "/course"), ("$C", "/run/last.ckpt"), ("…", "value")):
            line = line.replace(variable, value)
        words = shlex.split(line, comments=True)
        if words:
            yield words


# ------------------------------------------------------------------------------------------------------- links


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in slugs(file), target


# ---------------------------------------------------------------------------------------------------- commands


@cache
def compose(*overrides: str) -> object:
    return compose_config(overrides)


def check_training(arguments: list[str]) -> None:
    """Composes what a training command would; Hydra's own options stand in front of the settings."""
    if arguments[:1] == ["--help"]:
        arguments = arguments[1:]
    if arguments[:2] == ["--cfg", "job"]:
        arguments = arguments[2:]
    assert not [word for word in arguments if word.startswith("-")], arguments
    compose(*arguments)


def check_makefile(makefile: str, arguments: list[str]) -> None:
    """Checks every command that make would run for these goals, with no file there but those that are named."""
    arguments = [word for word in arguments if not re.fullmatch(r"-j\d+", word)]
    goals = [word for word in arguments if "=" not in word]
    with tempfile.TemporaryDirectory() as folder:
        given = dict(word.split("=", 1) for word in arguments if "=" in word)
        text = (ROOT / makefile).read_text(encoding="utf-8")
        assert all(re.search(rf"^{name} :=", text, re.MULTILINE) for name in given), given
        paths = {name: Path(folder, value) for name, value in given.items() if "." in value and name != "SHARE"}
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        variables = [f"{name}={paths.get(name, value)}" for name, value in given.items()]
        run = ["make", "-n", "-f", makefile, *goals, *variables]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^.*?\b((?:python benchmarks/|kvarts ).*)$", done.stdout.replace("\\\n", " "), re.MULTILINE)
    assert found
    for command in found:
        check(shlex.split(re.split(r" (?:&&|\|\|) ", command)[0]))


def check(words: list[str]) -> None:
    match words:
        case ["python", "main.py", *arguments] | ["kvarts", "train", *arguments]:
            check_training(arguments)
        case ["python", script, *arguments] if script.startswith("benchmarks/"):
            code = (ROOT / script).read_text(encoding="utf-8")
            if "parser_of(" in code:  # some have options in common
                code += (ROOT / "benchmarks" / "workers.py").read_text(encoding="utf-8")
            assert all(f'"{word}"' in code for word in arguments if word.startswith("--"))
        case ["cat" | "zcat", _, "|", *rest]:
            check(rest)
        case ["kvarts", *arguments]:
            cli._parser().parse_args(arguments)
        case ["./download_data.sh", *arguments]:
            cli._parser().parse_args(["data", "download", "course", *arguments])
        case ["torchrun", *arguments]:
            run = get_args_parser().parse_args(arguments)
            assert run.training_script == "main.py"
            check_training(run.training_script_args)
            config = compose(*run.training_script_args)
            assert (int(run.nnodes), int(run.nproc_per_node)) == (config.trainer.num_nodes, config.trainer.devices)
        case ["docker", "build", "-f", dockerfile, *_]:
            assert (ROOT / dockerfile).is_file()
        case ["docker", "run", *arguments]:
            check(arguments[arguments.index("python") :])
        case ["make", "-f", makefile, *arguments]:
            check_makefile(makefile, arguments)
        case ["make", target, *variables]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
            given = dict(variable.split("=", 1) for variable in variables)
            assert given.keys() <= {"ARGS", "PYTHON", "PIP_ARGS"}
            if target == "train":
                check_training(["+experiment=overfit", *shlex.split(given.get("ARGS", ""))])
        case [program, *_]:
            assert program in SHELL, f"{program}: misspelt, or unknown to this test"


@every_page
def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        try:
            check(words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{shlex.join(words)}\n{error}")


@every_page
def test_settings_in_the_text_exist(page: Path) -> None:
    for code in INLINE.findall(prose(page)):
        if code in DELIBERATE_MISTAKES or not SETTING.match(code):
            continue
        words = shlex.split(code)
        if words[0].endswith("="):  # `data_dir=`, where only the name matters
            assert OmegaConf.select(compose(), words[0][:-1], default="no") != "no", code
        else:
            compose(*words)


def test_the_deliberate_mistake_leads_to_what_is_shown() -> None:
    with pytest.raises(kvarts.errors.ConfigError, match=re.escape("did you mean data.batch_size?")):
        compose_config(DELIBERATE_MISTAKES)


@pytest.mark.parametrize("page", ["docs/recipes.md", "docs/ru/recipes.md"])
@pytest.mark.parametrize("group", ["experiment", "model", "optimizer", "augment"])
def test_recipes_name_all_that_ships(page: str, group: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    defaults = OmegaConf.load(PACKAGE / "conf" / f"{CONFIG_NAME}.yaml").defaults
    default = next((entry[group] for entry in defaults if OmegaConf.is_dict(entry) and group in entry), None)
    for option in {path.stem for path in (PACKAGE / "conf" / group).glob("*.yaml")} - {default}:
        assert f"{group}={option}" in text


# ---------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("page", [page for page in PAGES if ">>>" in page.read_text(encoding="utf-8")], ids=name_of)
def test_examples_give_what_they_show(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert result.attempted > 0
    assert result.failed == 0


def test_the_scripts_of_the_recipes_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights(QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder()), Path("last.ckpt"))
    spoken = read_manifest(ROOT / "sample" / "train_opus" / "manifest.jsonl")[:2]
    for part in ("train_opus", "val_opus", "test_opus/crowd"):
        audio = tmp_path / "mydata" / part / "audio"
        audio.mkdir(parents=True)
        for utterance in spoken:
            shutil.copy(utterance.audio_path, audio)
        lines = (f"audio/{utterance.audio_path.name}\t{utterance.text}\n" for utterance in spoken)
        (audio.parent / "texts.tsv").write_text("".join(lines), encoding="utf-8")
    scripts = [script for script in blocks(ROOT / "docs" / "recipes.md", "python") if ">>>" not in script]
    assert len(scripts) == 2
    for script in scripts:
        exec(compile(script, "docs/recipes.md", "exec"), {})

    load_model(Path("model.safetensors"))
    for part in ("train_opus", "val_opus", "test_opus/crowd"):
        made = read_manifest(tmp_path / "mydata" / part / "manifest.jsonl")
        assert [utterance.text for utterance in made] == [utterance.text for utterance in spoken]
        assert [u.duration_s for u in made] == pytest.approx([u.duration_s for u in spoken], abs=0.01)
        assert all(utterance.audio_path.is_file() for utterance in made)


# ------------------------------------------------------------------------------------------------- two languages


@pytest.mark.parametrize(("english", "russian"), TWINS)
def test_both_languages_say_the_same(english: str, russian: str) -> None:
    pages = ROOT / english, ROOT / russian
    for languages in (("sh", "bash"), ("python",), ("json",)):
        one, other = (blocks(page, *languages) for page in pages)
        assert one == other

    def shape(page: Path) -> list[str]:
        text = prose(page)
        return re.findall(r"^#+(?= )|^\|(?= [^-])|^<!-- .* -->$|^!\[", text, re.MULTILINE)

    assert shape(pages[0]) == shape(pages[1])

    def settings(page: Path) -> set[str]:
        return {code for code in INLINE.findall(prose(page)) if SETTING.match(code)}

    assert settings(pages[0]) == settings(pages[1])


# ---------------------------------------------------------------------------------------------------- the code


def test_the_map_of_the_files_is_whole() -> None:
    text = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    the_map = text[text.index("## The files") : text.index("## How to add")]
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(re.findall(r"`(\w+\.py)`", the_map)) == modules


def test_names_in_the_code_page_exist() -> None:
    named = re.findall(r"`(\w+)\.py: ([\w.]+)`", (ROOT / "docs" / "code.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    for module, dotted in named:
        found: object = importlib.import_module(f"kvarts.{module}")
        try:
            for name in dotted.split("."):
                found = getattr(found, name)
        except AttributeError:
            # A method by its own name, where the class is clear from the file.
            assert any(hasattr(member, dotted) for member in vars(found).values() if isinstance(member, type)), dotted
