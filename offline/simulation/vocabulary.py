"""Vocabulary of the simulated shop: kinds of products, their attributes, and phrases that express the attributes.

An `Attribute` is one latent dimension of taste ("rustic", "for camping"). It has many phrases, so that its description
differs between products, as in a real shop: taste can be learned from the text as a whole, but hardly from any single
word. All brands and product lines are fictional.
"""

from __future__ import annotations

from typing import NamedTuple


class Attribute(NamedTuple):
    """A latent attribute. name: also its tag. modifiers: words before a noun. predicates: phrases after "it"."""

    facet: str
    name: str
    modifiers: tuple[str, ...]
    predicates: tuple[str, ...]


class Department(NamedTuple):
    """A category. nouns: kinds of products. price, weight_kg: medians. materials, uses: attributes that make sense."""

    name: str
    nouns: tuple[str, ...]
    price: float
    weight_kg: float
    materials: tuple[str, ...]
    uses: tuple[str, ...]


def _attributes(facet: str, lines: str) -> tuple[Attribute, ...]:
    """Parse `name | modifier, modifier | predicate; predicate`, one attribute per line."""
    out = []
    for line in lines.strip().splitlines():
        name, modifiers, predicates = (part.strip() for part in line.split("|"))
        out.append(Attribute(facet, name, tuple(modifiers.split(", ")), tuple(predicates.split("; "))))
    return tuple(out)


FACETS = ("quality", "style", "colour", "material", "audience", "use")
"""Facets in the usual order of English adjectives before a noun."""

# ruff: noqa: E501 - one attribute a line keeps the table a table
ATTRIBUTES: tuple[Attribute, ...] = (
    *_attributes(
        "quality",
        """
handmade | handmade, hand-finished, small-batch, artisan, craft-made | is shaped by hand, so no two are quite alike; carries the small marks of the maker's tools; comes from a family workshop that still works slowly; is finished one at a time at the bench
sustainable | eco-friendly, sustainable, planet-friendly, low-impact, responsibly made | is made with as little waste as we can manage; leaves a light footprint from workshop to doorstep; comes with every link of its supply chain audited; can be composted or returned to us at the end of its life
rugged | rugged, heavy-duty, hard-wearing, tough, built-to-last | shrugs off knocks, scrapes and bad weather; is built to take years of abuse; has reinforced seams and corners where others fail; survives drops that would finish lesser things
lightweight | lightweight, compact, featherweight, fold-flat, space-saving | weighs next to nothing and tucks away small; folds down to fit a drawer or a narrow shelf; takes up hardly any room; is so light you forget you are carrying it
luxurious | luxury, premium, indulgent, sumptuous, top-tier | feels rich the moment you touch it; would not look out of place in a grand hotel; spares no expense where it counts; comes in a lined presentation box
affordable | budget, no-frills, everyday, good-value, wallet-friendly | does the job without costing the earth; gives a lot for very little money; keeps things simple so the price stays low; skips the extras you would never use
smart | smart, app-controlled, connected, high-tech, Bluetooth | pairs with your phone in seconds; learns your routine and adjusts itself; charges over USB-C and reports its status in an app; has sensors that do the thinking for you
gentle | soft, gentle, skin-friendly, hypoallergenic, cushioned | is kind to sensitive skin; has no harsh edges, dyes or scents; feels soft from the first day; was tested by people with allergies
""",
    ),
    *_attributes(
        "style",
        """
rustic | rustic, farmhouse, country-style, weathered, rough-hewn | looks as if it came out of an old barn; brings the warmth of a country cottage; wears its knots and cracks with pride; has the honest look of village craft
minimalist | minimalist, pared-back, clean-lined, Nordic, uncluttered | keeps to a few quiet lines and nothing more; has no ornament to distract the eye; belongs in a calm, empty room; follows the Scandinavian habit of leaving things out
vintage | vintage, retro, mid-century, old-school, nostalgic | could have been found in a 1960s living room; borrows its shape from grandmother's days; has the charm of a flea-market find; recalls the golden age of diners and jukeboxes
bohemian | bohemian, boho, free-spirited, eclectic, tasselled | mixes patterns like a traveller's souvenirs; has fringes, tassels and an easy spirit; looks at home in an artist's loft; seems gathered on a long journey east
industrial | industrial, factory-style, loft, raw-edged, workshop | shows its rivets and bare joints; takes its cue from old factory floors; has the blunt honesty of machine-shop gear; suits exposed brick and concrete
playful | playful, whimsical, quirky, fun, cartoonish | makes people smile when they see it; does not take itself seriously at all; is full of little jokes and surprises; hides a silly face if you look closely
elegant | elegant, refined, graceful, classic, tailored | has the poise of a well-cut suit; adds quiet polish to formal occasions; shows restraint and fine proportions; never goes out of fashion among people of taste
coastal | coastal, nautical, seaside, beach-house, maritime | smells of salt air and summer holidays; brings sailing ropes and driftwood to mind; looks best near an open window and the sea; carries the ease of a harbour town
gothic | gothic, moody, dark-romantic, witchy, Victorian | casts a dramatic, candlelit shadow; has ravens, moons and thorns worked into it; would please a lover of old ghost stories; belongs in a mansion with secrets
sporty | sporty, athletic, racing, streetwise, dynamic | has the fast lines of a racing bike; looks ready for the starting line; borrows details from team kit; feels quick even when standing still
""",
    ),
    *_attributes(
        "colour",
        """
earth tones | terracotta, ochre, rust-brown, clay-coloured, cinnamon | comes in the browns and reds of baked earth; glows like autumn leaves; has the warm tone of clay and spice
pastel | pastel, blush-pink, powder-blue, lavender, mint-tinted | comes in sugared-almond shades; has the tender tints of spring blossom; is coloured like sherbet and macarons
black | black, charcoal, jet, midnight, ink-dark | is black from end to end; comes in a deep, lightless charcoal; disappears into the shadows
bright | bright, neon, rainbow, vivid yellow, hot-orange | is impossible to overlook in its loud colours; shouts in yellow, orange and pink; brings a splash of rainbow to grey days
neutral | cream, off-white, ivory, beige, oatmeal | comes in quiet shades of oat and milk; goes with anything, being the colour of sand; keeps to a calm, pale palette
blue | navy, indigo, cobalt, sky-blue, denim-blue | is dyed a deep ocean blue; takes its colour from evening skies; comes in indigo that fades beautifully
green | sage, olive, forest-green, moss-green, emerald | is the green of ferns after rain; comes in olive and sage tones; has the shade of a pine wood
gold | gold, gilded, bronze-toned, champagne, copper-toned | catches the light with a golden shimmer; gleams like an old coin; is touched with gilt at the edges
""",
    ),
    *_attributes(
        "material",
        """
wood | oak, walnut, solid-wood, timber, beechwood | is cut from solid oak with the grain left visible; shows every ring of the tree it came from; is turned from walnut and rubbed with oil
linen | linen, flax, washed-linen, slub-linen | is woven from flax that softens with each wash; breathes like good linen should; creases in the lovely way only flax does
wool | wool, merino, knitted, felted, lambswool | is knitted from merino that keeps heat in; is felted from pure lambswool; wraps you in the warmth of the flock
leather | leather, full-grain leather, suede, saddle-leather | is cut from hide that darkens with age; has the smell of a saddler's shop; grows a patina the more you handle it
steel | steel, stainless-steel, iron, metal, brushed-steel | is pressed from stainless steel that will not rust; has a frame of welded iron; feels cold, solid and exact in the hand
ceramic | ceramic, stoneware, porcelain, glazed, earthenware | is thrown on the wheel and fired twice; has a speckled glaze that pools at the rim; rings like good porcelain when tapped
glass | glass, crystal, hand-blown, borosilicate | is blown from clear glass with tiny bubbles; throws light around like crystal; stays transparent after years of washing
bamboo | bamboo, cane, bamboo-fibre, split-bamboo | is made of bamboo, which grows back in a season; has the springy strength of cane; is pressed from bamboo fibre
recycled plastic | recycled, ocean-plastic, upcycled, bottle-fibre | began life as bottles fished from the sea; is moulded from plastic that would have been thrown away; gives old packaging a second life
cotton | cotton, organic-cotton, canvas, jersey, percale | is sewn from crisp, washable cotton; is cut from thick canvas; feels like a favourite T-shirt
rattan | rattan, wicker, woven, seagrass, basketwork | is woven from wicker by patient fingers; creaks pleasantly like an old basket; lets light through its seagrass weave
brass | brass, copper, hammered-metal, antique-brass | has brass fittings that mellow with time; is beaten out of copper sheet; has the soft glow of hammered metal
stone | marble, slate, stone, granite, travertine | is carved from veined marble; has the heft and chill of real stone; is split from a single piece of slate
""",
    ),
    *_attributes(
        "audience",
        """
children | children's, kids', toddler, junior | is sized for small hands; was tested by a noisy class of six-year-olds; keeps little ones busy and safe
students | student, dorm-room, first-flat, campus | fits a cramped student room; gets you through exam season; suits a first flat and a shared fridge
older people | easy-grip, senior-friendly, arthritis-friendly, large-print | is easy on stiff joints and tired eyes; has big, clear markings and a sure grip; was designed with grandparents in mind
professionals | professional, executive, studio-grade, trade | meets the standards of people who do this for a living; makes the right impression on clients; is what you will find in working studios
new parents | baby-safe, nursery, newborn, parent-friendly | can be used with a baby asleep on one arm; is safe to chew, drop and drool on; makes the first sleepless months easier
beginners | beginner, starter, easy-to-use, first-timer | comes with a guide that assumes you know nothing; forgives every mistake a learner makes; gets you going within ten minutes
collectors | limited-edition, numbered, collector's, rare | is numbered and signed in a run of three hundred; will be hunted for once it is gone; comes with a certificate for your cabinet
""",
    ),
    *_attributes(
        "use",
        """
camping | camping, expedition, trail, backcountry, bushcraft | earns its place on weekends under canvas; is at home beside a fire in the woods; works far from any socket or tap; goes up the mountain and back
home office | home-office, desk, workspace, study, video-call | keeps your desk in order through long working days; helps you concentrate between two meetings; turns a corner of the bedroom into a place to work; looks good behind you on a video call
travel | travel, carry-on, cabin-size, globetrotter, suitcase | slips into hand luggage without trouble; passes airport security and fits under the seat; is the companion for trains, planes and hotel rooms; makes a week away from home simpler
entertaining | party, entertaining, host's, dinner-party, buffet | is there when ten friends come for supper; starts conversations among guests; makes a host's evening easier; turns a meal into an occasion
relaxing | relaxation, cosy, spa, unwinding, slow-evening | belongs to slow evenings with tea and a book; helps you switch off after a hard day; turns the bathroom into a small spa; makes a rainy Sunday something to look forward to
fitness | fitness, workout, gym, training, yoga | keeps up with you through sweaty training; is good for stretching, lifting and cooling down; supports a daily exercise habit; helps you beat last week's time
gardening | gardening, potting-shed, greenhouse, allotment, herb-grower's | is happiest among seedlings and muddy boots; helps tomatoes, herbs and roses along; stands up to soil, rain and secateurs; brings the allotment a little closer
play | playtime, game-night, puzzle, make-believe, learning | turns an afternoon into make-believe; gets the whole family round the table; teaches without anyone noticing; invites building, guessing and pretending
gifts | gift, keepsake, birthday, anniversary, thank-you | comes wrapped and ready to hand over; says thank you better than a card; is kept long after the birthday is over; solves the problem of what to give
commuting | commuter, city, cycling, rush-hour, everyday-carry | copes with crowded trains and wet pavements; is quick to grab on the way out; rides well on a bicycle rack; has a place for keys, card and umbrella
crafting | craft, hobby, maker's, sewing-room, studio | helps with glue, thread, paint and patience; keeps needles, brushes and beads where you need them; is meant for people who make things at the kitchen table; suits an afternoon of knitting or sketching
""",
    ),
)


def _department(name: str, price: float, weight_kg: float, nouns: str, materials: str, uses: str) -> Department:
    split = [tuple(part.split(", ")) for part in (nouns, materials, uses)]
    return Department(name, split[0], price, weight_kg, split[1], split[2])


DEPARTMENTS: tuple[Department, ...] = (
    _department(
        "Furniture",
        160,
        14,
        "side table, armchair, bookcase, stool, bench, sideboard, coffee table, coat stand, rocking chair, folding screen",
        "wood, steel, leather, rattan, bamboo, stone, linen, brass",
        "home office, entertaining, relaxing, gardening, crafting, play",
    ),
    _department(
        "Kitchen and Dining",
        32,
        1.4,
        "teapot, salad bowl, chopping board, mug, serving platter, casserole, carafe, spice jar, pepper mill, lunch box",
        "ceramic, glass, steel, wood, bamboo, stone, brass, recycled plastic",
        "entertaining, camping, gifts, travel, relaxing, commuting, home office",
    ),
    _department(
        "Lighting",
        58,
        1.8,
        "table lamp, lantern, pendant light, night light, reading lamp, candle holder, floor lamp, string light, wall sconce",
        "brass, glass, steel, ceramic, rattan, wood, stone, bamboo",
        "relaxing, home office, camping, entertaining, crafting, play, gifts",
    ),
    _department(
        "Bedding and Textiles",
        49,
        1.2,
        "throw, cushion, duvet cover, blanket, rug, bedspread, curtain, pillow, quilt, table runner",
        "linen, wool, cotton, bamboo, recycled plastic, leather",
        "relaxing, travel, camping, entertaining, gifts, fitness, play",
    ),
    _department(
        "Garden",
        38,
        3.2,
        "planter, watering can, bird feeder, hammock, trowel, garden chair, bird bath, seed tray, wind chime, fire bowl",
        "wood, steel, ceramic, stone, bamboo, rattan, recycled plastic, brass, cotton",
        "gardening, relaxing, entertaining, play, gifts, crafting",
    ),
    _department(
        "Bags and Travel",
        74,
        0.9,
        "backpack, weekend bag, wallet, tote, washbag, suitcase, satchel, belt bag, passport holder, duffel",
        "leather, cotton, wool, recycled plastic, linen, rattan, bamboo",
        "travel, commuting, camping, fitness, home office, gifts, crafting",
    ),
    _department(
        "Clothing",
        46,
        0.5,
        "cardigan, overshirt, scarf, dressing gown, jacket, beanie, apron, jumper, waistcoat, raincoat",
        "wool, cotton, linen, leather, recycled plastic, bamboo",
        "camping, commuting, fitness, relaxing, gardening, travel, entertaining",
    ),
    _department(
        "Jewellery and Watches",
        88,
        0.08,
        "necklace, bracelet, wristwatch, ring, brooch, pendant, pocket watch, bangle, charm, cufflink set",
        "brass, steel, glass, leather, stone, wood, ceramic",
        "gifts, entertaining, fitness, commuting, travel, relaxing",
    ),
    _department(
        "Toys and Games",
        27,
        0.8,
        "board game, jigsaw, building set, puppet, card game, rocking horse, kite, doll, marble run, memory game",
        "wood, cotton, wool, recycled plastic, steel, bamboo, glass",
        "play, gifts, travel, entertaining, camping, crafting, relaxing",
    ),
    _department(
        "Stationery and Desk",
        21,
        0.4,
        "notebook, pen stand, desk tray, sketchbook, paperweight, fountain pen, planner, letter rack, bookend, pencil case",
        "leather, brass, wood, steel, glass, bamboo, recycled plastic, stone, cotton",
        "home office, crafting, gifts, travel, commuting, play",
    ),
    _department(
        "Sports and Outdoors",
        54,
        1.9,
        "exercise mat, water bottle, sleeping bag, skipping rope, head torch, kettlebell, picnic blanket, camp stove, foam roller, dry bag",
        "steel, recycled plastic, cotton, wool, bamboo, leather, wood",
        "fitness, camping, travel, commuting, relaxing, play",
    ),
    _department(
        "Bath and Beauty",
        24,
        0.4,
        "soap dish, bath towel, candle, hairbrush, diffuser, bath mat, hand mirror, massage tool, laundry basket, toiletry jar",
        "ceramic, cotton, wood, glass, stone, bamboo, rattan, brass, linen",
        "relaxing, travel, gifts, fitness, entertaining, gardening",
    ),
)


class Lifestyle(NamedTuple):
    """A taste shared by a group of shoppers, by names of attributes. Each brand is designed for one."""

    likes: tuple[str, ...]
    dislikes: tuple[str, ...]


def _lifestyle(likes: str, dislikes: str) -> Lifestyle:
    return Lifestyle(tuple(likes.split(", ")), tuple(dislikes.split(", ")))


LIFESTYLES: tuple[Lifestyle, ...] = (
    _lifestyle(
        "rustic, wood, handmade, earth tones, gardening, ceramic, older people",
        "smart, black, industrial, recycled plastic",
    ),
    _lifestyle("minimalist, neutral, linen, sustainable, wood, relaxing, home office", "playful, bright, gothic, gold"),
    _lifestyle(
        "vintage, collectors, brass, leather, gold, entertaining, older people",
        "recycled plastic, sporty, smart, neutral",
    ),
    _lifestyle(
        "bohemian, rattan, earth tones, handmade, cotton, travel, crafting", "steel, industrial, professionals, black"
    ),
    _lifestyle(
        "industrial, steel, black, rugged, leather, commuting, professionals", "pastel, bohemian, playful, gentle"
    ),
    _lifestyle(
        "playful, bright, children, play, cotton, gifts, affordable", "luxurious, gothic, leather, professionals"
    ),
    _lifestyle(
        "elegant, luxurious, gold, glass, stone, entertaining, gifts", "affordable, rugged, recycled plastic, camping"
    ),
    _lifestyle("coastal, blue, linen, rattan, relaxing, travel, lightweight", "gothic, industrial, black, stone"),
    _lifestyle("gothic, black, glass, collectors, brass, crafting, handmade", "pastel, coastal, children, sporty"),
    _lifestyle(
        "sporty, fitness, lightweight, bright, recycled plastic, smart, commuting",
        "vintage, ceramic, rustic, older people",
    ),
    _lifestyle("camping, rugged, green, steel, wool, lightweight, travel", "elegant, luxurious, glass, pastel"),
    _lifestyle("gentle, pastel, new parents, cotton, bamboo, relaxing, children", "gothic, black, rugged, steel"),
    _lifestyle(
        "smart, minimalist, home office, professionals, black, steel, lightweight", "bohemian, rattan, rustic, handmade"
    ),
    _lifestyle(
        "sustainable, green, bamboo, recycled plastic, gardening, beginners, wool", "luxurious, leather, gold, black"
    ),
    _lifestyle(
        "students, affordable, bright, beginners, play, commuting, recycled plastic",
        "luxurious, elegant, stone, collectors",
    ),
    _lifestyle(
        "crafting, pastel, vintage, wool, beginners, gifts, handmade", "smart, industrial, sporty, professionals"
    ),
)


def _names(listed: str) -> tuple[str, ...]:
    return tuple(listed.split(", "))


BRANDS = _names(
    "Harrowby, Lindqvale, Tamarisk & Rowe, Norrfell, Ostermoor, Pellworth, Quillon, Sablewick, Thornbury Mill, Umberline, "
    "Velmora, Wrenfield, Yarrowsmith, Zephyrine, Aldersand, Brackwater, Corvane, Dunmarsh, Elmsgate, Fennimore Hall, "
    "Gallowgreen, Hollisande, Ivory & Pike, Juniperra, Kestrelby, Larkspire, Mossington, Nettlecote, Orrinda, Plumstone, "
    "Ravensholt, Saltmarrow, Tidewell, Underhill & Day, Vossberg, Winterbourne Row"
)

LINES = _names(
    "Alder, Bruno, Cleo, Dune, Ember, Fable, Gale, Halo, Iris, Jasper, Koto, Lumen, Maren, Nova, Otis, Piper, Quinn, Rhea, "
    "Sorrel, Tully, Una, Vesper, Willa, Xeno, Yves, Zola, Bram, Celeste, Drift, Edda"
)

SUFFIXES = (
    ", set of two",
    ", small",
    ", large",
    ", 30 cm",
    ", pack of three",
    " with lid",
    ", second edition",
    ", one size",
)

OPENERS = (
    "{A} {mod} {noun} that {p}.",
    "This {mod} {noun} {p}.",
    "Meet the {line}, {a} {mod} {noun} that {p}.",
    "Looking for {an} {noun} that {p}?",
    "Here is {a} {mod} {noun} which {p}.",
    "We wanted {an} {noun} that {p}, so we had one made.",
    "{An} {noun} that {p} and {q}.",
    "Think of it as {a} {mod} {noun} that {p}.",
    "Our {noun} {p}, and it {q}.",
    "Not every {noun} {p}; this {mod} one does more and {q}.",
    "You will find many uses for {a} {mod} {noun}, not least because it {p}.",
    "The {line} {noun} {p}.",
)

MIDDLES = (
    "It {p}.",
    "It {p} and {q}.",
    "Better still, it {p}.",
    "You will notice that it {p}.",
    "Owners often tell us that it {p}.",
    "Used daily, it {p}; it also {q}.",
    "The whole thing {p}.",
    "What sets it apart is simple: it {p}.",
    "Pick it up and you will see that it {p}.",
    "For all that, it {p}.",
    "We like that it {p}, and that it {q}.",
    "Add to this that it {p}.",
    "Best of all, perhaps, it {p}.",
    "Friends will ask where you found it, since it {p}.",
)

FACTS = (
    "Measures about {n} cm at its widest point.",
    "Wipe clean with a damp cloth.",
    "Delivered within five working days.",
    "Guaranteed for {n} months.",
    "Arrives fully assembled.",
    "Colours on screen may differ slightly.",
    "Spare parts are available from our service team.",
    "Winner of a reader's choice award.",
    "Photographed in natural light.",
    "Returns are free for thirty days.",
    "Store in a dry place.",
    "Instructions are printed inside the box.",
)
"""Sentences unrelated to taste. An encoder has to learn to ignore them."""
