import asyncio
import json
import os

import pytest

from plugserve.core.errors import UserError
from plugserve.server.batches.results import ResultsFile


def result(id, status=200):
    return (
        json.dumps({"id": id, "custom_id": id, "response": {"status_code": status, "body": {}}, "error": None}) + "\n"
    )


async def test_results_are_appended_whole(tmp_path):
    results = ResultsFile(tmp_path / "out")
    for number in range(3):
        await results.append(result(str(number)).encode())
    results.close()
    results.close()
    assert (tmp_path / "out").read_text() == "".join(map(result, "012"))


@pytest.mark.parametrize(
    "tail",
    ['{"id": "c", "custom', result("c").rstrip("\n"), "\x00" * 40, '{"other": 1}\n'],
    ids=["partial", "unended", "zeros", "foreign"],
)
async def test_the_partial_end_of_a_killed_run_is_dropped(tail, tmp_path):
    path = tmp_path / "out"
    path.write_text(result("a") + result("b") + tail)
    results = ResultsFile(path)
    seen = []
    results.keep(lambda one: seen.append(one.id) or True)
    await results.append(result("c").encode())
    results.close()
    assert seen == ["a", "b"]
    assert path.read_text() == result("a") + result("b") + result("c")


async def test_only_wanted_results_are_kept_and_the_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "out"
    path.write_text(result("a") + result("b", 503) + result("c", 400))
    results = ResultsFile(path)
    results.keep(lambda one: one.is_final)
    await results.append(result("d").encode())
    results.close()
    assert path.read_text() == result("a") + result("c", 400) + result("d")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(("status", "is_final"), [(200, True), (400, True), (404, True), (429, False), (500, False)])
def test_failures_of_the_server_are_not_final(status, is_final, tmp_path):
    path = tmp_path / "out"
    path.write_text(result("a", status))
    found = []
    results = ResultsFile(path)
    results.keep(lambda one: found.append(one.is_final) or True)
    results.close()
    assert found == [is_final]


def test_a_second_run_on_the_same_file_is_refused(tmp_path):
    results = ResultsFile(tmp_path / "out")
    with pytest.raises(UserError, match="is being written by another run"):
        ResultsFile(tmp_path / "out")
    results.close()
    ResultsFile(tmp_path / "out").close()


def test_a_place_that_cant_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="no/out can't be written: No such file"):
        ResultsFile(tmp_path / "no" / "out")


async def test_a_result_is_written_although_its_writer_is_cancelled(tmp_path):
    results = ResultsFile(tmp_path / "out")
    writers = [asyncio.create_task(results.append(result(str(number)).encode())) for number in range(20)]
    await asyncio.sleep(0)
    for writer in writers:
        writer.cancel()
    ends = await asyncio.gather(*writers, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    results.close()
    assert sorted((tmp_path / "out").read_text().splitlines(True)) == sorted(result(str(n)) for n in range(20))
