import asyncio
import json

import pytest

from plugserve.core.errors import UserError
from plugserve.server.batches.lines import answered
from plugserve.server.batches.results import ResultsFile
from plugserve.server.batches.run import Done, Reading, run_lines, survey


def request(custom_id, prompt="x"):
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": {"prompt": prompt}}


class Batch:
    """A batch's files; run answers what is left, or fails at the line whose prompt is "stop"."""

    def __init__(self, folder, lines):
        self.source, self.target = folder / "in", folder / "out"
        self.write(lines)
        self.sent, self.most, self.running = [], 0, 0
        self.pause = lambda: asyncio.sleep(0)

    def write(self, lines):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self.source.write_text("\n".join(texts))

    async def answer(self, line):
        self.running += 1
        self.most = max(self.most, self.running)
        await self.pause()
        self.running -= 1
        self.sent.append(line.custom_id)
        prompt = line.body["prompt"]
        if prompt == "stop":
            raise RuntimeError("the engine is gone")
        status = prompt if isinstance(prompt, int) else 200
        return status, answered(line, status, "req", b"{}")

    async def run(self, concurrency=3):
        reading = Reading(self.source, 1000)
        results = ResultsFile(self.target)
        try:
            done = Done(survey(reading))
            results.keep(done.keep)

            async def put(status, data):
                await results.append(data)

            return await run_lines(reading, done, self.answer, put, concurrency)
        finally:
            results.close()

    @property
    def results(self):
        return [json.loads(line) for line in self.target.read_text().splitlines()]


async def test_every_line_gets_one_result_and_bad_ones_an_error(tmp_path):
    batch = Batch(tmp_path, [request("a"), "{", request("b", 400), request("a"), "", request("c")])
    counts = await batch.run()
    assert (counts.num_answered, counts.num_failed, counts.num_faults) == (2, 1, 2)
    assert sorted(batch.sent) == ["a", "b", "c"]
    assert len(batch.results) == len({one["id"] for one in batch.results}) == 5
    [duplicate] = [one for one in batch.results if one["error"] and one["custom_id"] == "a"]
    assert duplicate["error"]["code"] == "duplicate_custom_id"
    assert "line 1 has 'a', too" in duplicate["error"]["message"]


async def test_no_more_lines_run_than_asked_for(tmp_path):
    batch = Batch(tmp_path, [request(str(number)) for number in range(40)])
    is_full = asyncio.Event()

    async def pause():
        if batch.running == 4:
            is_full.set()
        await is_full.wait()

    batch.pause = pause
    await batch.run(concurrency=4)
    assert batch.most == 4


async def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    lines = [request(str(number), "stop" if number == 20 else "x") for number in range(40)]
    batch = Batch(tmp_path, lines)
    with pytest.raises(RuntimeError, match="gone"):
        await batch.run(concurrency=2)
    num_before = len(batch.results)
    assert 15 <= num_before < 25
    lines[20] = request("20", "y")
    batch.write(lines)
    batch.sent.clear()
    counts = await batch.run()
    assert counts.num_answered == len(batch.sent) == 40 - num_before
    assert sorted(int(one["custom_id"]) for one in batch.results) == list(range(40))


async def test_failures_of_the_server_are_tried_again_and_refusals_are_not(tmp_path):
    batch = Batch(tmp_path, [request("a", 503), request("b", 400), request("c", 429), "{"])
    await batch.run()
    batch.sent.clear()
    await batch.run()
    assert sorted(batch.sent) == ["a", "c"]
    assert len(batch.results) == 4


async def test_a_mended_line_is_sent_and_its_error_is_dropped(tmp_path):
    batch = Batch(tmp_path, [request("a"), "{", request("c", 400)])
    await batch.run()
    batch.write([request("a"), request("b"), request("c")])
    batch.sent.clear()
    await batch.run()
    assert sorted(batch.sent) == ["b", "c"]
    assert sorted((one["custom_id"], one["response"]["status_code"]) for one in batch.results) == [
        ("a", 200), ("b", 200), ("c", 200),
    ]  # fmt: skip


async def test_an_answered_line_that_moved_is_not_sent_again(tmp_path):
    batch = Batch(tmp_path, [request("a"), request("b")])
    await batch.run()
    batch.write([request("new"), request("b"), request("a")])
    batch.sent.clear()
    await batch.run()
    assert batch.sent == ["new"]
    assert sorted(one["custom_id"] for one in batch.results) == ["a", "b", "new"]


async def test_a_changed_line_is_sent_and_its_old_answer_is_dropped(tmp_path):
    batch = Batch(tmp_path, [request("a"), request("b")])
    await batch.run()
    before = {one["custom_id"]: one["id"] for one in batch.results}
    batch.write([request("b", "new"), request("a")])
    batch.sent.clear()
    await batch.run()
    assert batch.sent == ["b"]
    after = {one["custom_id"]: one["id"] for one in batch.results}
    assert len(batch.results) == 2
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]


async def test_a_second_run_changes_nothing(tmp_path):
    batch = Batch(tmp_path, [request("a"), "{", request("a"), request("b", 404)])
    await batch.run()
    before = batch.target.read_bytes()
    batch.sent.clear()
    await batch.run()
    assert (batch.sent, batch.target.read_bytes()) == ([], before)


async def test_results_of_another_batch_are_not_touched(tmp_path):
    batch = Batch(tmp_path, [request("a")])
    await batch.run()
    before = batch.target.read_bytes()
    batch.write([request("other")])
    with pytest.raises(UserError, match="belong to another batch: no line of this one has custom_id 'a'"):
        await batch.run()
    assert batch.target.read_bytes() == before


def test_a_file_that_isnt_there_is_named(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        survey(Reading(tmp_path / "no", 1000))
