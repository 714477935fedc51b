"""The built-in data set: utterances to a voice assistant from a small grammar, in the record
format of MASSIVE.

An utterance is a template with a value in each of its slots, some after an opening word. Dev and
test hold combinations of template and values that train does not; every template, every word and
every value stands in train. Neither words nor values give the answer away: "cancel", "party",
"chicago" or "sunday morning" occur under several intents, "chicago" as a place and as a band,
"sunday morning" as a date and as a song.

No random numbers: which combinations are taken, and for which split, is the order of their
SHA-256, so the data are the same on every machine and Python.
"""

import itertools
import re
from collections.abc import Iterator
from hashlib import sha256

PER_TEMPLATE = 60  # utterances, or as many as there are combinations
DEV, TEST = 0.10, 0.15  # shares of each template's utterances

_VALUES = {
    "artist_name": (
        "adele, the beatles, chicago, queen, norah jones, toto, bob marley, boston, "
        "frank sinatra, maria carey, dolly parton, berlin"
    ),
    "business_name": (
        "golden dragon, the corner deli, luigis, blue moon cafe, taco house, green garden, "
        "the pizza place, noodle bar, red lantern, grandmas kitchen"
    ),
    "color_type": "red, blue, green, purple, warm white, yellow, orange, pink, golden, pale blue",
    "date": (
        "today, tomorrow, friday, next monday, this weekend, sunday morning, next week, "
        "saturday, tuesday, thursday night, the first of june, christmas day, wednesday"
    ),
    "event_name": (
        "meeting, dentist appointment, birthday party, team lunch, yoga class, piano lesson, "
        "book club, job interview, pizza night, dinner, conference call, rain dance workshop"
    ),
    "food_type": (
        "pizza, chicken curry, sushi, tomato soup, pancakes, fried rice, tacos, noodles, "
        "apple pie, lasagna, green salad, birthday cake"
    ),
    "house_place": (
        "kitchen, bedroom, living room, garage, bathroom, hallway, dining room, porch, basement, "
        "office"
    ),
    "person": (
        "anna, tom, maria, my boss, uncle bob, doctor lee, grandma, david, adele, my sister, "
        "frank, june"
    ),
    "place_name": (
        "paris, chicago, boston, london, new york, berlin, los angeles, tokyo, rome, "
        "the north pole, georgia, denver"
    ),
    "song_name": (
        "yesterday, purple rain, hello, sunday morning, africa, georgia, yellow submarine, "
        "here comes the sun, monday monday, new york, thunder, three little birds"
    ),
    "time": (
        "five am, seven thirty, noon, midnight, nine o'clock, half past six, eight pm, "
        "ten in the morning, quarter to four, three pm, eleven, one fifteen"
    ),
    "weather_descriptor": "rainy, snowy, sunny, windy, foggy, stormy, icy, cloudy, cold, warm",
}
VALUES = {slot: tuple(values.split(", ")) for slot, values in _VALUES.items()}

TEMPLATES: dict[str, tuple[str, ...]] = {
    "alarm_set": (
        "wake me up at {time}",
        "wake me up at {time} {date}",
        "set an alarm for {time} {date}",
        "i need an alarm for {time}",
        "set my alarm {date} at {time}",
        "make sure i am up by {time} {date}",
        "alarm at {time}",
    ),
    "alarm_remove": (
        "cancel my alarm for {time}",
        "cancel the {time} alarm {date}",
        "delete the alarm at {time} {date}",
        "turn off my {date} alarm",
        "i do not need the alarm at {time}",
        "remove all alarms for {date}",
        "no alarm {date} at {time}",
    ),
    "calendar_set": (
        "add a {event_name} to my calendar for {date}",
        "remind me about the {event_name} at {time}",
        "set up a {event_name} with {person} {date}",
        "i need a reminder for {event_name} {date} at {time}",
        "put {event_name} with {person} on my calendar",
        "remind me to call {person} at {time}",
        "schedule a {event_name} for {time} {date}",
    ),
    "calendar_query": (
        "when is my {event_name} with {person}",
        "what is on my calendar {date}",
        "do i have a {event_name} {date}",
        "is there a {event_name} at {time} {date}",
        "am i free {date} at {time}",
        "what time is the {event_name} {date}",
        "who is coming to the {event_name} {date}",
    ),
    "calendar_remove": (
        "cancel my {event_name} {date}",
        "cancel the {time} {event_name}",
        "delete the {event_name} with {person} from my calendar",
        "remove the reminder to call {person}",
        "i am not going to the {event_name} {date}",
        "clear my calendar for {date}",
        "take {event_name} {date} off my calendar",
    ),
    "cooking_recipe": (
        "how do i make {food_type}",
        "i need a recipe for {food_type}",
        "find me an easy {food_type} recipe for {date}",
        "how long do i cook {food_type}",
        "what goes into {food_type}",
        "show me how to cook {food_type} for {person}",
        "what can i make for the {event_name} with {food_type}",
    ),
    "email_sendemail": (
        "email {person} about the {event_name}",
        "send {person} an email about {event_name} {date}",
        "write to {person} that i am late for {event_name}",
        "reply to {person} that {date} is fine",
        "ask {person} by email if {time} works",
        "send an email to {person} and {person}",
        "tell {person} by email to order {food_type}",
    ),
    "iot_hue_lightchange": (
        "make the {house_place} lights {color_type}",
        "change the lights in the {house_place} to {color_type}",
        "turn the {house_place} light {color_type}",
        "i want {color_type} light in the {house_place}",
        "set the {house_place} lamp to {color_type} at {time}",
        "{color_type} lights in the {house_place}",
        "set the lights to {color_type} for the {event_name}",
    ),
    "iot_hue_lightoff": (
        "turn off the {house_place} lights",
        "turn the lights off in the {house_place}",
        "no light in the {house_place}",
        "lights off in the {house_place} at {time}",
        "it is too bright in the {house_place}",
        "turn off the {color_type} light in the {house_place}",
        "make the {house_place} dark at {time}",
    ),
    "play_music": (
        "play {song_name} by {artist_name}",
        "play some {artist_name}",
        "put on {song_name}",
        "i want to hear {song_name} by {artist_name}",
        "play the song {song_name} in the {house_place}",
        "play something by {artist_name} in the {house_place}",
        "set {song_name} as music for the {event_name}",
    ),
    "takeaway_order": (
        "order {food_type} from {business_name}",
        "get me {food_type} from {business_name} for {time}",
        "i want {food_type} from {business_name}",
        "call {business_name} and order {food_type}",
        "order dinner from {business_name} for {person}",
        "have {food_type} delivered at {time}",
        "can i get {food_type} delivered from {business_name} {date}",
    ),
    "weather_query": (
        "what is the weather in {place_name} {date}",
        "will it be {weather_descriptor} in {place_name}",
        "is it {weather_descriptor} in {place_name} {date}",
        "how is the weather {date}",
        "do they have {weather_descriptor} days in {place_name}",
        "do i need warm clothes in {place_name} {date}",
        "tell me if it gets {weather_descriptor} at {time}",
    ),
}

OPENINGS = ("", "", "", "hey ", "okay ")

_SLOT = re.compile(r"\{(\w+)\}")


def rows() -> list[dict[str, str]]:
    """The utterances as MASSIVE's fields, in an order that mixes intents and splits."""
    found: dict[str, tuple[str, str, str]] = {}
    for intent, templates in TEMPLATES.items():
        for template in templates:
            for split, text, annotated in _utterances(template):
                found.setdefault(text, (split, intent, annotated))
    return [
        {
            "id": str(number),
            "locale": "en-US",
            "partition": found[text][0],
            "scenario": found[text][1].partition("_")[0],
            "intent": found[text][1],
            "utt": text,
            "annot_utt": found[text][2],
            "worker_id": "0",
        }
        for number, text in enumerate(sorted(found, key=_digest))
    ]


def combinations(template: str) -> list[tuple[str, tuple[str, ...]]]:
    """The (split, values) pairs taken of a template: no value twice in one utterance."""
    slots = _SLOT.findall(template)
    possible = [
        values
        for values in itertools.product(*(VALUES[slot] for slot in slots))
        if len(set(values)) == len(values)
    ]
    possible.sort(key=lambda values: _digest("|".join((template, *values))))
    taken = possible[:PER_TEMPLATE]
    dev, test = round(DEV * len(taken)), round(TEST * len(taken))
    train = len(taken) - dev - test
    splits = ["train"] * train + ["dev"] * dev + ["test"] * test
    return list(zip(splits, taken, strict=True))


def _utterances(template: str) -> Iterator[tuple[str, str, str]]:
    """(split, text, annotated text) of each combination of a template."""
    for split, values in combinations(template):
        digest = _digest("|".join(("opening", template, *values)))
        opening = OPENINGS[int(digest[:8], 16) % len(OPENINGS)]
        text, annotated = iter(values), iter(values)
        yield (
            split,
            opening + _SLOT.sub(lambda _, text=text: next(text), template),
            opening + _SLOT.sub(lambda slot, v=annotated: f"[{slot[1]} : {next(v)}]", template),
        )


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
