"""One question to a server that speaks OpenAI's chat completions, asked until it is answered.

Asked again, after growing pauses, is what has not come whole within `api.timeout`, breaks off, is
no completion, or says "later" (408, 409, 429, 5xx). Whatever else is refused would be refused
again. Nothing is sent on to an address that a server redirects to: it is not the user's choice.
"""

import asyncio
import contextlib
import email.utils
import json
import os
import random
import textwrap
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxclf.core.errors import InputError, StorageError
from jaxclf.remote.answer_log import MOST_TOKENS, Answer
from jaxclf.remote.label_logprobs import Place

OPENAI_URL = "https://api.openai.com/v1"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts, doubled each time
LONGEST_WAIT = 600.0  # seconds: a server that asks for more than that ends the run
LARGEST_BODY = 16 * 2**20  # bytes; an answer of labels has a few thousand
_CLEAN_UP = 5.0  # seconds that a connection may take to be given up

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

    def key(self) -> str:
        """The key in the environment; raises InputError where there has to be one and is none."""
        found = os.environ.get(self.api.key_env, "").strip()
        if not found.isascii() or not found.isprintable():
            raise InputError(
                f"the environment variable {self.api.key_env} holds characters that no key has; "
                "copy the key again"
            )
        if not found and not self.api.base_url:
            raise InputError(
                f"the environment variable {self.api.key_env} is not set; put the key of "
                f"{self.url} there, or give api.base_url for a server that needs none"
            )
        return found

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Within the block questions can be asked; raises InputError where they could not."""
        try:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient
        except ImportError as error:
            raise InputError(
                f"api.model is {self.api.model!r}, which needs the openai library: "
                "pip install 'jaxclf[api]'"
            ) from error
        self._key = self.key()
        self._stopped.clear()
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="api", daemon=True)
        thread.start()
        self._client = AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.url,
            timeout=self.api.timeout,
            max_retries=0,  # its own would leave out bodies that are no JSON
            http_client=DefaultAsyncHttpxClient(follow_redirects=False),
        )
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                self._wait(self._client.close(), _CLEAN_UP)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(_CLEAN_UP)

    def _wait(self, coroutine: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """What a coroutine returns; raises TimeoutError where that takes longer."""
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, seconds), self._loop)
        try:
            return future.result(seconds + _CLEAN_UP)
        finally:
            future.cancel()

    def stop(self) -> None:
        """From here on no thread tries again."""
        self._stopped.set()

    def ask(self, asked: Mapping[str, Any]) -> Answer:
        """The answer to one question. Raises InputError where the server refuses it, StorageError
        where `api.retries` further attempts brought none or `stop` ended them."""
        attempt = 0
        while True:
            if self._stopped.is_set():
                raise StorageError("stopped before it was asked")
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
            return _read(self._wait(self._body(asked), self.api.timeout))
        except openai.APIStatusError as error:
            problem = f"{error.status_code} {error.message}"
            if _may_pass(error.status_code, error.code):
                raise _LaterError(problem, _wanted_wait(error.response.headers)) from error
            if target := error.response.headers.get("location"):
                problem = f"{error.status_code}, a redirect to {target}"
            remedy = "Check api.base_url" if target else _REMEDIES.get(error.status_code, "")
            remedy = (remedy or "Check the settings under api").format(key_env=self.api.key_env)
            raise InputError(f"{self.url} refused: {self._shown(problem)}. {remedy}") from error
        except (TimeoutError, openai.APITimeoutError) as error:
            raise _LaterError(
                f"no whole answer within {self.api.timeout:g} s (api.timeout)"
            ) from error
        except openai.APIConnectionError as error:
            raise _LaterError(f"no connection ({error.__cause__ or error})") from error

    async def _body(self, asked: Mapping[str, Any]) -> bytes:
        """The body of a completion, as it came."""
        body = bytearray()
        completions = self._client.chat.completions.with_streaming_response
        async with completions.create(**asked) as response:
            try:
                async for block in response.iter_bytes():
                    body += block
                    if len(body) > LARGEST_BODY:
                        break
            except Exception as error:  # whatever the connection's library raises
                raise _LaterError(f"the answer broke off ({error or type(error)})") from error
        if len(body) > LARGEST_BODY:
            raise StorageError(
                f"{self.url} sent an answer of more than {LARGEST_BODY:,} bytes, which no label "
                "needs. Check api.base_url and api.model"
            )
        return bytes(body)

    def _shown(self, problem: str) -> str:
        """A server's message in one short line, without the key, which some repeat in part."""
        for length in range(len(self._key), 7, -1):
            problem = problem.replace(self._key[:length], "…").replace(self._key[-length:], "…")
        return textwrap.shorten(problem, 300, placeholder=" …")


class _LaterError(Exception):
    """No answer now; `wait`: seconds that the server asks to wait."""

    def __init__(self, problem: str, wait: float = 0.0):
        super().__init__(problem)
        self.wait = wait


def _read(body: bytes) -> Answer:
    """The first choice; a refusal without text is an empty answer."""
    try:
        completion = json.loads(body)
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        answer = Answer(
            text=choice["message"].get("content") or "",
            finish=str(choice.get("finish_reason") or ""),
            prompt_tokens=_tokens(usage.get("prompt_tokens")),
            completion_tokens=_tokens(usage.get("completion_tokens")),
            model=str(completion.get("model") or ""),
            top=_top(choice.get("logprobs")),
        )
        answer.check()
        return answer
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        shown = body[:80].decode("utf-8", "backslashreplace")
        raise _LaterError(f"no completion ({shown!r})") from error


def _top(found: Any) -> tuple[Place, ...]:
    """The likeliest tokens at each place; none where the server gives none that can be read."""
    try:
        return tuple(
            tuple(
                (str(each["token"]), min(0.0, float(each["logprob"])))
                for each in (place, *(place.get("top_logprobs") or ()))
            )
            for place in (found or {}).get("content") or ()
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()


def _tokens(count: Any) -> int:
    """0 for what cannot be one: an answer that was paid for is not thrown away over it."""
    return count if type(count) is int and 0 <= count <= MOST_TOKENS else 0


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
