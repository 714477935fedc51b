"""Labels by a model behind the chat-completions interface: OpenAI's, vLLM's, or another server's.

Nothing is tuned: each text's prompt goes out as messages, and labels are read from the answer as
from a decoder's. An answer is in WORKDIR/answers.jsonl before it is used (see `answer_log`), so
that a stopped run goes on without asking anything twice. The key stays in the environment.
"""

import contextlib
import dataclasses
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxclf.core.errors import InputError
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Record
from jaxclf.decoding.recipe import Recipe
from jaxclf.prompts.builder import PromptSource
from jaxclf.prompts.builder import answer as answer_to
from jaxclf.remote import answer_log
from jaxclf.remote.answer_log import Answer, Ledger
from jaxclf.remote.endpoint import Endpoint
from jaxclf.remote.label_logprobs import label_probabilities

FILE = "answers.jsonl"
CHARACTERS_PER_TOKEN = 4  # of English, for estimates: these need no tokenizer then

Questions = Mapping[str, Mapping[str, Any]]
"""What is asked, as the server takes it, by its fingerprint."""


@dataclasses.dataclass(frozen=True)
class RequestEstimate:
    """What a run would still send.

    stored: answers that are there already. completion_tokens: the most that may come. cost: in the
    prices' currency; None where there are none.
    """

    requests: int
    stored: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def __str__(self) -> str:
        cost = "unknown without api.input_price and api.output_price"
        if self.cost is not None:
            cost = f"about {self.cost:,.2f}"
        return (
            f"{self.requests:,} requests to send, {self.stored:,} answers stored; "
            f"{self.prompt_tokens:,} tokens in (an estimate: {CHARACTERS_PER_TOKEN} characters "
            f"each) and at most {self.completion_tokens:,} out; cost {cost}"
        )


class Account:
    """What a run asks of the server that `api`, the config's group, names, and what that takes."""

    def __init__(self, api: ConfigDict, workdir: Path):
        self.api, self.path = api, workdir / FILE
        self.endpoint = Endpoint(api)
        self.cut: set[str] = set()  # ids of records whose text was cut
        self._used: dict[str, Answer] = {}
        self._announced: set[str] = set()

    def announce(self, questions: Questions) -> RequestEstimate:
        """Print what asking these takes; raises InputError where `api.max_cost` is less."""
        with Ledger(self.path) as answers:
            return self._announce(answers, questions)

    def answers(
        self, questions: Questions, done: Callable[[str], None] = lambda key: None
    ) -> dict[str, Answer]:
        """The answer to each; `done` is told when it is there.

        Raises InputError where the server refuses, another process asks for the same run,
        `announce` does or the answers turn out to cost more than `api.max_cost`, StorageError where
        no answer comes; all that had come, and what was under way, is stored then.
        """
        with Ledger(self.path) as answers:
            missing = {key: asked for key, asked in questions.items() if key not in answers}
            if missing.keys() - self._announced:
                self._announce(answers, questions)
            for key in questions.keys() - missing.keys():
                done(key)
            if missing:
                self._ask(answers, missing, done)
            found = {key: answers[key] for key in questions}
        self._used |= found
        return found

    def facts(self) -> dict[str, Any]:
        """What the answers took, for the report.

        Tokens and cost are of all answers used, whenever they were asked for; `requests` and
        `retries` are those of this process.
        """
        used = self._used.values()
        tokens = _tokens(used)
        return {
            "model": self.api.model,
            "served": ", ".join(sorted({answer.model for answer in used} - {""})),
            "base_url": self.endpoint.url,
            "requests": self.endpoint.requests,
            "retries": self.endpoint.retries,
            "answers": len(used),
            "unfinished": sum(answer.finish == "length" for answer in used),
            "cut_texts": len(self.cut),
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "cost": self._cost(*tokens),
        }

    def _announce(self, answers: Ledger, questions: Questions) -> RequestEstimate:
        self._announced |= questions.keys()
        missing = [asked for key, asked in questions.items() if key not in answers]
        tokens_in, tokens_out = map(sum, zip((0, 0), *map(_expected, missing), strict=True))
        cost = self._cost(tokens_in, tokens_out)
        estimate = RequestEstimate(
            len(missing), len(questions) - len(missing), tokens_in, tokens_out, cost
        )
        print(f"{self.api.model}: {estimate}", flush=True)
        limit, before = self.api.max_cost, self._paid(answers)
        if limit and missing and before + (cost or 0.0) > limit:
            raise InputError(
                f"these requests are estimated at {cost:,.2f}, after {before:,.2f} in this run; "
                f"api.max_cost is {limit:,.2f}. Raise it, or ask about fewer records (data.limit)"
            )
        return estimate

    def _cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """By the prices per million tokens; None where there are none."""
        prices = self.api.input_price, self.api.output_price
        if not any(prices):
            return None
        return (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6

    def _paid(self, answers: Ledger) -> float:
        """What all answers of the run have cost, whichever process asked for them."""
        return self._cost(*_tokens(answers)) or 0.0

    def _ask(self, answers: Ledger, missing: Questions, done: Callable[[str], None]) -> None:
        """Add the missing answers; on an error those that are under way, and then raise it."""

        spending = _Spending(self.api.max_cost, self._paid(answers))

        def ask(key: str) -> str:
            expected = self._cost(*_expected(missing[key])) or 0.0
            with spending.reserve(expected) as paid:
                answer = self.endpoint.ask(missing[key])
                answers.add(key, answer)
                paid(self._cost(*_tokens([answer])) or expected)
            return key

        with self.endpoint.opened(), ThreadPoolExecutor(self.api.concurrency) as pool:
            futures = [pool.submit(ask, key) for key in missing]
            try:
                for future in as_completed(futures):
                    done(future.result())
            except BaseException:
                self.endpoint.stop()
                spending.stop()
                pool.shutdown(cancel_futures=True)  # what is under way is paid for: it is stored
                raise


class _Spending:
    """Keeps what is paid, and what is under way as far as one can tell, below a limit (0: none).

    Estimates are raised by what the answers so far have cost beyond theirs; before the first of
    them is there, only one question is asked.
    """

    def __init__(self, limit: float, paid: float):
        self.limit, self.paid, self.under_way = limit, paid, 0.0
        self._expected = self._true = 0.0  # of the answers that came
        self._asking = 0
        self._stopped = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, expected: float) -> Iterator[Callable[[float], None]]:
        """Within the block a question is asked; gives the function to tell what it cost.

        Waits for others under way if it has to; raises InputError where no room is left.
        """
        if not self.limit:
            yield lambda cost: None
            return
        with self._changed:
            while not self._has_room(expected):
                if not self._asking or self._stopped:
                    raise InputError(
                        f"the answers so far cost {self.paid:,.2f}, more than they were estimated "
                        f"at, and the next would go beyond api.max_cost, {self.limit:,.2f}. All "
                        "are stored. Raise it to go on, or ask about fewer records (data.limit)"
                    )
                self._changed.wait()
            self._asking += 1
            self.under_way += expected

        def pay(cost: float) -> None:
            with self._changed:
                self.paid += cost
                self._expected += expected
                self._true += cost

        try:
            yield pay
        finally:
            with self._changed:
                self._asking -= 1
                self.under_way -= expected
                self._changed.notify_all()

    def _has_room(self, expected: float) -> bool:
        if self._stopped or (self._asking and not self._true):
            return False
        factor = max(1.0, self._true / self._expected) if self._expected else 1.0
        # Sums of many small numbers: what was estimated to fit exactly, fits.
        return self.paid + factor * (self.under_way + expected) <= self.limit * (1 + 1e-9)

    def stop(self) -> None:
        """From here on nothing more is reserved."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def _expected(asked: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens that a question has, about, and the most that its answer may have."""
    size = sum(len(part["content"]) for part in asked["messages"])
    return math.ceil(size / CHARACTERS_PER_TOKEN), asked["max_tokens"]


def _tokens(answers: Iterable[Answer]) -> tuple[int, int]:
    """Tokens of prompts and of completions, summed."""
    answers = list(answers)
    return (
        sum(answer.prompt_tokens for answer in answers),
        sum(answer.completion_tokens for answer in answers),
    )


class ChatClassifier:
    """Labels texts by asking a server, many at once and each prompt once.

    The recipe's `max_new_tokens` are the server's own tokens: see `answer_length.in_characters`.
    """

    def __init__(self, recipe: Recipe, account: Account):
        self.recipe, self.account = recipe, account

    def questions(
        self, records: Sequence[Record], prompt: PromptSource | None = None
    ) -> list[tuple[str, Mapping[str, Any]]]:
        """For each record what is asked about it, under its fingerprint."""
        prompt = prompt or self.recipe.prompt
        assert prompt is not None, "a run of a chat model has a prompt"
        api = self.account.api
        found = []
        for index, record in enumerate(records):
            text = record.text
            if cut := self.cut(record):
                self.account.cut.add(record.id)
                text = text[:-cut]
            chosen = prompt(index, record) if callable(prompt) else prompt
            asked = {
                "model": api.model,
                "messages": chosen.messages(text),
                "temperature": 0,
                "seed": self.recipe.seed,
                "max_tokens": self.recipe.max_new_tokens,
            }
            if api.top_logprobs:
                asked |= {"logprobs": True, "top_logprobs": api.top_logprobs}
            # A model of this name elsewhere may be another one.
            key = answer_log.fingerprint(base_url=self.account.endpoint.url, **asked)
            found.append((key, asked))
        return found

    def cut(self, record: Record) -> int:
        """How many characters of the text are not sent."""
        limit = self.account.api.max_characters
        return max(0, len(record.text) - limit) if limit else 0

    def predict(
        self,
        records: Sequence[Record],
        batch_size: int,
        *,
        prompt: PromptSource | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> list[Prediction]:
        """One prediction a record, in the records' order; raises what `Account.answers` does.

        `batch_size` is for models of our own: how many are asked at once, `api.concurrency` says.
        """
        questions = self.questions(records, prompt)
        counts = Counter(key for key, _ in questions)
        answers = self.account.answers(dict(questions), lambda key: progress(counts[key]))
        return [
            dataclasses.replace(
                self.recipe.read(record, answers[key].text),
                cut=self.cut(record),
                scores=self.scores(answers[key]),
            )
            for record, (key, _) in zip(records, questions, strict=True)
        ]

    def scores(self, answer: Answer) -> dict[str, dict[str, float]] | None:
        """Task → label → probability by the log-probabilities of an answer to one class task.

        None where it has none, or says something else first: thoughts, or several tasks' labels.
        """
        task, *others = self.recipe.tasks
        prompt = self.recipe.prompt
        if not answer.top or prompt is None or others or task.kind != "class":
            return None
        texts = {
            label: answer_to(Record("", "", {task.name: label}), [task], lettered=prompt.lettered)
            for label in task.labels
        }
        found = label_probabilities(answer.top, texts)
        return None if found is None else {task.name: found}

    def facts(self) -> dict[str, Any]:
        """None of its own: what the answers took is in the account's."""
        return {}
