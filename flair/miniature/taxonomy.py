"""The labels of the miniature: FLAIR's 17 coarse labels and a few hundred everyday fine-grained ones below them."""

from __future__ import annotations

from typing import Final, NamedTuple

from flair.dataset.catalog import COARSE_LABELS

# Common nouns, the plainest first. As in FLAIR every coarse name is a fine label too; it is put in front by code.
_WORDS: Final = {
    "animal": "dog cat bird horse duck cow butterfly sheep fish squirrel bee goose goat parrot rabbit spider owl seal "
    "deer turtle pony gull kitten puppy bear elephant lizard frog pigeon swan lion monkey eagle snail ladybird",
    "art": "painting drawing sculpture mural graffiti mosaic sketch collage portrait statue pottery",
    "celebration": "balloons confetti wedding parade fireworks wreath christmas_tree",
    "equipment": "car bicycle bag bottle chair table camera phone computer clock cup lamp_post boat keyboard truck "
    "bus helmet umbrella knife fork spoon hammer bowl basket suitcase wheel train motorcycle airplane scissors pen "
    "book box rope ladder tent shovel toolbox radio television printer glasses watch backpack shoe hat glove key "
    "anchor plate pan teapot kettle oven fridge sofa bed shelf mirror fan drone tripod",
    "fire": "flame embers bonfire torch smoke",
    "food": "bread cake fruit vegetable cheese salad soup pizza rice noodles cookie apple banana egg meat sandwich "
    "chocolate berry tomato potato pasta fish_dish curry sushi burger pie pancake ice_cream cupcake doughnut nut "
    "sausage pepper lemon orange grape carrot mushroom_dish dumpling muffin waffle honey jam stew taco",
    "games": "board_game dice playing_cards puzzle chess",
    "interior_room": "kitchen bedroom living_room bathroom office classroom hall cellar attic workshop",
    "light": "lamp candlelight lantern spotlight neon sunbeam light_bulb string_lights",
    "liquid": "water sea lake river coffee tea juice wine beer puddle milk waterfall",
    "material": "wood metal stone glass fabric leather brick paper plastic wool clay rust cardboard lace gravel "
    "marble rubber wire foam",
    "music": "guitar drum violin trumpet microphone accordion",
    "outdoor": "sky cloud land mountain beach field hill rocks snow sand forest path sunset cliff desert fog valley "
    "night_sky island meadow",
    "plant": "flower tree grass leaf shrub moss fern rose tulip cactus ivy palm pine sunflower daisy orchid vine "
    "bamboo lily seed mushroom bark lavender",
    "recreation": "football swing playground skateboard surfing climbing fishing kite",
    "religion": "church_altar icon rosary prayer_flag",
    "structure": "house building wall window door fence bridge tower road street roof stairs church castle barn "
    "pier tunnel arch column balcony gate railing ruin skyscraper sidewalk cottage dam lighthouse shed factory "
    "windmill courtyard stadium monument canal bench pavement hedge_maze",
}
# These belong to a second coarse label too, so that the file has more lines than there are labels.
_SECOND_PARENT: Final = {
    "waterfall": "outdoor",
    "sea": "outdoor",
    "forest": "plant",
    "christmas_tree": "plant",
    "hedge_maze": "plant",
    "bonfire": "outdoor",
    "lamp": "equipment",
    "pottery": "material",
    "chess": "equipment",
    "church_altar": "structure",
}


class FineLabel(NamedTuple):
    """A fine-grained label: the coarse label whose motif it varies, its rank below it, and a second parent or None."""

    name: str
    parent: str
    rank: int
    second_parent: str | None

    @property
    def parents(self) -> tuple[str, ...]:
        """Every coarse label that a photo with this fine label carries."""
        return (self.parent,) if self.second_parent is None else (self.parent, self.second_parent)


DEFAULT_NUM_FINE_LABELS: Final = len(COARSE_LABELS) + sum(len(words.split()) for words in _WORDS.values())


def make_taxonomy(num_fine_labels: int = DEFAULT_NUM_FINE_LABELS) -> list[FineLabel]:
    """`num_fine_labels` labels in name order, shared out over the 17 coarse ones like the word lists of this file.

    There are 17 or more: the coarse names are always among them. Below the default the rarest words are left out; above
    it, further ones are numbered (`animal_037`).

    >>> labels = make_taxonomy(40)
    >>> len(labels), labels[0]
    (40, FineLabel(name='animal', parent='animal', rank=0, second_parent=None))
    """
    words = {coarse: [coarse, *_WORDS[coarse].split()] for coarse in COARSE_LABELS}
    labels = []
    for coarse, count in _share_out(num_fine_labels, {coarse: len(names) for coarse, names in words.items()}).items():
        names = words[coarse][:count] + [f"{coarse}_{rank:03d}" for rank in range(len(words[coarse]), count)]
        labels += [FineLabel(name, coarse, rank, _SECOND_PARENT.get(name)) for rank, name in enumerate(names)]
    return sorted(labels)


def relationship_text(taxonomy: list[FineLabel]) -> str:
    """The text of `label_relationship.txt`: one `fine -> coarse` line for every parent of every label."""
    return "".join(f"{label.name} -> {coarse}\n" for label in taxonomy for coarse in sorted(label.parents))


def _share_out(total: int, shares: dict[str, int]) -> dict[str, int]:
    """`total` in proportion to `shares` by largest remainders, at least 1 each."""
    spare = total - len(shares)
    weight = sum(shares.values()) - len(shares)
    exact = {name: spare * (share - 1) / weight for name, share in shares.items()}
    counts = {name: 1 + int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (int(exact[name]) - exact[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
