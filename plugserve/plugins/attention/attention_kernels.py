"""The kernels of triton-paged: write new keys and values into blocks, attend rows of one token, attend longer rows.

A layer's cache is [num_blocks, 2, KV heads, block_size, D]: the keys of one head in one block lie together. Query heads
that share a key head are computed together. All that changes from step to step is read from device memory, so that a
launch can be captured once and replayed.

Names: T tokens of B rows, D head_dim, G query heads to a key head. Scores are in units of log2, for exp2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from plugserve.backends.torch.kernels.launch import wait_for_earlier

LOG2_E = 1.4426950408889634


@triton.jit
def write_kernel(
    k_ptr, v_ptr, kv_ptr, slots_ptr, k_stride, v_stride,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One program a token: all of its keys and values."""
    wait_for_earlier(IS_DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    mask = lane < NUM_KV_HEADS * HEAD_DIM
    head = lane // HEAD_DIM
    place = (slot // BLOCK_SIZE * 2 * NUM_KV_HEADS + head) * BLOCK_SIZE * HEAD_DIM
    place += slot % BLOCK_SIZE * HEAD_DIM + lane % HEAD_DIM
    tl.store(kv_ptr + place, tl.load(k_ptr + token * k_stride + lane, mask), mask)
    place += NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    tl.store(kv_ptr + place, tl.load(v_ptr + token * v_stride + lane, mask), mask)


@triton.jit
def _attend_tile(
    q, acc, most, total, kv_ptr, table_ptr, start, end, last_seen, first_seen, head, scale, cap,
    MASKS: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Take keys [start, start + TILE) of a sequence into the running softmax (acc, most, total) of queries q [M, D].

    last_seen and first_seen [M] bound what each query sees; keys at and after end are not there.
    """
    key = start + tl.arange(0, TILE)
    lane = tl.arange(0, BLOCK_D)
    block = tl.load(table_ptr + key // BLOCK_SIZE, mask=key < end, other=0).to(tl.int64)
    place = (block * 2 * NUM_KV_HEADS + head) * (BLOCK_SIZE * HEAD_DIM) + key % BLOCK_SIZE * HEAD_DIM
    pointers = kv_ptr + place[:, None] + lane[None, :]
    if MASKS:
        there = (key < end)[:, None] & (lane < HEAD_DIM)[None, :]
        k = tl.load(pointers, there, other=0.0)
    elif BLOCK_D == HEAD_DIM:
        k = tl.load(pointers)
    else:
        k = tl.load(pointers, (lane < HEAD_DIM)[None, :], other=0.0)
    scores = tl.dot(q, k.T, input_precision=PRECISION) * scale
    if HAS_CAP:  # cap tanh(s / cap); tanh z = 2 sigmoid(2 z) - 1; scores are in natural units here
        scores = cap * (2.0 * tl.sigmoid(2.0 * scores / cap) - 1.0) * 1.4426950408889634
    if MASKS:
        seen = (key[None, :] <= last_seen[:, None]) & (key < end)[None, :]
        if HAS_WINDOW:
            seen = seen & (key[None, :] >= first_seen[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    new_most = tl.maximum(most, tl.max(scores, 1))
    base = tl.where(new_most == float("-inf"), 0.0, new_most)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(most - base)
    total = total * shrink + tl.sum(weights, 1)
    pointers += NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    if MASKS:
        v = tl.load(pointers, there, other=0.0)
    elif BLOCK_D == HEAD_DIM:
        v = tl.load(pointers)
    else:
        v = tl.load(pointers, (lane < HEAD_DIM)[None, :], other=0.0)
    acc = acc * shrink[:, None]
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, new_most, total


@triton.jit(do_not_specialize=["num_splits"])
def decode_kernel(
    q_ptr, kv_ptr, out_ptr, table_ptr, starts_ptr, lengths_ptr, acc_ptr, stats_ptr, arrived_ptr,
    q_stride, table_stride, window, scale, cap, num_splits,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, LEAST_SPLIT: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Rows of one token; others are skipped. Program (b, head, split) attends one part of row b's keys, for the
    GROUP query heads of a key head. Of a row's parts, the program that ends last merges all of them, in order.

    Work space: acc [B, KV heads, splits, ROWS, D] and stats [B, KV heads, splits, 2, ROWS] in float32; arrived
    [B, KV heads] int32, zero before and after.
    """
    wait_for_earlier(IS_DEPENDENT)
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    token = tl.load(starts_ptr + row)
    if tl.load(starts_ptr + row + 1) - token != 1:
        return
    length = tl.load(lengths_ptr + row)
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(length - window, 0)
    begin = first // TILE * TILE
    part = tl.maximum(tl.cdiv(tl.cdiv(length - begin, num_splits), TILE) * TILE, LEAST_SPLIT)
    num_parts = tl.maximum(tl.cdiv(length - begin, part), 1)
    if split >= num_parts:
        return
    lane = tl.arange(0, BLOCK_D)
    member = tl.arange(0, ROWS)
    mask = (member < GROUP)[:, None] & (lane < HEAD_DIM)[None, :]
    heads = (head * GROUP + member)[:, None] * HEAD_DIM + lane[None, :]
    q = tl.load(q_ptr + token.to(tl.int64) * q_stride + heads, mask, other=0.0)
    start = begin + split * part
    end = tl.minimum(start + part, length)
    acc = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    most = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    table = table_ptr + row.to(tl.int64) * table_stride
    last_seen = tl.full([ROWS], 0, dtype=tl.int32) + length - 1
    first_seen = tl.full([ROWS], 0, dtype=tl.int32) + first
    for key in range(start, end, TILE):
        acc, most, total = _attend_tile(
            q, acc, most, total, kv_ptr, table, key, end, last_seen, first_seen, head, scale, cap,
            True, HAS_WINDOW, HAS_CAP, PRECISION, NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_SIZE, TILE,
        )  # fmt: skip
    place = out_ptr + token.to(tl.int64) * (NUM_KV_HEADS * GROUP * HEAD_DIM) + heads
    if num_parts == 1:
        total = tl.where(total == 0.0, 1.0, total)  # of a row without context
        tl.store(place, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask)
        return
    pair = row * NUM_KV_HEADS + head
    parts = acc_ptr + pair.to(tl.int64) * num_splits * (ROWS * BLOCK_D)
    stats = stats_ptr + pair.to(tl.int64) * num_splits * (2 * ROWS)
    within = member[:, None] * BLOCK_D + lane[None, :]
    tl.store(parts + split * ROWS * BLOCK_D + within, acc)
    tl.store(stats + split * 2 * ROWS + member, most)
    tl.store(stats + split * 2 * ROWS + ROWS + member, total)
    tl.debug_barrier()  # all of this program's stores come before its arrival
    if tl.atomic_add(arrived_ptr + pair, 1, sem="acq_rel") != num_parts - 1:
        return
    tl.debug_barrier()
    tl.store(arrived_ptr + pair, 0)
    acc = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    most = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for other in range(0, num_parts):
        their_most = tl.load(stats + other * 2 * ROWS + member, volatile=True)
        their_total = tl.load(stats + other * 2 * ROWS + ROWS + member, volatile=True)
        their_acc = tl.load(parts + other * ROWS * BLOCK_D + within, volatile=True)
        new_most = tl.maximum(most, their_most)
        ours, theirs = tl.exp2(most - new_most), tl.exp2(their_most - new_most)
        acc = acc * ours[:, None] + their_acc * theirs[:, None]
        total = total * ours + their_total * theirs
        most = new_most
    tl.store(place, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["num_rows"])
def prefill_kernel(
    q_ptr, kv_ptr, out_ptr, table_ptr, starts_ptr, lengths_ptr, num_rows,
    q_stride, table_stride, window, scale, cap,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Rows of several tokens; those of one are skipped. Program (i, head) attends QUERIES tokens of a row for the
    GROUP query heads of a key head. A row that starts at token s owns the programs from s // QUERIES + its number on,
    so that no list of work has to be made. i counts from the end: later queries see more keys, and start first."""
    wait_for_earlier(IS_DEPENDENT)
    QUERIES: tl.constexpr = ROWS // GROUP
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    low, high = 0, num_rows
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // QUERIES + middle <= program:
            low = middle + 1
        else:
            high = middle
    row = low - 1
    row_start = tl.load(starts_ptr + row)
    query_len = tl.load(starts_ptr + row + 1) - row_start
    query = (program - row_start // QUERIES - row) * QUERIES
    if (query >= query_len) | (query_len == 1):
        return
    length = tl.load(lengths_ptr + row)
    lane = tl.arange(0, BLOCK_D)
    member = tl.arange(0, ROWS)
    mine = query + member // GROUP
    mask = ((mine < query_len) & (member < QUERIES * GROUP))[:, None] & (lane < HEAD_DIM)[None, :]
    heads = (head * GROUP + member % GROUP)[:, None] * HEAD_DIM + lane[None, :]
    token = (row_start + mine).to(tl.int64)[:, None]
    q = tl.load(q_ptr + token * q_stride + heads, mask, other=0.0)
    history = length - query_len
    last_seen = history + mine
    first_seen = last_seen - window + 1
    end = tl.minimum(history + query + QUERIES, length)
    begin = 0
    whole = (history + query + 1) // TILE * TILE  # keys below it are seen by every query
    if HAS_WINDOW:
        begin = tl.maximum(history + query - window + 1, 0) // TILE * TILE
        whole = begin  # window edges are everywhere: mask every tile
    acc = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    most = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    table = table_ptr + row.to(tl.int64) * table_stride
    for key in range(begin, whole, TILE):
        acc, most, total = _attend_tile(
            q, acc, most, total, kv_ptr, table, key, end, last_seen, first_seen, head, scale, cap,
            False, HAS_WINDOW, HAS_CAP, PRECISION, NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_SIZE, TILE,
        )  # fmt: skip
    for key in range(whole, end, TILE):
        acc, most, total = _attend_tile(
            q, acc, most, total, kv_ptr, table, key, end, last_seen, first_seen, head, scale, cap,
            True, HAS_WINDOW, HAS_CAP, PRECISION, NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_SIZE, TILE,
        )  # fmt: skip
    total = tl.where(total == 0.0, 1.0, total)  # of queries past the row's end
    place = out_ptr + token * (NUM_KV_HEADS * GROUP * HEAD_DIM) + heads
    tl.store(place, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask)
