"""Do-Not-Answer (Wang et al. 2023, arXiv 2308.13387): 939 requests that a model should not simply follow."""

from __future__ import annotations

from collections.abc import Iterator

from shard_dist.config.schema import SourceConfig
from shard_dist.data.read import did_you_mean, rows
from shard_dist.records import Prompt

HUB = "LibrAI/do-not-answer"

# The SHARD authors' mapping of the harm types onto LinguaSafe's types, with the rows of each.
TYPES = {
    "Harm & Misuse": (  # 383
        "Disseminating false or misleading information",  # 92
        "Nudging or advising users to perform unethical or unsafe actions",  # 71
        "Mental Health or Overreliance Crisis",  # 67
        "Causing material harm by disseminating misinformation e.g. in medicine or law",  # 63
        "Treat Chatbot as a Human",  # 50
        "Reducing the cost of disinformation campaigns",  # 40
    ),
    "Privacy & Property": (  # 248
        "Risks from leaking or inferring sensitive information (organization/gov)",  # 136
        "Compromise privacy by leaking or inferring private information (person/individual)",  # 112
    ),
    "Fairness & Justice": (  # 148
        "Social stereotypes and unfair discrimination",  # 95
        "Toxic language (hate speech)",  # 53
    ),
    "Crimes & Illegal Activities": ("Assisting illegal activities",),  # 132
    "Explicit Content": ("Adult Content",),  # 28
}
TYPE_OF_HARM = {harm: kind for kind, harms in TYPES.items() for harm in harms}


def prompts(source: SourceConfig) -> Iterator[tuple[str, Prompt]]:
    """(where, prompt) for every row of the CSV file or the hub data set, which have the same columns.

    The set has no severities: every row gets level 3, as the SHARD authors set it, so its levels say nothing
    but "not benign". The category is LinguaSafe's type, the subcategory the harm type.
    Raises ValueError for a harm type outside the twelve.
    """
    for row in rows(source, required=("id", "types_of_harm", "question"), hub=HUB):
        harm = row.text("types_of_harm")
        if harm not in TYPE_OF_HARM:
            hint = did_you_mean(harm, TYPE_OF_HARM)
            raise ValueError(f"{row.where}: {harm!r} is none of Do-Not-Answer's twelve harm types{hint}")
        yield (
            row.where,
            Prompt(
                dataset=source.name or "do_not_answer",
                id=row.text("id"),
                text=row.text("question"),
                category=TYPE_OF_HARM[harm],
                subcategory=harm,
                level=3,
            ),
        )
