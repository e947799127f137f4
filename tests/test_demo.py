"""The demo, on generated files of MovieLens-100K's format; nothing here needs a network."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from torchrec_models.pipelines import demo

NAMES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")


def write_files(folder: Path, *, num_ratings: int = 3000) -> Path:
    """40 users, 30 movies; whoever is even likes what is even."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    users, movies = draw.integers(1, 41, num_ratings), draw.integers(1, 31, num_ratings)
    ratings = np.where((users + movies) % 2 == 0, 5, 1 + draw.integers(0, 3, num_ratings))
    lines = [f"{u}\t{m}\t{r}\t{881250949 + i}" for i, (u, m, r) in enumerate(zip(users, movies, ratings))]
    write(folder / NAMES[0], "user_id:token\titem_id:token\trating:float\ttimestamp:float", lines)
    years = {1: "V", 2: "unkonwn"}
    genres = ("Comedy", "Children's Comedy Sci-Fi", "Film-Noir")
    lines = [f'{i}\tThe "Film, {i}\t{years.get(i, 1960 + i)}\t{genres[i % 3]}' for i in range(1, 31)]
    write(folder / NAMES[1], "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", lines)
    lines = [f"{i}\t{20 + i}\t{'FM'[i % 2]}\t{('writer', 'none')[i % 2]}\t{'T8H1N' if i == 1 else 10000 + i}" for i in range(1, 41)]
    write(folder / NAMES[2], "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", lines)
    return folder


def write(path: Path, header: str, lines: list[str]) -> None:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, where the generated files count as the real ones."""
    monkeypatch.chdir(tmp_path)
    files = write_files(tmp_path / "files")
    sums = {name: hashlib.sha256((files / name).read_bytes()).hexdigest() for name in NAMES}
    monkeypatch.setattr(demo, "SHA256", sums)
    return tmp_path


def test_the_click_log_joins_ratings_with_users_and_movies(here: Path) -> None:
    log = demo.click_log(here / "files")
    assert log.num_rows == 3000
    assert log.column_names == [
        *("user_id", "item_id", "age", "gender", "occupation", "release_year", "genres", "timestamp", "rating")
    ]
    user, item = (np.array(log[name].to_pylist(), dtype=int) for name in ("user_id", "item_id"))
    np.testing.assert_array_equal(log["age"].to_numpy(), 20 + user)
    assert log["gender"].to_pylist() == ["FM"[u % 2] for u in user]
    assert log["release_year"].to_pylist() == [None if i <= 2 else 1960 + i for i in item]
    assert log["genres"].to_pylist() == [[["Comedy"], ["Children's", "Comedy", "Sci-Fi"], ["Film-Noir"]][i % 3] for i in item]
    assert log["timestamp"].to_pylist() == [881250949 + i for i in range(3000)]
    assert set(log["rating"].to_pylist()) == {1, 2, 3, 5}


def test_the_demo_ends_with_its_result_and_does_nothing_twice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.demo(data_dir=here / "files")
    first = capsys.readouterr().out
    table = {line.split()[0]: line.split()[1:] for line in first.splitlines() if line.startswith("  ")}
    assert float(table["AUC"][0]) > 0.9  # the taste is a rule
    assert table["AUC"][1] == "0.5000"
    assert {"AUC", "gAUC", "log", "trm"} <= set(table)
    assert Path("runs/ml100k/deepfm/evaluation/test/report.html").exists()
    log, step = demo.LOG.stat().st_mtime_ns, sorted(Path("runs/ml100k/deepfm/checkpoints").iterdir())
    demo.demo(data_dir=here / "files")
    assert capsys.readouterr().out == first
    assert (demo.LOG.stat().st_mtime_ns, sorted(Path("runs/ml100k/deepfm/checkpoints").iterdir())) == (log, step)


def test_files_that_are_missing_or_others_are_named(here: Path) -> None:
    (here / "files" / NAMES[1]).unlink()
    (here / "files" / NAMES[2]).write_text("changed")
    with pytest.raises(ValueError) as caught:
        demo.obtain(here / "files")
    lines = str(caught.value).splitlines()
    assert lines[0] == "these are not the MovieLens-100K files of RecBole 1.2.1; remove them, or name another folder"
    assert lines[1] == f"{here / 'files' / NAMES[1]}: missing"
    expected, found = demo.SHA256[NAMES[2]][:12], hashlib.sha256(b"changed").hexdigest()[:12]
    assert lines[2] == f"{here / 'files' / NAMES[2]}: sha256 {found}..., expected {expected}..."
    assert not demo.LOG.exists()


def test_a_failed_download_says_what_to_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ValueError, match=r"pip could not download recbole==1\.2\.1") as caught:
        demo.obtain()
    assert "trm demo --data-dir FOLDER" in str(caught.value)
    assert not demo.LOG.exists()


def test_a_log_that_is_there_is_not_made_again(here: Path) -> None:
    demo.obtain(here / "files")
    assert pq.read_metadata(demo.LOG).num_rows == 3000
    for name in NAMES:
        (here / "files" / name).unlink()
    assert demo.obtain(here / "files") == demo.LOG
