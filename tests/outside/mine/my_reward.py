"""A reward of one's own: how many of a row's wanted words a response has."""

from lit_posttrain.rewards import Reward, RewardBatch


class Words(Reward):
    """The share of the words in the row's column that the response contains."""

    def __init__(self, column: str = "words", weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            column: The column with the words.
            weight: Factor in the sum of all rewards.
            name: What its metrics are called.
        """
        super().__init__(weight, name)
        self.needs = [column]

    def score(self, batch: RewardBatch) -> list[float]:
        wanted = [str(text).split() for text in batch.columns[self.needs[0]]]
        return [sum(w in said for w in words) / len(words) for words, said in zip(wanted, batch.responses, strict=True)]
