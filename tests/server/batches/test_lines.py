import io
import json

import pytest

from plugserve.server.batches.lines import answered, failed, read_line, result_id, texts_of

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}


def read(fields, **options):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return read_line(7, text, **{"max_bytes": 1000, **options})


def test_a_request_is_read():
    line = read(GOOD)
    assert (line.number, line.custom_id, line.url, line.body, line.fault) == (7, "a", GOOD["url"], GOOD["body"], None)


@pytest.mark.parametrize(
    ("fields", "code", "custom_id"),
    [
        (b"{not json", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"[1]", "invalid_line", None),
        ({**GOOD, "custom_id": 5}, "invalid_custom_id", None),
        ({**GOOD, "custom_id": ""}, "invalid_custom_id", None),
        ({**GOOD, "custom_id": "x" * 300}, "invalid_custom_id", None),
        ({**GOOD, "method": "GET"}, "invalid_method", "a"),
        ({**GOOD, "url": "/v1/files"}, "invalid_url", "a"),
        ({**GOOD, "url": ["/v1/completions"]}, "invalid_url", "a"),
        ({**GOOD, "body": "text"}, "invalid_body", "a"),
        ({key: GOOD[key] for key in ("custom_id", "method", "url")}, "invalid_body", "a"),
        ({**GOOD, "body": {"stream": True}}, "unsupported_value", "a"),
        ({**GOOD, "body": {"prompt": "x" * 2000}}, "line_too_long", None),
    ],
)
def test_a_bad_line_is_a_fault_with_what_can_be_read(fields, code, custom_id):
    line = read(fields)
    assert (line.fault.code, line.custom_id) == (code, custom_id)
    result = json.loads(failed(line, line.fault))
    assert result["response"] is None
    assert (result["error"]["line"], result["error"]["code"]) == (7, code)
    assert "\n" not in result["error"]["message"]


def test_a_batchs_endpoint_is_the_only_one():
    assert read(GOOD, endpoint="/v1/embeddings").fault.code == "mismatched_url"


def test_result_ids_are_equal_in_every_run_and_differ_by_text_batch_and_place():
    assert result_id(b"x") == result_id(b"x")
    assert len({result_id(b"x"), result_id(b"y"), result_id(b"x", "b"), result_id(b"x", number=2)}) == 4


def test_an_answer_keeps_its_body_and_is_one_line():
    data = answered(read(GOOD), 200, "req", b'{"text":"a\\nb"}')
    assert data.count(b"\n") == 1
    assert json.loads(data)["response"] == {"status_code": 200, "request_id": "req", "body": {"text": "a\nb"}}


def test_lines_are_read_with_their_numbers_and_long_ones_are_cut():
    file = io.BytesIO(b"a\r\n\n  \nbbbb\n" + b"c" * 5000 + b"\nlast")
    assert list(texts_of(file, 4)) == [(1, b"a"), (4, b"bbbb"), (5, b"ccccc"), (6, b"last")]
