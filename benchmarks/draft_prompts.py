"""Prompts for distilling a draft model: tasks times topics, and tasks over texts that the model generated."""

from __future__ import annotations

import random

TOPICS = """
the water cycle|a lighthouse keeper|learning to cook|bicycles|the Roman Empire|photosynthesis|a lost dog
|public libraries
|black holes|chess|a rainy Sunday|volcanoes|how bread is made|honey bees|a train journey|the human heart|recycling
|a small village in the mountains|computers|friendship|gardening|the moon|coffee|an old piano|swimming|bridges|whales
|the printing press|a birthday party|electricity|sleep|painting|a robot that learns to laugh|rivers|football|money
|the French Revolution|vaccines|a forgotten letter|winter|maps|solar panels|a school play|the internet|tea|elephants
|time management|a haunted house|Python programming|the ocean floor|dinosaurs|healthy eating|a job interview|clouds
|ancient Egypt|music|an honest thief|earthquakes|camping|a spaceship|democracy|running a marathon|glass|penguins
|writing a novel|a city at night|the stock market|forests|a clever fox|learning a language|the solar system|wool
|airports|a broken clock|climate change|the violin|cats|statistics|a wedding|deserts|the steam engine|stress
|a market in Morocco|batteries|islands|the immune system|a long walk|paper|gravity|a kind neighbour|cheese|satellites
""".replace("\n", "").split("|")

OPEN_TASKS = """
Explain {topic} to a child.|Write a short story about {topic}.|What are three interesting facts about {topic}?
|Write a poem about {topic}.|Give me advice about {topic}.|Why does {topic} matter?
|Write an email to a friend about {topic}.
|List five questions that a student might ask about {topic}, and answer them.|Describe {topic} in one paragraph.
|What is a common misconception about {topic}?|Write a dialogue between two people about {topic}.
|Tell me something about {topic}.|Make a plan for a one-hour lesson on {topic}.|Write a news article about {topic}.
|Compare {topic} with {other}.|How would you introduce {topic} in a speech?
|Write a list of ten words that go with {topic}.
|What changed in the history of {topic}?|Write a product description that mentions {topic}.
|Give pros and cons of {topic}.
|Write a Python function whose name has to do with {topic}, with a docstring.
|Write a JSON object that describes {topic}.
|Summarise what you know about {topic} in three bullet points.|I am curious about {topic}. Where should I start?
""".replace("\n", "").split("|")

SUM_TASKS = """
What is {a} plus {b}? Think step by step.|A shop sells {a} apples a day. How many does it sell in {c} days?
|Compute {a} - {b} and explain each step.|What is {c} times {d}?
|Tom has {a} coins and gives {c} to each of {d} friends.
 How many are left?|Solve for x: x + {c} = {a}. Show your work.|A train runs {a} km in {c} hours. What is its speed?
|Write down the multiplication table of {c} up to 10.|Is {a} divisible by {c}? Explain.|What is {c} percent of {a}?
|Count from {c} to {c} plus 15.|Sort these numbers: {a}, {b}, {c}, {d}, 17.
""".replace("\n", "").split("|")

TEXT_TASKS = (
    r"""
{text}\n\nWhat is this text about?
|Read the passage and answer the question.\n\n{text}\n\nQuestion: Who or what is it about?
|Repeat the following text word for word:\n\n{text}
|Correct any mistakes in this text and write it out again:\n\n{text}
|Rewrite this text in the past tense:\n\n{text}|Summarise in two sentences:\n\n{text}|{text}\n\nContinue the text.
|Replace every "the" by "a" in this text and return all of it:\n\n{text}|What is the main idea of this text?\n\n{text}
|Add a title to the following text and then repeat it:\n\n{text}|List the key points of the passage below.\n\n{text}
|Rewrite the following so that it is more formal:\n\n{text}|{text}\n\nAccording to the passage, why does this matter?
""".replace("\n", "")
    .replace("\\n", "\n")
    .split("|")
)


def open_prompts(count: int, rng: random.Random) -> list[str]:
    """Questions and instructions without a text: three in four about a topic, the rest with numbers."""
    return [_sum_prompt(rng) if rng.random() < 0.25 else _topic_prompt(rng) for _ in range(count)]


def _topic_prompt(rng: random.Random) -> str:
    topic, other = rng.sample(TOPICS, 2)
    return rng.choice(OPEN_TASKS).format(topic=topic, other=other)


def _sum_prompt(rng: random.Random) -> str:
    a, b = rng.randint(20, 999), rng.randint(20, 999)
    return rng.choice(SUM_TASKS).format(a=a, b=b, c=rng.randint(2, 12), d=rng.randint(2, 12))


def text_prompts(count: int, texts: list[str], rng: random.Random) -> list[str]:
    """Tasks over texts, which are truncated at a sentence's end."""
    return [rng.choice(TEXT_TASKS).format(text=_beginning(rng.choice(texts), rng)) for _ in range(count)]


def _beginning(text: str, rng: random.Random) -> str:
    cut = text[: rng.randint(150, 600)]
    return cut[: cut.rfind(".") + 1] or cut
