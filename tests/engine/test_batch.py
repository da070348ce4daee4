import os
import re

import numpy as np
import pytest
from PIL import Image

from slicescan.engine.batch import Job, one_line, plan, work


def files(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((3, 4, 3), 7, np.uint8)).save(path, format="PNG")
    return folder


def planned(folder, inputs, output=None, shard=(0, 1)):
    """Sources and targets relative to ``folder``, where the inputs are."""
    inputs = [str(folder / one) for one in inputs]
    jobs = plan(inputs, None if output is None else str(folder / output), shard)
    return {job.source.relative_to(folder).as_posix(): job.target.relative_to(folder).as_posix() for job in jobs}


def refused(words, *arguments, **settings):
    with pytest.raises(ValueError, match=re.escape(words)):
        planned(*arguments, **settings)


def test_without_an_output_the_result_goes_beside_its_input(tmp_path):
    files(tmp_path, "a.JPG", "deep/b.tar.png")
    assert planned(tmp_path, ["a.JPG", "deep"]) == {
        "a.JPG": "a_restored.JPG",
        "deep/b.tar.png": "deep/b.tar_restored.png",
    }


@pytest.mark.parametrize("inputs", [["a.png"], ["?.png"]])
def test_an_output_with_an_image_suffix_is_a_file_for_one_input(tmp_path, inputs):
    files(tmp_path, "a.png")
    assert planned(tmp_path, inputs, "out.JPG") == {"a.png": "out.JPG"}
    assert planned(tmp_path, inputs, "out") == {"a.png": "out/a.png"}
    assert planned(tmp_path, inputs, "out.v2") == {"a.png": "out.v2/a.png"}


def test_an_output_is_a_folder_for_several_inputs_a_folder_or_where_a_folder_is(tmp_path):
    files(tmp_path, "a.png", "b.png", "in/c.png")
    assert planned(tmp_path, ["a.png", "b.png"], "x.png") == {"a.png": "x.png/a.png", "b.png": "x.png/b.png"}
    assert planned(tmp_path, ["in"], "x.png") == {"in/c.png": "x.png/c.png"}
    (tmp_path / "album.png").mkdir()
    assert planned(tmp_path, ["a.png"], "album.png") == {"a.png": "album.png/a.png"}
    assert plan(["a.png"], f"{tmp_path}/new.png/")[0].target == tmp_path / "new.png" / "a.png"


def test_folders_keep_their_sub_folders_and_formats(tmp_path):
    files(tmp_path, "in/a.png", "in/b/c.jpg", "in/b/d/e.TIF", "in/notes.txt")
    found = planned(tmp_path, ["in"], "out")
    assert found == {"in/a.png": "out/a.png", "in/b/c.jpg": "out/b/c.jpg", "in/b/d/e.TIF": "out/b/d/e.TIF"}


def test_hidden_files_and_folders_are_not_searched_but_can_be_named(tmp_path):
    files(tmp_path, "in/a.png", "in/.b.png", "in/.thumbnails/c.png", ".in/d.png")
    assert list(planned(tmp_path, ["in"], "out")) == ["in/a.png"]
    assert list(planned(tmp_path, ["in/.b.png", ".in"], "out")) == ["in/.b.png", ".in/d.png"]


def test_patterns_keep_the_folders_from_the_first_wildcard_on(tmp_path):
    files(tmp_path, "in/a/1.png", "in/b/1.png", "in/b/c/2.png", "in/notes.txt")
    assert planned(tmp_path, ["in/*/1.png"], "out") == {"in/a/1.png": "out/a/1.png", "in/b/1.png": "out/b/1.png"}
    assert planned(tmp_path, ["in/b/*.png"], "out") == {"in/b/1.png": "out/1.png"}
    assert planned(tmp_path, ["in/**"], "out") == planned(tmp_path, ["in"], "out")
    assert list(planned(tmp_path, ["in/[b]"], "out")) == ["in/b/1.png", "in/b/c/2.png"]


def test_patterns_work_from_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(files(tmp_path, "a.png", "b.png", "b.txt"))
    assert [str(job.target) for job in plan(["*"], "out")] == [
        os.path.join("out", "a.png"),
        os.path.join("out", "b.png"),
    ]
    assert [str(job.target) for job in plan(["./?.png"], None)] == ["a_restored.png", "b_restored.png"]


def test_a_name_that_looks_like_a_pattern_but_exists_is_that_file(tmp_path):
    files(tmp_path, "[1].png", "1.png")
    assert list(planned(tmp_path, ["[1].png"])) == ["[1].png"]


def test_a_file_named_twice_is_done_once(tmp_path):
    files(tmp_path, "in/a.png", "in/b.png")
    inputs = ["in/a.png", "in", "in/*.png", "in/../in/b.png"]
    assert planned(tmp_path, inputs, "out") == {"in/a.png": "out/a.png", "in/b.png": "out/b.png"}


def test_a_missing_file_is_planned_so_that_the_others_are_done(tmp_path):
    files(tmp_path, "a.png")
    assert list(planned(tmp_path, ["no.png", "a.png"], "out")) == ["no.png", "a.png"]


@pytest.mark.parametrize(
    ("given", "words"), [("empty", "no images in this folder (looked for .jpg, "), ("*.gif", "no image fits this")]
)
def test_an_input_that_holds_no_image_is_named(tmp_path, given, words):
    files(tmp_path, "x.gif")
    (tmp_path / "empty").mkdir()
    refused(f"{tmp_path / given}: {words}", tmp_path, [given])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_shards_share_the_files_between_them(tmp_path, n):
    files(tmp_path, *(f"in/{i}.png" for i in range(4)))
    whole = planned(tmp_path, ["in"], "out")
    shards = [planned(tmp_path, ["in"], "out", (i, n)) for i in range(n)]
    assert sum(map(len, shards)) == 4 and {key: value for shard in shards for key, value in shard.items()} == whole
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_shard_of_one_file_still_writes_into_the_folder(tmp_path):
    files(tmp_path, "a.png", "b.png")
    assert planned(tmp_path, ["a.png", "b.png"], "x.png", (1, 2)) == {"b.png": "x.png/b.png"}


def test_two_inputs_that_would_write_one_output_are_refused(tmp_path):
    files(tmp_path, "a/x.png", "b/x.png")
    one, other, out = tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "out" / "x.png"
    refused(f"{one} and {other} would both be written to {out}", tmp_path, ["a", "b"], "out")


def test_an_output_equal_to_its_input_is_refused(tmp_path):
    files(tmp_path, "a/x.png")
    words = f"{tmp_path / 'a' / 'x.png'}: the result would overwrite its input; choose another output"
    for inputs, output in ((["a/x.png"], "a/x.png"), (["a/x.png"], "a"), (["a"], "a"), (["a"], "a/../a")):
        refused(words, tmp_path, inputs, output)
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    refused(words, tmp_path, ["a"], "link")


def test_a_result_in_the_place_of_another_input_is_refused(tmp_path):
    files(tmp_path, "x.png", "x_restored.png")
    words = "the result would overwrite"
    refused(words, tmp_path, ["x.png", "x_restored.png"])
    refused(words, tmp_path, ["x.png"] + ["sub/x.png"], ".")


def test_results_of_an_earlier_run_are_not_restored_again(tmp_path):
    files(tmp_path, "in/a.png", "in/b.png", "in/a_restored.png", "in/old_restored.png", "in/out/a.png")
    beside = planned(tmp_path, ["in/*.png"])
    assert beside == {
        "in/a.png": "in/a_restored.png",
        "in/b.png": "in/b_restored.png",
        "in/old_restored.png": "in/old_restored_restored.png",
    }
    assert "in/out/a.png" not in planned(tmp_path, ["in"], "in/out")


def test_a_folder_inside_the_output_folder_is_searched(tmp_path):
    files(tmp_path, "photos/day/a.png")
    assert planned(tmp_path, ["photos/day"], "photos") == {"photos/day/a.png": "photos/a.png"}


def run(jobs, restore=lambda pixels: 255 - pixels, **settings):
    return list(work(jobs, restore, **settings))


def test_a_job_reads_restores_and_writes(tmp_path):
    job = Job(files(tmp_path, "a.png") / "a.png", tmp_path / "new" / "b.png")
    (outcome,) = run([job])
    assert (outcome.job, outcome.status, outcome.error) == (job, "done", None) and outcome.seconds > 0
    assert (np.array(Image.open(job.target)) == 248).all()


@pytest.mark.parametrize("error", [ValueError, RuntimeError, MemoryError, KeyError, TypeError, ZeroDivisionError])
def test_an_error_of_any_kind_stops_its_own_file_alone(tmp_path, error):
    files(tmp_path, "a.png", "b.png")
    jobs = [Job(tmp_path / name, tmp_path / "out" / name) for name in ("a.png", "b.png")]
    calls = []

    def fail_once(pixels):
        calls.append(pixels)
        if len(calls) == 1:
            raise error("a cause\nof two lines")
        return pixels

    first, second = run(jobs, fail_once)
    assert (first.status, second.status, second.error) == ("failed", "done", None)
    assert first.error.startswith(f"{tmp_path / 'a.png'}: ") and "a cause" in first.error and "\n" not in first.error
    assert os.listdir(tmp_path / "out") == ["b.png"]


def test_an_interrupt_stops_everything_and_leaves_nothing_half_written(tmp_path):
    job = Job(files(tmp_path, "a.png") / "a.png", tmp_path / "out" / "a.png")

    def stop(pixels):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([job], stop)
    assert os.listdir(tmp_path / "out") == []


def test_what_is_there_already_is_left_out_if_one_asks(tmp_path):
    files(tmp_path, "a.png", "b.png", "out/a.png")
    jobs = [Job(tmp_path / name, tmp_path / "out" / name) for name in ("a.png", "b.png")]
    before = (tmp_path / "out" / "a.png").read_bytes()
    assert [outcome.status for outcome in run(jobs, skip_existing=True)] == ["skipped", "done"]
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    assert [outcome.status for outcome in run(jobs)] == ["done", "done"]
    assert (tmp_path / "out" / "a.png").read_bytes() != before


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("out.gif", "the suffix names the format"),
        ("out", "the suffix names the format"),
        ("alpha.jpg", "JPEG has no transparency"),
        ("file/out.png", "cannot be written"),
        ("folder.png", "a folder is in its place"),
    ],
)
def test_a_result_that_cannot_be_written_is_refused_before_the_long_work(tmp_path, target, cause):
    (tmp_path / "file").write_text("I am no folder")
    (tmp_path / "folder.png").mkdir()
    Image.new("RGBA", (3, 3)).save(tmp_path / "a.png")
    calls = []
    (outcome,) = run([Job(tmp_path / "a.png", tmp_path / target)], calls.append)
    assert outcome.status == "failed" and cause in outcome.error and str(tmp_path / target) in outcome.error
    assert not calls


def test_an_error_that_names_the_file_is_not_named_twice():
    assert one_line(ValueError("a.jpg: of no use"), "a.jpg") == "a.jpg: of no use"
    assert one_line(ValueError("a.jpg2: of no use"), "a.jpg") == "a.jpg: a.jpg2: of no use"
    assert one_line(MemoryError(), "a.jpg") == "a.jpg: MemoryError"
