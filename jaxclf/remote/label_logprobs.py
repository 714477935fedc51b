"""Probabilities of labels from the likeliest tokens at each place of a server's answer.

    answer alarm_set, tokens alarm (0.8; play 0.15), _set (0.9; _remove 0.1)
    → alarm_set 0.72, alarm_remove 0.08, play_music 0.15, before they are divided by their sum

A server names some twenty tokens at each place. What else there may be is left out, so that these
are bounds from below of the model's own probabilities, divided by their sum.
"""

import math
from collections.abc import Mapping, Sequence

Place = tuple[tuple[str, float], ...]
"""One token of an answer and the log-probabilities there: the token's own first, others after."""


def label_probabilities(
    places: Sequence[Place], answers: Mapping[str, str]
) -> dict[str, float] | None:
    """Label → probability, which sum to 1; None where the answer begins no label.

    `answers`: label → the text that answers it. An alternative token has the probability of the
    answer up to it times its own; labels that begin with the text so far share it evenly.
    """
    found = dict.fromkeys(answers, 0.0)
    so_far, p = "", 1.0
    alive = [*answers]

    def beginning(text: str) -> list[str]:
        begun = text.lstrip()
        return [label for label in alive if answers[label].startswith(begun)] if begun else []

    for (token, log_p), *others in places:
        if len(alive) == 1:
            break
        for other, log_q in others:
            if other == token:
                continue
            sharing = beginning(so_far + other)
            for label in sharing:
                found[label] += p * math.exp(log_q) / len(sharing)
        so_far += token
        p *= math.exp(log_p)
        if so_far.strip():
            alive = beginning(so_far)
    whole = [label for label in alive if len(alive) == 1 or answers[label] == so_far.strip()]
    if not whole:
        return None
    found[whole[0]] += p
    total = sum(found.values())
    return {label: value / total for label, value in found.items()} if total > 0 else None
