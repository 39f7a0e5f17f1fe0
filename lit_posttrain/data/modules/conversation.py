"""The data module of supervised fine-tuning: files of conversations in, packed token trees out."""

from __future__ import annotations

from typing import Literal

from lit_posttrain.data.formats.conversations import Columns
from lit_posttrain.data.modules.base import TreeData
from lit_posttrain.data.store.build import TokenizeOptions


class ConversationData(TreeData):
    """Conversations, prompts with completions, or plain text, from files, folders or the hub.

    Columns are recognised by their names: `messages` (role/content or from/value), prompt/completion (or response),
    instruction/input/output, instruction/context/response, question/answer, query/response, problem/solution, text;
    beside them `system`, `tools`, `history`, `chat_template_kwargs`, and marks such as `weight` 0 on what is not to be
    trained on. Anything else is named with `--data.columns`. What was read, dropped, trained on and not used is in the
    audit.

    Args:
        path: Training data: .jsonl, .jsonl.gz, .ndjson, .json, .parquet, .arrow, .csv or .tsv files, folders of
            them, `builtin:NAME`, or `owner/name[/config][:split]` on the Hugging Face hub. One, or a list.
        weights: For each entry of `path` how many times an epoch shows its rows: 2 shows each twice, 0.25 another
            quarter of them in every epoch, until all have been seen. Factors, not shares: the audit says what shares
            they make. Default: all rows once.
        val_path: Validation data, of the same kinds. Every entry is logged as a data set of its own.
        test_path: Data for `test` and `predict`; where it is not given, `test` takes the validation data and `predict`
            every row of `path`.
        val_fraction: Share of the training rows to hold out for validation where there is no `val_path`, 0 to 1, chosen
            by a hash of a row's content: the same rows in every run, and repeated rows on the same side.
        columns: Names of the columns, where they are not recognised.
        train_on: `assistant`: every assistant turn. `last`: the last one. `completion`: the assistant turns that
            follow the row's own prompt (all of them where a row is one conversation). `all`: every token.
            Plain text is trained on as a whole.
        system_prompt: System prompt for conversations that bring none.
        max_length: Most tokens of a conversation. Default: what the model takes, but no more than 2048.
        overlong: Longer conversations: `drop` them, `cut` them at the end, or `split` them into pieces. The audit
            counts them.
        on_bad_row: A row that cannot be trained on: stop with an `error` that names it, or `skip` and count it.
        batch_size: Conversations per optimizer step, over all micro-batches and devices.
        eval_batch_size: Conversations per validation batch, over all devices.
        shuffle: Shuffle the training data anew in every epoch.
        seed: Seed of the shuffle.
        streaming: Read the training data as training goes on instead of tokenising it all before: for sets too large
            for that, on the hub without storing them. Needs --trainer.max_steps, and --data.val_path or no validation;
            several files are read one after another, in an order drawn anew in every pass. A row that cannot be used is
            found when it is reached. A resumed run reads the pass again up to its place.
        shuffle_buffer: With streaming: among how many rows the next one is drawn.
        cache_dir: Where tokenised data is kept. Default: $LIT_POSTTRAIN_CACHE, or ~/.cache/lit_posttrain/data.
    """

    def __init__(
        self,
        path: str | list[str],
        weights: list[float] | None = None,
        val_path: str | list[str] | None = None,
        test_path: str | list[str] | None = None,
        val_fraction: float = 0.0,
        columns: Columns | None = None,
        train_on: Literal["assistant", "last", "completion", "all"] = "assistant",
        system_prompt: str | None = None,
        max_length: int | None = None,
        overlong: Literal["drop", "cut", "split"] = "drop",
        on_bad_row: Literal["error", "skip"] = "error",
        batch_size: int = 16,
        eval_batch_size: int = 16,
        shuffle: bool = True,
        seed: int = 0,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            path,
            val_path,
            test_path,
            val_fraction,
            max_length,
            batch_size,
            eval_batch_size,
            shuffle,
            seed,
            cache_dir,
            weights=weights,
            streaming=streaming,
            shuffle_buffer=shuffle_buffer,
        )
        self.columns, self.train_on, self.system_prompt = columns, train_on, system_prompt
        self.overlong, self.on_bad_row = overlong, on_bad_row

    def _options(self, max_length: int) -> TokenizeOptions:
        return TokenizeOptions(
            self.columns, self.train_on, self.system_prompt, max_length, self.overlong, self.on_bad_row
        )
