"""Base tasks: what a prompt asks before any instruction is added.

Knows: subjects, templates, splits. Does not know: instructions.
A subject belongs to one split, so no base task, and not even a subject, is in two splits. Each subject brings a few
words that an answer about it may hold (for keyword instructions). The lists are literal: a change of them changes the
held-out set and is caught by its hash.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

Split = Literal["train", "validation", "held_out", "unseen_kinds"]
SPLITS: tuple[Split, ...] = ("train", "validation", "held_out", "unseen_kinds")


class Task(NamedTuple):
    """`question` is True where yes, no or maybe is an answer."""

    text: str
    words: tuple[str, ...]
    question: bool


_ACTIVITIES: dict[Split, str] = {
    "train": """
        growing tomatoes: garden, water, sun, soil
        riding a bicycle to work: helmet, traffic, fresh, road
        baking bread: oven, flour, dough, warm
        learning to swim: pool, water, breath, practice
        playing chess: board, king, plan, opponent
        watching birds: binoculars, quiet, tree, feather
        painting with watercolors: brush, paper, color, water
        hiking in the mountains: trail, boots, view, map
        keeping a diary: pen, memory, thought, night
        cooking soup: pot, salt, vegetable, spoon
        playing the guitar: string, song, finger, music
        collecting stamps: album, country, letter, paper
        running in the morning: shoes, energy, park, healthy
        learning Spanish: grammar, travel, word, practice
        taking photographs: camera, light, moment, picture
        raising chickens: egg, yard, feed, fence
        knitting scarves: wool, needle, winter, pattern
        camping in a forest: tent, fire, star, night
        dancing in a group: rhythm, music, step, partner
        writing short stories: character, idea, reader, ending
        fishing at a lake: boat, patience, hook, water
        volunteering at a library: book, shelf, child, quiet
        fixing old furniture: wood, tool, paint, chair
        saving money: bank, budget, month, goal""",
    "validation": """
        learning to juggle: ball, hand, practice, fun
        brewing tea: leaf, cup, water, warm
        walking a dog: leash, park, morning, friend
        singing in a choir: voice, song, concert, together
        planting trees: root, shade, soil, future
        building model ships: glue, sail, detail, patience""",
    "held_out": """
        practicing yoga: breath, mat, balance, calm
        making pottery: clay, wheel, hand, bowl
        learning to drive: car, road, mirror, teacher
        baking cookies: sugar, butter, oven, sweet
        gazing at stars: telescope, night, sky, planet
        rowing on a river: boat, water, arm, team
        keeping bees: honey, hive, flower, summer
        playing the piano: key, melody, practice, hand
        reading mystery novels: clue, detective, secret, page
        climbing indoors: rope, wall, strength, partner
        sewing clothes: thread, needle, fabric, button
        cleaning a beach: plastic, sand, volunteer, ocean
        growing herbs on a balcony: pot, basil, sun, smell
        solving crossword puzzles: clue, word, pencil, mind""",
    "unseen_kinds": """
        skating on ice: balance, winter, cold, fall
        studying history: past, war, king, lesson
        cooking pasta: sauce, pot, cheese, dinner
        drawing cartoons: pencil, joke, face, paper
        traveling by train: ticket, window, station, seat
        playing tennis: racket, ball, net, court
        meditating every day: calm, breath, mind, silence""",
}

_THINGS: dict[Split, str] = {
    "train": """
        volcanoes: lava, mountain, island, heat
        honeybees: flower, hive, queen, summer
        lighthouses: ship, coast, light, storm
        bicycles: wheel, pedal, road, chain
        dictionaries: word, meaning, page, language
        elephants: trunk, herd, Africa, memory
        clocks: time, hand, hour, tower
        bridges: river, stone, road, engineer
        glaciers: ice, valley, slow, climate
        pencils: paper, wood, school, eraser
        robots: machine, factory, human, sensor
        rainbows: rain, sun, color, sky
        spiders: web, leg, insect, silk
        markets: price, fruit, seller, crowd
        computers: screen, keyboard, program, data
        whales: ocean, song, deep, breath
        castles: wall, king, tower, stone
        umbrellas: rain, street, wind, dry
        potatoes: farm, soup, soil, dinner
        museums: art, visitor, history, ticket
        batteries: energy, phone, charge, power
        owls: night, forest, eye, feather
        maps: road, city, north, travel
        earthquakes: ground, building, plate, shake""",
    "validation": """
        deserts: sand, camel, heat, water
        violins: string, bow, music, wood
        newspapers: reader, story, print, morning
        penguins: ice, fish, egg, south
        elevators: floor, button, building, door
        wind turbines: energy, blade, hill, power""",
    "held_out": """
        dolphins: ocean, jump, group, smart
        telescopes: star, lens, planet, night
        forests: tree, animal, path, green
        trains: station, track, travel, ticket
        mirrors: glass, light, face, wall
        butterflies: wing, flower, color, summer
        libraries: book, shelf, quiet, reader
        rivers: water, fish, bridge, sea
        bakeries: bread, oven, morning, smell
        satellites: orbit, space, signal, earth
        horses: saddle, farm, fast, field
        candles: wax, flame, light, dark
        schools: teacher, class, friend, lesson
        snowflakes: ice, winter, shape, cold""",
    "unseen_kinds": """
        islands: sea, beach, boat, sand
        wolves: pack, forest, howl, hunt
        airplanes: wing, pilot, sky, engine
        windmills: wind, blade, grain, hill
        comets: tail, ice, orbit, sky
        apples: tree, juice, red, autumn
        drums: rhythm, stick, band, loud""",
}

_OCCASIONS: dict[Split, str] = {
    "train": """
        a birthday party: cake, guest, gift, music
        a job interview: question, suit, company, skill
        a class trip to the zoo: bus, animal, teacher, lunch
        a family dinner: table, recipe, story, dessert
        a music festival: band, stage, ticket, crowd
        the first day at a new school: teacher, friend, desk, nervous
        a yard sale: price, table, book, neighbor
        a business meeting: agenda, coffee, report, plan
        a wedding in the countryside: dress, ring, barn, dance
        a charity run: mile, shoes, money, water
        a visit to the dentist: tooth, chair, pain, appointment
        a moving day: box, truck, stairs, friend
        a picnic in the park: blanket, sandwich, sun, basket
        a cooking contest: judge, chef, dish, prize
        a town meeting: mayor, road, vote, budget
        a graduation ceremony: diploma, speech, family, proud
        a camping weekend: tent, fire, rain, food
        a science fair: project, prize, experiment, student""",
    "validation": """
        a book club evening: chapter, author, coffee, opinion
        a football match: goal, team, fan, coach
        a retirement party: speech, career, cake, colleague
        a garden tour: flower, path, guide, bench""",
    "held_out": """
        a school play: stage, costume, actor, applause
        a street market: stall, fruit, price, music
        a housewarming party: key, neighbor, snack, room
        a guided city walk: guide, church, street, story
        a staff training day: lunch, team, exercise, trainer
        a family reunion: cousin, photo, grandmother, food
        a poetry reading: poem, voice, candle, audience
        a winter fair: snow, lights, chocolate, gift
        a blood donation day: nurse, arm, help, hospital
        a chess tournament: board, clock, player, prize""",
    "unseen_kinds": """
        a farewell dinner: goodbye, toast, gift, friend
        a swimming lesson: pool, towel, coach, water
        a car wash for charity: bucket, soap, money, team
        a parents' evening: teacher, grade, child, chair
        a movie night: popcorn, screen, sofa, film""",
}

_ASK_ACTIVITY = (
    "Write a short paragraph about {s}.",
    "Explain to a beginner what {s} involves.",
    "Give some advice to someone who wants to start {s}.",
    "Why do people enjoy {s}?",
    "Describe a perfect day of {s}.",
    "Write a short social media post about {s}.",
    "What are common mistakes in {s}?",
    "Write a short advertisement for a class on {s}.",
    "Write a short poem about {s}.",
    "Tell a very short story in which {s} plays a part.",
    "What are the benefits of {s}?",
    "Write a message that invites a friend to try {s}.",
    "Describe {s} to a child.",
    "What does a person need before they begin {s}?",
    "How would you describe {s} in a letter to your grandmother?",
)
_ASK_THING = (
    "Write a short paragraph about {s}.",
    "What makes {s} interesting?",
    "Tell a child something surprising about {s}.",
    "Write a short poem about {s}.",
    "Describe {s} in simple words.",
    "Why do {s} matter to people?",
    "What would the world be like without {s}?",
    "Write a riddle about {s}.",
    "Write a short story about a girl who loves {s}.",
    "Write a short introduction to a book about {s}.",
    "What are some facts about {s}?",
    "Write a label for a museum room about {s}.",
    "Explain to a visitor from another planet what {s} are.",
    "Which questions do children ask about {s}?",
)
_ASK_OCCASION = (
    "Write an email to a colleague about {s}.",
    "Write a text message to a friend about {s}.",
    "Write an invitation to {s}.",
    "Write an announcement of {s}.",
    "Write a diary entry about {s}.",
    "Write a short dialogue between two people at {s}.",
    "What should one think of when planning {s}?",
    "Write a short report on {s} for the local newspaper.",
    "Write a polite note to the neighbors about {s}.",
    "Tell a funny story about {s}.",
    "Describe the mood at {s}.",
    "What can go wrong at {s}?",
)
_QUESTION_ACTIVITY = (
    "Is {s} a good hobby for a beginner?",
    "Can {s} help a person to relax?",
    "Is {s} an expensive hobby?",
    "Would you recommend {s} to an older person?",
)
_QUESTION_THING = (
    "Should children learn about {s} at school?",
    "Are {s} more interesting than most people think?",
    "Will there still be {s} in a thousand years?",
    "Are {s} important in daily life?",
)
_QUESTION_OCCASION = (
    "Should one arrive early for {s}?",
    "Is it a good idea to bring a small child to {s}?",
    "Is a phone call the best way to announce {s}?",
    "Is it rude to leave {s} early?",
)
_ASK_PAIR = (
    "Compare {s} and {t}.",
    "What do {s} and {t} have in common?",
    "Tell a short story about {s} and {t}.",
)


@lru_cache(maxsize=len(SPLITS))
def tasks(split: Split) -> tuple[Task, ...]:
    """All base tasks of a split, in a fixed order."""
    found = []
    families = (
        (_ACTIVITIES, _ASK_ACTIVITY, _QUESTION_ACTIVITY),
        (_THINGS, _ASK_THING, _QUESTION_THING),
        (_OCCASIONS, _ASK_OCCASION, _QUESTION_OCCASION),
    )
    for table, asks, questions in families:
        for subject, words in _subjects(table[split]):
            found += [Task(text.format(s=subject), words, False) for text in asks]
            found += [Task(text.format(s=subject), words, True) for text in questions]
    things = _subjects(_THINGS[split])
    for i, (first, some) in enumerate(things):
        for second, more in things[i + 1 :]:
            text = _ASK_PAIR[len(found) % len(_ASK_PAIR)]
            both = tuple(dict.fromkeys(some[:2] + more[:2]))
            found.append(Task(text.format(s=first, t=second), both, False))
    return tuple(found)


def _subjects(lines: str) -> list[tuple[str, tuple[str, ...]]]:
    pairs = [line.strip().split(": ") for line in lines.strip().split("\n")]
    return [(subject, tuple(words.split(", "))) for subject, words in pairs]
