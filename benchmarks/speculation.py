"""The speed-up of speculation on a real model: four kinds of prompts, n-grams and a draft model against plain decoding.

    python benchmarks/speculation.py --draft ./draft [--streams 1] [--set "open chat"] [--json out.json]

All engines run in this process and answer the same prompts greedily in turn (off, n-gram, draft, draft, n-gram, ...),
so that each comparison is a pair of consecutive runs. Speed is process CPU time with one thread, which other programs
on the machine affect less than wall time. Answers must have the same tokens; the table shows how many do. make_draft.py
makes drafts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.build import EngineBuilder
from plugserve.core.engine.engine import Engine
from plugserve.core.model_files.model_source import ModelSource, load_text_model, resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings

CODE = """def area(width, height):
    \"\"\"The area of a rectangle.\"\"\"
    if width < 0 or height < 0:
        raise ValueError("negative size")
    return width * height


def perimeter(width, height):
    return 2 * (width + height)
"""
LETTER = (
    "Dear Mr Smith, thank you for your letter of 3 May. We are sorry that the parcel arrived late. The new parcel "
    "will leave our house on Monday and should be with you on Wednesday. If it is not, please call us at once. "
)
PASSAGE = (
    "The lighthouse at Cape Arden was built in 1871 by the engineer Clara Voss. It is 42 metres high and was painted "
    "white and red, so that ships could see it by day. In 1923 its oil lamp was replaced by an electric one. The last "
    "keeper, Jonas Hale, left in 1988, when the light became automatic. Since 1995 the tower has been a museum, which "
    "about nine thousand people visit each year. "
)
SETS = {
    "copy-heavy edit": [
        f"Repeat this code exactly, but rename width to w:\n\n{CODE}",
        f"Write out this letter again and correct any mistakes:\n\n{LETTER}",
        f"Add a docstring to the second function and return the whole file:\n\n{CODE}",
        f"Repeat the following text word for word:\n\n{PASSAGE}",
    ],
    "question over a passage": [
        f"{PASSAGE}\n\nWho built the lighthouse, and when?",
        f"{PASSAGE}\n\nWhat happened in 1923 and in 1988?",
        f"{PASSAGE}\n\nSummarise the passage in two sentences.",
        f"{LETTER}\n\nWhen will the parcel arrive, and what should Mr Smith do if it doesn't?",
    ],
    "open chat": [
        "What makes a good friend?",
        "Tell me a short story about a fox who wants to learn to swim.",
        "I feel tired all day. What could I change?",
        "Why do people like to travel?",
    ],
    "arithmetic": [
        "What is 17 plus 25? Think step by step.",
        "A shop sells 12 apples a day. How many does it sell in 7 days? Explain.",
        "Write the multiplication table of 7 from 1 to 10.",
        "Tom has 30 coins and gives 4 to each of 5 friends. How many are left?",
    ],
}


@dataclass
class Row:
    """One set of prompts with one proposer. seconds are CPU seconds per token; speed_up is the median over pairs."""

    prompts: str
    drafts: str
    num_streams: int
    seconds: float
    speed_up: float
    speed_up_low: float
    speed_up_high: float
    tokens_per_verification: float
    num_drafts: int
    num_draft_tokens: int
    accepted_per_position: list[float]
    num_equal: int
    num_answers: int


def make_engine(source: ModelSource, **settings: object) -> Engine:
    base = {"threads": 1, "max_model_len": 1024, "kv_cache_memory": 2**28, "load_format": "auto"}
    chosen = Settings.model_validate(base | settings)
    host = PluginHost.load(chosen.selection())
    return EngineBuilder(chosen, host, source).build()[0]


def step(engine: Engine, answers: list[list[int]]) -> None:
    """Run one step; adds its tokens to answers, by request id."""
    engine.step()
    for _, outputs in engine.take_outputs():
        tokens, at = array("i", outputs.tokens), 0
        for id, count in zip(outputs.ids, outputs.num_tokens, strict=True):
            answers[id] += tokens[at : at + count]
            at += count


def answer(engine: Engine, prompts: list[list[int]], num_tokens: int) -> tuple[list[list[int]], float]:
    """The tokens of each answer, and the CPU seconds of all of them after their first tokens."""
    answers: list[list[int]] = [[] for _ in prompts]
    for id, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=num_tokens, seed=0, temperature=0.0, ignore_eos=True)
        engine.admit((b"benchmark", id), array("i", prompt), params)
    started_s = None
    while engine.has_work:
        step(engine, answers)
        if started_s is None and all(answers):
            started_s = time.process_time()
    assert started_s is not None
    return answers, time.process_time() - started_s


def measure(
    engines: dict[str, Engine], name: str, prompts: list[list[int]], num_streams: int, num_tokens: int, repeats: int
) -> list[Row]:
    groups = [prompts[i : i + num_streams] for i in range(0, len(prompts), num_streams)] * repeats
    seconds: dict[str, list[float]] = {drafts: [] for drafts in engines}
    equal = dict.fromkeys(engines, 0)
    before = {drafts: counts(engine) for drafts, engine in engines.items()}
    for n, group in enumerate(groups):
        order = list(engines) if n % 2 == 0 else list(engines)[::-1]
        outputs = {}
        for drafts in order:
            outputs[drafts], took_s = answer(engines[drafts], group, num_tokens)
            seconds[drafts].append(took_s / (len(group) * (num_tokens - 1)))
        for drafts in engines:
            equal[drafts] += sum(a == b for a, b in zip(outputs[drafts], outputs["off"], strict=True))
    rows = []
    for drafts, engine in engines.items():
        num_drafts, num_draft_tokens, accepted, by_position = (
            [a - b for a, b in zip(now, then, strict=True)] if isinstance(now, list) else now - then
            for now, then in zip(counts(engine), before[drafts], strict=True)
        )
        ratios = sorted(off / own for off, own in zip(seconds["off"], seconds[drafts], strict=True))
        rows.append(
            Row(
                prompts=name,
                drafts=drafts,
                num_streams=num_streams,
                seconds=statistics.median(seconds[drafts]),
                speed_up=statistics.median(ratios),
                speed_up_low=ratios[0],
                speed_up_high=ratios[-1],
                tokens_per_verification=1 + accepted / num_drafts if num_drafts else 1.0,
                num_drafts=num_drafts,
                num_draft_tokens=num_draft_tokens,
                accepted_per_position=[round(count / num_drafts, 3) for count in by_position] if num_drafts else [],
                num_equal=equal[drafts],
                num_answers=len(groups) * num_streams,
            )
        )
    return rows


def counts(engine: Engine) -> tuple[int, int, int, list[int]]:
    stats = engine.snapshot()
    per_position = list(stats.num_accepted_per_position)
    return stats.num_drafts, stats.num_draft_tokens, stats.num_accepted_draft_tokens, per_position


def as_markdown(rows: list[Row]) -> str:
    lines = [
        "| prompts | drafts | CPU ms per token | speed-up (range) | accepted drafts | accepted by position "
        "| equal answers |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accepted = by_position = "-"
        if row.num_drafts:
            accepted = f"{row.tokens_per_verification - 1:.2f} of {row.num_draft_tokens / row.num_drafts:.1f}"
            by_position = " ".join(f"{share:.2f}" for share in row.accepted_per_position)
        span = f"{row.speed_up_low:.2f} to {row.speed_up_high:.2f}"
        lines.append(
            f"| {row.prompts} | {row.drafts} | {1000 * row.seconds:.1f} | {row.speed_up:.2f} ({span}) | {accepted} | "
            f"{by_position} | {row.num_equal} of {row.num_answers} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", help="the served model; the embedded one by default")
    parser.add_argument("--draft", help="folder of a draft model; without it only n-grams are measured")
    parser.add_argument("--set", action="append", choices=list(SETS), help="only this set of prompts; repeat it")
    parser.add_argument("--streams", type=int, default=1, help="requests at once: 1, 2 or 4")
    parser.add_argument("--num-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--num-speculative-tokens", type=int, default=5)
    parser.add_argument("--fixed", action="store_true", help="always draft the largest number")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    source = resolve(arguments.model)
    common = {
        "num_speculative_tokens": arguments.num_speculative_tokens,
        "adaptive_speculation": not arguments.fixed,
    }
    engines = {"off": make_engine(source), "n-gram": make_engine(source, plugin=["ngram"], **common)}
    if arguments.draft:
        engines["draft"] = make_engine(source, speculative_model=arguments.draft, **common)
    text_model = load_text_model(source)
    rows: list[Row] = []
    for name, prompts in SETS.items():
        if arguments.set and name not in arguments.set:
            continue
        ids = [
            text_model.encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n") for prompt in prompts
        ]
        rows += measure(engines, name, ids, arguments.streams, arguments.num_tokens, arguments.repeats)
        print(as_markdown(rows[-len(engines) :]), flush=True)
    print()
    print(as_markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
