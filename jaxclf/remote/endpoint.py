"""One question to a server that speaks OpenAI's chat completions, asked until it is answered.

Asked again, after growing pauses, is what times out, breaks off, answers with a body that is no
completion, or says "later" (408, 409, 429, 5xx). Whatever else is refused would be refused again.
"""

import contextlib
import email.utils
import json
import os
import random
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxclf.core.errors import InputError, StorageError
from jaxclf.remote.answer_log import Answer

OPENAI_URL = "https://api.openai.com/v1"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts, doubled each time
LONGEST_WAIT = 600.0  # seconds: a server that asks for more than that ends the run

_REMEDIES = {
    400: "Check api.model and that the prompts fit it: api.max_characters cuts longer texts",
    401: "Check the key in the environment variable {key_env}",
    403: "The key in {key_env} may not use this model; choose another api.model or key",
    404: "Check api.model, and api.base_url, which ends in /v1 for most servers",
    413: "Set api.max_characters to cut longer texts",
    422: "Check api.model, and that the server takes OpenAI's chat completions",
    429: "The account has no credit left; the same command goes on from here when it has",
}


class Endpoint:
    """Where and how `config.api` says to ask; threads may ask at once.

    requests: how many were sent, retries: how many of them not for the first time.
    """

    def __init__(self, api: ConfigDict):
        self.api, self.url = api, api.base_url or OPENAI_URL
        self.requests = self.retries = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._client: Any = None
        self._key = ""

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Within the block questions can be asked; raises InputError where they could not."""
        try:
            from openai import OpenAI
        except ImportError as error:
            raise InputError(
                f"api.model is {self.api.model!r}, which needs the openai library: "
                "pip install 'jaxclf[api]'"
            ) from error
        self._key = os.environ.get(self.api.key_env, "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise InputError(
                f"the environment variable {self.api.key_env} holds characters that no key has; "
                "copy the key again"
            )
        if not self._key and not self.api.base_url:
            raise InputError(
                f"the environment variable {self.api.key_env} is not set; put the key of "
                f"{self.url} there, or give api.base_url for a server that needs none"
            )
        self._stopped.clear()
        with OpenAI(
            api_key=self._key or "none",
            base_url=self.url,
            timeout=self.api.timeout,
            max_retries=0,  # its own would leave out bodies that are no JSON
        ) as self._client:
            yield

    def stop(self) -> None:
        """From here on no thread tries again."""
        self._stopped.set()

    def ask(self, asked: Mapping[str, Any]) -> Answer:
        """The answer to one question. Raises InputError where the server refuses it, StorageError
        where `api.retries` further attempts brought none or `stop` ended them."""
        attempt = 0
        while True:
            with self._lock:
                self.requests += 1
                self.retries += attempt > 0
            try:
                return self._attempt(asked)
            except _LaterError as later:
                attempt += 1
                pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
                pause = later.wait + pause * random.uniform(0.5, 1)  # not all at once
                if (
                    attempt <= self.api.retries
                    and later.wait <= LONGEST_WAIT
                    and not self._stopped.wait(pause)
                ):
                    continue
                wait = f", and to wait {later.wait:,.0f} s" if later.wait else ""
                raise StorageError(
                    f"{self.url} gave no answer after {attempt} attempts, the last time: "
                    f"{self._shown(str(later))}{wait}. What had come is stored; the same command "
                    "goes on from there"
                ) from later

    def _attempt(self, asked: Mapping[str, Any]) -> Answer:
        import openai

        try:
            return _read(self._client.chat.completions.create(**asked))
        except openai.APIStatusError as error:
            problem = f"{error.status_code} {error.message}"
            if _may_pass(error.status_code, error.code):
                raise _LaterError(problem, _wanted_wait(error.response.headers)) from error
            remedy = _REMEDIES.get(error.status_code, "Check the settings under api")
            remedy = remedy.format(key_env=self.api.key_env)
            raise InputError(f"{self.url} refused: {self._shown(problem)}. {remedy}") from error
        except openai.APITimeoutError as error:
            raise _LaterError(f"nothing within {self.api.timeout:g} s (api.timeout)") from error
        except openai.APIConnectionError as error:
            raise _LaterError(f"no connection ({error.__cause__ or error})") from error
        except (openai.APIResponseValidationError, json.JSONDecodeError, UnicodeError) as error:
            raise _LaterError(f"no completion ({error})") from error

    def _shown(self, problem: str) -> str:
        """A server's message in one short line, without the key, which some repeat."""
        problem = problem.replace(self._key, "…") if self._key else problem
        return textwrap.shorten(problem, 300, placeholder=" …")


class _LaterError(Exception):
    """No answer now; `wait`: seconds that the server asks to wait."""

    def __init__(self, problem: str, wait: float = 0.0):
        super().__init__(problem)
        self.wait = wait


def _read(completion: Any) -> Answer:
    """The first choice; a refusal without text is an empty answer."""
    try:
        choice, usage = completion.choices[0], completion.usage
        return Answer(
            text="".join(choice.message.content or ""),
            finish=str(choice.finish_reason or ""),
            prompt_tokens=int(usage.prompt_tokens or 0) if usage else 0,
            completion_tokens=int(usage.completion_tokens or 0) if usage else 0,
            model=str(completion.model or ""),
        )
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise _LaterError(f"no completion ({str(completion)[:80]!r})") from error


def _may_pass(status: int, code: str | None) -> bool:
    """Whether a later attempt may fare better."""
    return (status in (408, 409, 429) or status >= 500) and code != "insufficient_quota"


def _wanted_wait(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, by Retry-After as a number or a date; 0: none."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        date = email.utils.parsedate_tz(value)
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0
