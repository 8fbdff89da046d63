"""`evaluate fetch`: what is brought, what is checked, what is refused; nothing half-fetched stays."""

import errno
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from data_files import write
from hypothesis import given, settings
from hypothesis import strategies as st
from tbac_uniimage.training.evaluation import download, fetch, hashes, sets
from tbac_uniimage.training.evaluation.benchmark import File, Source
from tbac_uniimage.training.evaluation.sets.geneval import GenEval
from tbac_uniimage.training.exits import Parser

LINES = "".join(
    json.dumps({"tag": tag, "include": [{"class": "cow", "count": 1}], "prompt": f"a {tag} cow"}) + "\n"
    for tag in ("single_object", "colors")
)
FILES = {"prompts/evaluation.jsonl": LINES.encode(), "names/a.txt": b"cow\n", "names/b.txt": b"bench\n"}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pinned(**changes) -> Source:
    """A source with the hashes of FILES, one of each kind."""
    names = "".join(f"{digest(FILES[path])}  {path}\n" for path in ("names/a.txt", "names/b.txt"))
    source = Source(
        "github:somebody/benchmark",
        "0123456789abcdef0123456789abcdef01234567",
        (
            File("prompts/evaluation.jsonl", f"sha256:{digest(LINES.encode())}"),
            File("names/*.txt", f"sha256:{digest(names.encode())}", 2),
        ),
        "MIT",
    )
    return replace(source, **changes)


def made_up(source: Source) -> GenEval:
    return GenEval("geneval", "made up", source, (source,))


@pytest.fixture
def checkout(tmp_path):
    """A checkout of the repository, with other files in it."""
    root = tmp_path / "benchmark"
    for path, content in (FILES | {"names/c.md": b"x", "README.md": b"y"}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def test_a_checkout_is_copied_and_loaded_without_the_rest(checkout, tmp_path):
    benchmark = made_up(pinned())
    found = fetch.fetch(benchmark, tmp_path / "cache", [checkout])
    shutil.rmtree(checkout)
    loaded = fetch.load(benchmark, tmp_path / "cache")
    assert loaded == found and not loaded.modified
    assert [item.prompt for item in benchmark.items(loaded)] == ["a single_object cow", "a colors cow"]
    root = loaded.roots["github:somebody/benchmark"]
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*")) == sorted(FILES)


def test_a_folder_of_checkouts_is_looked_through(checkout, tmp_path):
    assert fetch.fetch(made_up(pinned()), tmp_path / "cache", [tmp_path]).digest


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: (root / "names/b.txt").unlink(), r"lacks names/\*.txt \(1 of 2 files\)"),
        (lambda root: shutil.rmtree(root / "prompts"), "lacks prompts/evaluation.jsonl"),
        (
            lambda root: (root / "names/a.txt").write_text("cows\n"),
            r"names/\*.txt is not that of github.com/somebody",
        ),
        (
            lambda root: (root / "prompts/evaluation.jsonl").write_text(LINES + "\n"),
            "evaluation.jsonl is not that",
        ),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_half_a_checkout_and_a_changed_file_are_refused(checkout, tmp_path, spoil, sentence):
    spoil(checkout)
    with pytest.raises(ValueError, match=sentence):
        fetch.fetch(made_up(pinned()), tmp_path / "cache", [checkout])
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_refused_checkout_leaves_what_is_there(checkout, tmp_path):
    benchmark = made_up(pinned())
    before = fetch.fetch(benchmark, tmp_path / "cache", [checkout])
    (checkout / "names/a.txt").write_text("cows\n")
    with pytest.raises(ValueError, match="is not that"):
        fetch.fetch(benchmark, tmp_path / "cache", [checkout])
    assert fetch.load(benchmark, tmp_path / "cache") == before


def test_changed_files_are_a_set_of_their_own(checkout, tmp_path):
    (checkout / "prompts/evaluation.jsonl").write_text(LINES.splitlines(keepends=True)[0])
    (checkout / "names/b.txt").unlink()
    found = fetch.fetch(made_up(pinned()), tmp_path / "cache", [checkout], modified=True)
    assert found.modified and len(made_up(pinned()).items(found)) == 1
    (checkout / "prompts/evaluation.jsonl").write_text('{"prompt": "no tag"}\n')
    with pytest.raises(ValueError, match="not of the published form"):
        fetch.fetch(made_up(pinned()), tmp_path / "cache", [checkout], modified=True)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: (root / "names/a.txt").write_text("cows\n"), "names/a.txt was changed since"),
        (lambda root: (root / "names/a.txt").unlink(), "names/a.txt is missing"),
        (lambda root: (root.parent / fetch.RECORD).write_text("{"), "fetched.json cannot be read"),
        (
            lambda root: shutil.rmtree(root.parent),
            "geneval is not in .*; first: tbac-uniimage evaluate fetch",
        ),
    ],
)
def test_what_was_fetched_is_checked_whenever_it_is_read(checkout, tmp_path, spoil, sentence):
    benchmark = made_up(pinned())
    found = fetch.fetch(benchmark, tmp_path / "cache", [checkout])
    spoil(found.roots["github:somebody/benchmark"])
    with pytest.raises(ValueError, match=sentence):
        fetch.load(benchmark, tmp_path / "cache")


def test_another_commit_than_the_package_knows_is_refused(checkout, tmp_path):
    fetch.fetch(made_up(pinned()), tmp_path / "cache", [checkout])
    with pytest.raises(ValueError, match="is of another commit"):
        fetch.load(made_up(pinned(commit="f" * 40)), tmp_path / "cache")


def test_a_file_without_a_known_hash_is_held_to_what_came_first(checkout, tmp_path):
    source = pinned(commit="", files=(File("prompts/evaluation.jsonl", ""), File("names/*.txt", "", 0)))
    found = fetch.fetch(made_up(source), tmp_path / "cache", [checkout])
    (found.roots[source.repo] / "prompts/evaluation.jsonl").write_text("")
    with pytest.raises(ValueError, match="was changed"):
        fetch.load(made_up(source), tmp_path / "cache")


def test_the_digest_tells_the_prompts_apart(checkout, tmp_path):
    benchmark = made_up(pinned(files=(File("prompts/evaluation.jsonl", ""),)))
    first = fetch.fetch(benchmark, tmp_path / "a", [checkout]).digest
    assert fetch.fetch(benchmark, tmp_path / "b", [checkout]).digest == first
    (checkout / "prompts/evaluation.jsonl").write_text(LINES + LINES)
    assert fetch.fetch(benchmark, tmp_path / "c", [checkout]).digest != first


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ({"../../evil": {"id": "a/a.png"}}, "would lie outside of its folder"),
        ({"/evil": {"id": "a/a.png"}}, "would lie outside of its folder"),
        ({"1": {"id": "../../../../etc/hostname"}}, "'../../../../etc/hostname' would lie outside"),
        ({"1": {"id": "a\\\\..\\\\a.png"}}, "would lie outside"),
    ],
)
def test_names_in_a_set_lead_to_no_other_folder(tmp_path, edit, sentence):
    edits = {key: {"prompt": "p", "edit_type": "add"} | rest for key, rest in edit.items()}
    files = {
        "Benchmark/Basic/basic_edit.json": json.dumps(edits),
        "Benchmark/Basic/prompts.json": '{"add": "?"}',
        "Benchmark/singleturn/a/a.png": b"x",
    }
    with pytest.raises(ValueError, match=sentence):
        fetch.fetch(
            sets.find("imgedit"), tmp_path / "cache", [write(tmp_path / "ImgEdit", files)], modified=True
        )
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_item_that_is_there_twice_is_refused(tmp_path):
    records = [{"prompt_id": 7, "Prompt": "p", "Explanation": "e"}] * 2
    script = 'def build_evaluation_messages(p):\n    return [{"text": "a"}, {"text": "b"}]\n'
    *data, code = [file.path for file in sets.find("wise").sources[0].files]
    files = dict.fromkeys(data, "[]") | {data[0]: json.dumps(records), code: script}
    with pytest.raises(ValueError, match="The files of wise have 7 twice"):
        fetch.fetch(sets.find("wise"), tmp_path / "cache", [write(tmp_path / "WISE", files)], modified=True)


def test_a_full_disk_is_one_sentence_and_leaves_what_is_there(checkout, tmp_path, monkeypatch):
    benchmark = made_up(pinned())
    before = fetch.fetch(benchmark, tmp_path / "cache", [checkout])

    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ValueError, match="geneval cannot be kept in .*No space left"):
        fetch.fetch(benchmark, tmp_path / "cache", [checkout])
    assert fetch.load(benchmark, tmp_path / "cache") == before
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["geneval"]


# the command


def run(*words: str) -> None:
    parser = Parser()
    fetch.add_arguments(parser)
    fetch.run(parser.parse_args(words))


@pytest.fixture
def known(monkeypatch):
    """Puts a set in place of geneval."""

    def put(source):
        monkeypatch.setattr(sets, "all_sets", lambda: {"geneval": made_up(source)})

    return put


def test_the_command_says_licence_source_size_and_cost(checkout, tmp_path, known, capsys):
    known(pinned(size=2_500_000))
    run("geneval", "--from", str(checkout), "--sets", str(tmp_path / "cache"))
    out = capsys.readouterr().out
    assert "github.com/somebody/benchmark at 0123456, MIT, 2.50 MB, checked by hash" in out
    assert "2 items, 8 pictures to draw, no chat model" in out
    run("geneval", "--sets", str(tmp_path / "cache"))
    assert "is there, unchanged" in capsys.readouterr().out


def test_the_command_refuses_in_one_sentence(checkout, tmp_path, known):
    known(pinned(licence=None))
    cache = str(tmp_path / "cache")
    with pytest.raises(ValueError, match="There is no set 'genevall'; there are geneval"):
        run("genevall")
    with pytest.raises(ValueError, match="give it with --from DIR"):
        run("geneval", "--modified")
    with pytest.raises(ValueError, match="No licence was found at github.com/somebody/.*say --yes"):
        run("geneval", "--sets", cache)  # pytest's input is no terminal
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to .*--sets"):
        fetch.fetch(made_up(pinned()), tmp_path / "file" / "cache", [checkout])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("answer", "agreed"), [("y", True), ("Yes ", True), ("", False), ("n", False)])
def test_a_person_is_asked_where_no_licence_was_found(known, monkeypatch, answer, agreed):
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or answer)
    if agreed:
        fetch.ask(made_up(pinned(licence=None)))
    else:
        with pytest.raises(ValueError, match="was not fetched"):
            fetch.ask(made_up(pinned(licence=None)))
    assert len(asked) == 1 and "github.com/somebody/benchmark" in asked[0]


# over HTTP


def packed(files: dict[str, bytes], top: str = "benchmark-0123456/") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(top + path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo(top + "prompts/link.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return stream.getvalue()


@pytest.fixture
def github(tmp_path, monkeypatch):
    """A folder that answers like codeload.github.com."""
    root = tmp_path / "served"
    root.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root))
    threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
    monkeypatch.setattr(download, "GITHUB", f"http://127.0.0.1:{server.server_port}/{{name}}/{{commit}}")
    yield root / "somebody" / "benchmark" / pinned().commit
    server.shutdown()
    server.server_close()


def test_a_commit_is_downloaded_and_checked(github, tmp_path):
    github.parent.mkdir(parents=True)
    hostile = {"../prompts/evaluation.jsonl": b"out", "prompts/../../evil.txt": b"out"}
    github.write_bytes(packed(FILES | {"prompts/more.jsonl": b"x"} | hostile))
    found = fetch.fetch(made_up(pinned()), tmp_path / "cache")
    root = found.roots["github:somebody/benchmark"]
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*")) == sorted(FILES)
    assert [p.name for p in (tmp_path / "cache").rglob("evil*")] == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be fetched .*404"),
        (b"no tar", "cannot be fetched"),
        (packed(FILES)[:-60], "cannot be fetched|lacks"),
        (packed(FILES | {"names/a.txt": b"cows\n"}), "is not that of"),
    ],
)
def test_a_bad_download_is_one_sentence_and_leaves_nothing(github, tmp_path, content, sentence):
    if content is not None:
        github.parent.mkdir(parents=True)
        github.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        fetch.fetch(made_up(pinned()), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_network_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "GITHUB", "http://127.0.0.1:9/{name}/{commit}")
    with pytest.raises(
        ValueError, match="github.com/somebody/benchmark at 0123456 cannot be fetched .*--from DIR"
    ):
        fetch.fetch(made_up(pinned()), tmp_path / "cache")


def test_an_archive_of_the_hub_is_unpacked_as_far_as_needed(tmp_path, monkeypatch):
    """The hub's client keeps a file in a folder that bears its commit."""
    snapshot = tmp_path / "snapshots" / ("e" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "all.tar").write_bytes(packed(FILES | {"names/deep/x.txt": b"x"}, top=""))
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda **words: asked.append(words) or str(snapshot / words["filename"]),
    )
    source = pinned(repo="hub:somebody/pictures", commit="", archive="all.tar")
    assert download.download(source, tmp_path / "root") == "e" * 40
    assert sorted(
        p.relative_to(tmp_path / "root").as_posix() for p in (tmp_path / "root").rglob("*.*")
    ) == sorted(FILES)
    wanted = {"repo_id": "somebody/pictures", "repo_type": "dataset", "revision": None, "filename": "all.tar"}
    assert asked == [wanted]


# hashes


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum")
def test_several_files_have_the_hash_that_the_shell_prints(checkout):
    command = "LC_ALL=C sha256sum names/*.txt | sha256sum"
    printed = subprocess.run(
        command, shell=True, cwd=checkout, capture_output=True, text=True, check=True
    ).stdout
    paths = hashes.found(checkout, File("names/*.txt", ""))
    assert hashes.listing({path: hashes.sha256(checkout / path) for path in paths}) == printed.split()[0]


@pytest.mark.parametrize(
    ("content", "blob"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ],
)
def test_blob_ids_are_gits(tmp_path, content, blob):
    (tmp_path / "file").write_bytes(content)
    assert hashes.blob_id(tmp_path / "file") == blob


NAMES = st.text("ab*.", min_size=1, max_size=4).filter(lambda name: name.strip("."))


@settings(deadline=None, max_examples=40)
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_a_pattern_never_reaches_into_other_folders(parts):
    path = "/".join(parts)
    assert hashes.matches(path, "/".join("*" for _ in parts)) and hashes.matches(path, path)
    assert not hashes.matches(path, "/".join("*" for _ in [*parts, ""]))
    for folders in ("", "more/", "much/more/"):
        assert hashes.matches(f"top/{folders}{path}", "top/**/*")
        assert hashes.matches(f"{folders}{path}", f"**/{path}")
    assert not hashes.matches(f"other/{path}", "top/**/*")


def test_patterns_find_the_files_that_they_match(checkout):
    """What is looked for in a folder is what is taken from an archive."""
    every = [p.relative_to(checkout).as_posix() for p in checkout.rglob("*") if p.is_file()]
    for pattern in ("names/*.txt", "**/*.txt", "names/**/*", "*", "README.md", "none/*"):
        assert hashes.found(checkout, File(pattern, "")) == sorted(
            p for p in every if hashes.matches(p, pattern)
        )
