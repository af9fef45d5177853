"""A backend that only brings a forward pass: core's rows and core's law of sampling, and no torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.rows.host_rows import HostRows

PROGRAM = """
import sys
import numpy as np
from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.rows.host_rows import HostRows
from plugserve.core.sampling_law.reference import next_token

VOCAB = 30
table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)) * 2  # the model: logits follow from the last token
rows = HostRows(4, 64, 16, VOCAB)
params = [SamplingParams(max_tokens=9, seed=row, temperature=t, top_k=5) for row, t in enumerate((0.0, 1.0))]
new = [NewRow(row, [3, 4, 5 + row], 3, 0, [row], one, ()) for row, one in enumerate(params)]
texts = {0: [], 1: []}
for number in range(6):
    counts = [3, 3] if number == 0 else [1, 1]
    step = StepInput(number, new if number == 0 else [], [], [], [0, 1], counts, [True, True])
    rows.apply(step)
    batch = rows.read(step)
    logits = table[batch.token_ids[batch.last_index]]
    drawn = {}
    for entry, row in enumerate(step.rows):
        known = rows.known(row, int(batch.context_lens[entry]))
        drawn[entry] = next_token(logits[entry], rows.table.rules[row], known)
        texts[row].append(drawn[entry])
    rows.advance(step, drawn)
greedy, last = [], 5
for _ in range(6):
    last = int(table[last].argmax())
    greedy.append(last)
assert texts[0] == greedy, (texts, greedy)
assert len(texts[1]) == 6 and texts[1] != greedy
assert "torch" not in sys.modules, "torch was imported"
"""


def test_a_backend_generates_without_importing_torch():
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_positions_and_slots_follow_from_the_rows_blocks():
    rows = HostRows(3, 40, 4, 50)
    params = SamplingParams(max_tokens=9, seed=0)
    new = [NewRow(0, list(range(10, 16)), 6, 2, [7, 3], params, ()), NewRow(2, [20, 21], 2, 0, [5], params, ())]
    first = StepInput(0, new, [], [], [2, 0], [2, 3], [True, False])
    rows.apply(first)
    batch = rows.read(first)
    assert batch.token_ids.tolist() == [20, 21, 12, 13, 14]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4]
    assert batch.slots.tolist() == [20, 21, 30, 31, 12]
    assert batch.query_starts.tolist() == [0, 2, 5]
    assert batch.context_lens.tolist() == [2, 5]
    rows.advance(first, {0: 33})
    second = StepInput(1, [], [], [(0, 2, [9])], [0, 2], [1, 1], [True, True])
    rows.apply(second)
    batch = rows.read(second)
    assert batch.token_ids.tolist() == [15, 33]
    assert batch.positions.tolist() == [5, 2]
    assert rows.block_table[0].tolist()[:3] == [7, 3, 9]
    assert np.array_equal(rows.known(2, 3), [20, 21, 33])
