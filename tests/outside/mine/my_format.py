"""A data format of one's own: forum threads, of which the votes say which answer is the better one."""

from typing import Any


def as_conversation(row: dict[str, Any]) -> dict[str, Any] | None:
    """For ConversationData: the question with its best answer; threads without an answer are left out."""
    answers = sorted(row["replies"], key=lambda reply: reply["votes"])
    return {"prompt": row["title"], "completion": answers[-1]["body"]} if answers else None


def as_pair(row: dict[str, Any]) -> dict[str, Any] | None:
    """For PreferenceData: the best answer against the worst."""
    answers = sorted(row["replies"], key=lambda reply: reply["votes"])
    if len(answers) < 2:
        return None
    return {"prompt": row["title"], "chosen": answers[-1]["body"], "rejected": answers[0]["body"]}


def as_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """For PromptData: the question, and for the rewards the words of the best answer."""
    best = max(row["replies"], key=lambda reply: reply["votes"], default={"body": "none"})
    return {"prompt": row["title"], "words": best["body"]}
